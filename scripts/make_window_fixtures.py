"""Makes fixtures/reports/windows: transformers' SAM encoder with windows that do not fill its grid, and its outputs at other image sizes.

    OMP_NUM_THREADS=1 python scripts/make_window_fixtures.py        needs torch, timm, transformers, onnx and onnxruntime

Images of 28 pixels are 7 by 7 patches, windows 4 by 4: the grid is padded to 8. One layer attends in windows, one globally, both with tables
of offsets that the graph resamples and looks up. golden.json holds the outputs for one image, the hash of scripts/make_gradient_golden.py
with seed 9, at each size: those of a model of that size, with the position table resampled as timm does and the other tables as they are.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from timm.layers import resample_abs_pos_embed
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

FOLDER = Path(__file__).resolve().parent.parent / "fixtures/reports/windows"
SIDE, PATCH, SIZES = 28, 4, (16, 24, 28, 32, 56)


def values(shape, seed):
    """Numbers from -1 to 1 that float32 holds exactly: the hash of scripts/make_gradient_golden.py."""
    with np.errstate(over="ignore"):
        h = np.arange(np.prod(shape), dtype=np.uint32) + np.uint32(seed) * np.uint32(0x9E3779B9)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        h = h ^ (h >> np.uint32(16))
    return ((h >> 8).astype(np.float64) / 2**23 - 1).reshape(shape).astype(np.float32)


class Encoder(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        config = SamVisionConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=size, patch_size=PATCH, window_size=4, global_attn_indexes=[1], output_channels=4, mlp_dim=24)
        self.inner = SamVisionEncoder._from_config(config, attn_implementation="eager")

    def forward(self, x):
        return self.inner(x)[0]


def resized(model, size):
    """The same weights in a model of another size."""
    other = Encoder(size).eval()
    state = model.state_dict()
    table = state["inner.pos_embed"]
    grid = size // PATCH
    flat = resample_abs_pos_embed(table.reshape(1, -1, table.shape[-1]), [grid, grid], num_prefix_tokens=0)
    own = {k: v for k, v in state.items() if "rel_pos" not in k and k != "inner.pos_embed"}
    other.load_state_dict(own, strict=False)
    other.inner.pos_embed.data = flat.reshape(1, grid, grid, -1)
    for a, b in zip(other.inner.layers, model.inner.layers):
        a.attn.rel_pos_h.data, a.attn.rel_pos_w.data = b.attn.rel_pos_h.data, b.attn.rel_pos_w.data
    return other


def main():
    warnings.filterwarnings("ignore")
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = Encoder(SIDE).eval()
    for p in model.parameters():
        p.data.add_(torch.randn_like(p) * 0.2)
    x = torch.from_numpy(values((2, 3, SIDE, SIDE), 9))
    names = dict(input_names=["x"], output_names=["y"])
    torch.onnx.export(model, (x,), FOLDER / "sam-ts.onnx", dynamo=False, opset_version=17, dynamic_axes={"x": {0: "b"}, "y": {0: "b"}}, **names)
    torch.onnx.export(model, (x,), FOLDER / "sam-dynamo.onnx", dynamo=True, external_data=False, dynamic_shapes=({0: torch.export.Dim("b")},), **names)
    for path in FOLDER.glob("*.onnx"):
        stored = onnx.load(path)
        del stored.metadata_props[:]
        for node in stored.graph.node:
            node.ClearField("doc_string")
            del node.metadata_props[:]
        onnx.save(stored, path)
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        with torch.no_grad():
            error = np.abs(session.run(None, {"x": x.numpy()})[0] - model(x).numpy()).max()
        assert error < 1e-4, (path, error)
    outputs = {}
    for size in SIZES:
        with torch.no_grad():
            y = resized(model, size)(torch.from_numpy(values((1, 3, size, size), 9))).numpy()
        outputs[size] = [round(float(v), 6) for v in y.ravel()]
    with open(FOLDER / "golden.json", "w") as file:
        json.dump(outputs, file)
        file.write("\n")


if __name__ == "__main__":
    main()
