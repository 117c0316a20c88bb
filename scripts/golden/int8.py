# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "onnx==1.23.2", "onnxruntime==1.32.0"]
# ///
"""Makes fixtures/int8/golden.json: weights rounded to int8 by NumPy, and what ONNX Runtime says with them put back.

    python scripts/golden/int8.py

Of every matrix of a product, as it lies in the product (rows are summed over), and of the word table of an encoder of texts: a weighted sum of the rounded
numbers, the sum of their magnitudes, a weighted sum of the scales, in float64. Of models of images also the outputs of the float model with the rounded
weights in the place of its own, on an image of numbers that tests/embedded/common/hash.rs makes too.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
MODELS = ("graphs/timm-vit-unfused-ts11", "graphs/hf-vit-ts17", "dialects/gemm", "dialects/convolutions", "texts/bert-ts17")
SMALL = 128


def hashed(count, seed):
    h = np.arange(count, dtype=np.uint32) + np.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    return ((h >> np.uint32(8)).astype(np.float64) / (1 << 23) - 1).astype(np.float32)


def rounded(w, axis):
    largest = np.abs(w).max(axis=axis, keepdims=True)
    scale = np.where(largest == 0, np.float32(1), largest / np.float32(127)).astype(np.float32)
    return np.clip(np.rint(w / scale), -127, 127).astype(np.int8), scale


def moments(numbers, scale):
    weights = 1 + np.arange(numbers.size) % 97
    of_scales = 1 + np.arange(scale.size) % 89
    whole = numbers.ravel().astype(np.int64)
    return [int((whole * weights).sum()), int(np.abs(whole).sum()), float((scale.ravel().astype(np.float64) * of_scales).sum())]


def made(name):
    model = onnx.load(FIXTURES / f"{name}.onnx")
    tensors = {t.name: t for t in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        at = 0 if node.op_type == "Gather" else 1
        t = tensors.get(node.input[at]) if len(node.input) > at else None
        if t is None or len(t.dims) != 2 or t.dims[0] * t.dims[1] < SMALL or t.name in found:
            continue
        w = numpy_helper.to_array(t)
        if node.op_type == "Gather":
            if "word_embeddings" not in t.name:
                continue
            numbers, scale = rounded(w, 1)
            back = numbers * scale
        elif node.op_type in ("MatMul", "Gemm"):
            turned = any(a.name == "transB" and a.i for a in node.attribute)
            numbers, scale = rounded(w.T if turned else w, 0)
            back = (numbers * scale).T if turned else numbers * scale
        else:
            continue
        found[t.name] = moments(np.ascontiguousarray(numbers), scale)
        t.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(back, dtype=np.float32), t.name))
    entry = {"weights": found}
    inputs = model.graph.input
    if len(inputs) == 1 and len(inputs[0].type.tensor_type.shape.dim) == 4:
        channels, height, width = (d.dim_value for d in inputs[0].type.tensor_type.shape.dim[1:])
        if height:
            shape = (1, channels, height, width)
            image = hashed(int(np.prod(shape)), 3).reshape(shape)
            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            said = session.run(None, {inputs[0].name: image})
            entry |= {"image": list(shape), "outputs": [y.ravel().astype(float).tolist()[:64] for y in said]}
    return entry


if __name__ == "__main__":
    golden = {name: made(name) for name in MODELS}
    (FIXTURES / "int8").mkdir(exist_ok=True)
    (FIXTURES / "int8/golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    for name, entry in golden.items():
        print(name, len(entry["weights"]), "weights", [len(y) for y in entry.get("outputs", [])])
