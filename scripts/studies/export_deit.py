# /// script
# requires-python = ">=3.10"
# dependencies = ["onnx==1.23.2", "onnxscript==0.7.2", "timm==1.0.31", "torch==2.15.0"]
# ///
"""Exports models of published size with random weights, to measure time and memory with: DeiT-T/S/B, ViT-L, ViT-H and Swin-T.

    OMP_NUM_THREADS=1 python scripts/studies/export_deit.py tiny small base [large] [huge] [swin] [--output .cache] [--external]

Makes .cache/deit-tiny.onnx (23 MB), deit-small.onnx (88 MB), deit-base.onnx (346 MB), vit-large.onnx (1.2 GB), vit-huge.onnx (2.5 GB,
weights beside it) and swin-tiny.onnx (114 MB) from timm's models, TorchScript exporter, opset 17, dynamic batch; the huge one by the dynamo
exporter, opset 18. --external writes the weights to NAME.onnx.data beside the model. The weights are
timm's random initialisation with a little noise on norms and biases, which are all equal there; seed 0.
Needs torch, timm, onnx and onnxscript.
"""

import argparse
import os
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import onnx
import timm
import torch

MODELS = {
    "tiny": ("deit_tiny_patch16_224", "deit-tiny.onnx"),
    "small": ("deit_small_patch16_224", "deit-small.onnx"),
    "base": ("deit_base_patch16_224", "deit-base.onnx"),
    "large": ("vit_large_patch16_224", "vit-large.onnx"),
    "huge": ("vit_huge_patch14_224", "vit-huge.onnx"),
    "swin": ("swin_tiny_patch4_window7_224", "swin-tiny.onnx"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="+", choices=MODELS)
    parser.add_argument("--output", type=Path, default=Path(".cache"))
    parser.add_argument("--external", action="store_true", help="weights in a file of their own")
    args = parser.parse_args()

    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    for size in args.sizes:
        name, file = MODELS[size]
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False).eval()
        with torch.no_grad():
            for p in model.parameters():  # equal norms and biases of layers would be merged by the exporter, as no trained model's are
                if p.ndim == 1:
                    p.add_(0.02 * torch.randn_like(p))
        path, part = args.output / file, args.output / (file + ".tmp")
        if size == "huge":  # past the 2 GB of one file, which the older exporter does not leave
            (args.output / (file + ".data")).unlink(missing_ok=True)
            torch.onnx.export(model, (torch.zeros(2, 3, 224, 224),), str(path), dynamo=True, opset_version=18, input_names=["input"],
                              output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},), external_data=True,
                              verbose=False)
            print(f"{path}: {sum(p.numel() for p in model.parameters())} parameters")
            continue
        torch.onnx.export(
            model, (torch.zeros(1, 3, 224, 224),), str(part), dynamo=False, opset_version=17, input_names=["input"],
            output_names=["logits"], dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )
        if args.external:
            proto = onnx.load(part)
            data = args.output / (file + ".data")
            data.unlink(missing_ok=True)  # onnx appends to a file that is there
            onnx.save(proto, part, save_as_external_data=True, location=data.name, size_threshold=1024)
        os.replace(part, path)
        print(f"{path}: {sum(p.numel() for p in model.parameters())} parameters, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
