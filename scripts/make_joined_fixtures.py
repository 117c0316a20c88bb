"""Makes fixtures/reports/joined: heads in one axis with the batch, as einops writes '(b h) n d', by TorchScript, and PyTorch's outputs with
fewer heads; and places that index an axis of heads.

    OMP_NUM_THREADS=1 python scripts/make_joined_fixtures.py        needs torch, torchvision, onnx and onnxruntime

plain      heads joined with the batch; the batch is computed back from that axis by a division
conv       the same behind convolutions, keys and values of half the resolution, as CvT has them
windows    batch, windows and heads in one axis, and the batch computed back in two divisions
swin2      torchvision's Swin v2: ScatterND puts zeros where the keys' bias is
scattered  a packed bias that is put together by ScatterND: that of queries and that of values, none of keys, as BEiT has it

Images are the hash of scripts/make_gradient_golden.py with seed 3. golden.json holds, for each number of heads that is kept, the outputs of
the model whose other heads write nothing, for three images.
"""

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torchvision
from torch import nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

FOLDER = Path(__file__).resolve().parent.parent / "fixtures/reports/joined"
WIDTH, HEADS, SIDE = 16, 4, 16


def values(shape, seed):
    """Numbers from -1 to 1 that float32 holds exactly: the hash of scripts/make_gradient_golden.py."""
    with np.errstate(over="ignore"):
        h = np.arange(np.prod(shape), dtype=np.uint32) + np.uint32(seed) * np.uint32(0x9E3779B9)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        h = h ^ (h >> np.uint32(16))
    return ((h >> 8).astype(np.float64) / 2**23 - 1).reshape(shape).astype(np.float32)


def join(x):
    """b n (h d) -> (b h) n d"""
    x = x.reshape(x.shape[0], x.shape[1], HEADS, WIDTH // HEADS).permute(0, 2, 1, 3)
    return x.reshape(x.shape[0] * HEADS, x.shape[2], WIDTH // HEADS)


def part(x):
    """(b h) n d -> b n (h d)"""
    x = x.reshape(x.shape[0] // HEADS, HEADS, x.shape[1], WIDTH // HEADS).permute(0, 2, 1, 3)
    return x.reshape(x.shape[0], x.shape[1], WIDTH)


def attend(q, k, v):
    weights = torch.softmax(torch.einsum("bid,bjd->bij", q, k) * (WIDTH // HEADS) ** -0.5, -1)
    return torch.einsum("bij,bjd->bid", weights, v)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.proj(part(attend(*(join(t) for t in self.qkv(x).chunk(3, -1)))))


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.k, self.v = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1, stride=2) for _ in range(2))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        b, n, c = x.shape
        side = int(n**0.5)
        x = x.transpose(1, 2).reshape(b, c, side, side)
        heads = lambda t: t.reshape(t.shape[0] * HEADS, WIDTH // HEADS, t.shape[2] * t.shape[3]).transpose(1, 2)
        y = attend(*(heads(f(x)) for f in (self.q, self.k, self.v)))
        y = y.transpose(1, 2).reshape(y.shape[0] // HEADS, WIDTH, y.shape[1])
        return self.proj(y.transpose(1, 2))


class Windows(Plain):
    def forward(self, x):
        b, n, c = x.shape
        side, w = int(n**0.5), 2
        x = x.reshape(b, side // w, w, side // w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, c)
        x = super().forward(x)
        images = x.shape[0] // (side * side // w // w)
        return x.reshape(images, side // w, side // w, w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(images, n, c)


class Scattered(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * WIDTH, WIDTH) * 0.3)
        self.q_bias, self.v_bias = (nn.Parameter(torch.randn(WIDTH)) for _ in range(2))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        bias = torch.zeros(3 * WIDTH)
        bias = bias.index_put((torch.arange(WIDTH),), self.q_bias)
        bias = bias.index_put((torch.arange(2 * WIDTH, 3 * WIDTH),), self.v_bias)
        q, k, v = nn.functional.linear(x, self.weight, bias).reshape(x.shape[0], -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1) @ v
        return self.proj(y.transpose(1, 2).reshape(x.shape[0], -1, WIDTH))


class Model(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.places = nn.Parameter(torch.randn(1, 16, WIDTH))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = attention
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.places
        x = x + self.attention(self.norm1(x))
        x = x + self.ffn(self.norm2(x))
        return self.head(x.mean(1))


def swin2():
    model = SwinTransformer(
        patch_size=[4, 4],
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=[2, 2],
        num_classes=3,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
        mlp_ratio=1.0,
    )
    return model


def projections(model):
    return [m.proj for m in model.modules() if isinstance(getattr(m, "proj", None), nn.Linear)]


def main():
    warnings.filterwarnings("ignore")
    FOLDER.mkdir(parents=True, exist_ok=True)
    x = torch.from_numpy(values((3, 3, SIDE, SIDE), 3))
    golden = []
    made = {"plain": Plain, "conv": Conv, "windows": Windows, "swin2": None, "scattered": Scattered}
    for name, attention in made.items():
        torch.manual_seed(0)
        model = (swin2() if attention is None else Model(attention())).eval()
        for p in model.parameters():
            p.data.add_(torch.randn_like(p) * 0.1)
        heads = HEADS if attention else 2
        path = FOLDER / f"{name}.onnx"
        # TorchScript writes computed shapes for a batch that is open.
        torch.onnx.export(model, (x[:2],), path, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "b"}, "y": {0: "b"}})
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs = {}
        for kept in range(1, heads + 1):
            less = copy.deepcopy(model)
            for proj in projections(less):
                proj.weight.data[:, proj.in_features // heads * kept :] = 0
            with torch.no_grad():
                y = less(x).numpy()
            if kept == heads:
                for n in (1, 2, 3):
                    error = np.abs(session.run(None, {"x": x[:n].numpy()})[0] - y[:n]).max()
                    assert error < 1e-4, (name, n, error)
            outputs[kept] = [round(float(v), 6) for v in y.ravel()]
        golden.append({"file": path.name, "outputs": outputs})
    with open(FOLDER / "golden.json", "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(entry) for entry in golden) + "\n]\n")


if __name__ == "__main__":
    main()
