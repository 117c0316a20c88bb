"""Makes fixtures/reports/masks: two layers behind masks as encoders of text write them, and what PyTorch says in float32.

    OMP_NUM_THREADS=1 python scripts/make_mask_fixtures.py        needs torch, onnx and onnxruntime

Inputs are `x` [2, 12, 16] and `mask` [2, 12], ones for tokens and zeros for padding, of float32. Numbers are the hash of
scripts/make_gradient_golden.py. In each model the smallest float32 stands for "not seen", and somewhere a query sees no key:

near     keys at most two tokens away, padding on the right: bias = Where(near & mask, 0, min)
causal   no later key, padding on the left: scores = Where(earlier, scores, min) + Where(mask, 0, min)
row      all keys of the second text are padding: bias = Where(mask, 0, min)
product  the same: bias = (1 - mask) * min
unmask   near, and rows that see nothing see all, found by comparison with min, as transformers 4 writes it
"""

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

FOLDER = Path(__file__).resolve().parent.parent / "fixtures/reports/masks"
TOKENS, WIDTH, HEADS = 12, 16, 2
MIN = torch.finfo(torch.float32).min


def values(shape, seed):
    """Numbers from -1 to 1 that float32 holds exactly: the hash of scripts/make_gradient_golden.py."""
    with np.errstate(over="ignore"):
        h = np.arange(np.prod(shape), dtype=np.uint32) + np.uint32(seed) * np.uint32(0x9E3779B9)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        h = h ^ (h >> np.uint32(16))
    return ((h >> 8).astype(np.float64) / 2**23 - 1).reshape(shape).astype(np.float32)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x, see):
        q, k, v = (f(self.norm1(x)).reshape(2, TOKENS, HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = see(q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5)
        y = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(2, TOKENS, WIDTH)
        x = x + self.out(y)
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x, mask):
        place = torch.arange(TOKENS)
        near = (place[:, None] - place[None, :]).abs() <= 2
        real = mask[:, None, None, :].bool()
        if self.kind in ("near", "unmask"):
            bias = torch.where(near & real, 0.0, MIN)
        elif self.kind == "product":
            bias = (1.0 - mask[:, None, None, :]) * MIN
        else:
            bias = torch.where(real, 0.0, MIN)
        if self.kind == "unmask":
            bias = bias * (~torch.all(bias == MIN, dim=-1, keepdim=True)).float()
        earlier = (place[:, None] >= place[None, :]) if self.kind == "causal" else None
        see = lambda scores: (scores if earlier is None else torch.where(earlier, scores, MIN)) + bias
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, see)
        return self.norm(x)


def main():
    warnings.filterwarnings("ignore")
    FOLDER.mkdir(parents=True, exist_ok=True)
    x = values((2, TOKENS, WIDTH), 5)
    golden = []
    for kind in ("near", "causal", "row", "product", "unmask"):
        mask = np.ones((2, TOKENS), np.float32)
        if kind == "causal":
            mask[1, :7] = 0
        elif kind in ("near", "unmask"):
            mask[1, 5:] = 0
        else:
            mask[1] = 0
        torch.manual_seed(0)
        model = Encoder(kind).eval()
        for p in model.parameters():
            p.data.add_(torch.randn_like(p) * 0.1)
        given = (torch.from_numpy(x), torch.from_numpy(mask))
        with torch.no_grad():
            y = model(*given).numpy()
        assert np.isfinite(y).all(), kind
        for exporter in ("ts", "dynamo"):
            # Operator set 13 has bfloat16 and no Where of it.
            path = FOLDER / f"{kind}-{exporter}.onnx"
            names = dict(input_names=["x", "mask"], output_names=["y"])
            if exporter == "ts":
                torch.onnx.export(model, given, path, dynamo=False, opset_version=13, **names)
            else:
                torch.onnx.export(model, given, path, dynamo=True, external_data=False, **names)
                stored = onnx.load(path)
                del stored.metadata_props[:]
                for node in stored.graph.node:
                    node.ClearField("doc_string")
                    del node.metadata_props[:]
                onnx.save(stored, path)
            onnx.checker.check_model(str(path), full_check=True)
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            error = np.abs(session.run(None, {"x": x, "mask": mask})[0] - y).max()
            assert error < 1e-4, (kind, exporter, error)
            golden.append({"file": path.name, "mask": mask.astype(int).tolist(), "y": [round(float(v), 6) for v in y.ravel()]})
    with open(FOLDER / "golden.json", "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(entry) for entry in golden) + "\n]\n")


if __name__ == "__main__":
    main()
