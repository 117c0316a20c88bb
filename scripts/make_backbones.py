"""Exports a small Swin and a small ViT with a convolutional stem, untrained, for the study of other backbones (docs/studies/backbones.toml).

    python scripts/make_backbones.py            # .cache/start-swin.onnx and .cache/start-hybrid.onnx

models/README.md says how `offshoot tune` makes models/fashion-swin.onnx and models/fashion-hybrid.onnx of them. Needs torch, timm and onnx.
"""

from pathlib import Path

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from train_ancestor import ViT, export


def swin():
    """28 pixels in patches of 2: 2 layers of 4 heads on 14 x 14 tokens in windows of 7 x 7, then 4 layers of 8 heads on 7 x 7 tokens."""
    return SwinTransformer(
        img_size=28, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depths=(2, 4), num_heads=(4, 8), window_size=7, drop_path_rate=0.0,
    )


def hybrid():
    """The bundled ancestor with 6 layers, behind three convolutions in place of patches: 28 pixels to 7 x 7 tokens."""
    model = ViT(depth=6)
    model.patch = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(32, 64, 1),
    )
    return model


def told_apart(model):
    """Weights that are equal at the start would be exported as one, and trained as one."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 1e-3 * torch.randn_like(parameter)
    return model


def main():
    for name, make in (("swin", swin), ("hybrid", hybrid)):
        torch.manual_seed(7)
        model = told_apart(make())
        path = Path(f".cache/start-{name}.onnx")
        export(model, path)
        print(f"{path}: {sum(p.numel() for p in model.parameters())} parameters")


if __name__ == "__main__":
    main()
