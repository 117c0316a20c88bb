#!/usr/bin/env bash
# onnxscript 0.7.2, onnx 1.23.2: how many attentions optimize_for_ort fuses, by what the file declares of the values inside (value_info).
# Most would expect: the optimiser infers shapes for itself, so entries change nothing; or more of them help: a file that went through
# onnx.shape_inference.infer_shapes, a usual step, fuses at least as well as one without entries.
# Output seen, on two attentions whose Reshapes take their batch from Shape: declared sizes 2, no entries 2, entries of infer_shapes 0, entries
# of infer_shapes with data_prop 2. By default infer_shapes gives what such a Reshape makes unknown sizes, and these are believed. Whoever
# writes a smaller model should declare the sizes that are known, or nothing; a pass of default shape inference in between is worse than none.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/python"
"$folder/python/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxscript==0.7.2 numpy
"$folder/python/bin/python" - <<'PY'
import collections

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir
from onnxscript.rewriter import ort_fusions

random = np.random.default_rng(0)
nodes, weights, declared = [], [], []
BATCH, TOKENS, HEADS, DIM = "batch", 16, 4, 8
STREAM = [BATCH, TOKENS, HEADS * DIM]


def constant(name, value):
    weights.append(numpy_helper.from_array(np.array(value), name))
    return name


def weight(name, *shape):
    return constant(name, (random.standard_normal(shape) * 0.1).astype(np.float32))


def op(kind, inputs, output, shape, type=TensorProto.FLOAT, **attributes):
    nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}_node", **attributes))
    declared.append(helper.make_tensor_value_info(output, type, shape))
    return output


def linear(x, name):
    product = op("MatMul", [x, weight(f"{name}.weight", STREAM[2], STREAM[2])], f"{name}.product", STREAM)
    return op("Add", [product, weight(f"{name}.bias", STREAM[2])], name, STREAM)


whole = dict(type=TensorProto.INT64)
shape = op("Shape", ["x"], "shape", [3], **whole)
batch = op("Gather", [shape, constant("first", [0])], "length", [1], axis=0, **whole)
apart = op("Concat", [batch, constant("heads", [TOKENS, HEADS, DIM])], "apart", [4], axis=0, **whole)
joined = op("Concat", [batch, constant("channels", STREAM[1:])], "joined", [3], axis=0, **whole)
scale = constant("scale", np.float32(DIM**-0.5))
x = "x"
for layer in ("0.", "1."):
    norm = op("LayerNormalization", [x, weight(f"{layer}gain", STREAM[2]), weight(f"{layer}shift", STREAM[2])], f"{layer}norm", STREAM, axis=-1)
    q, k, v = (
        op("Transpose", [op("Reshape", [linear(norm, layer + name), apart], f"{layer}{name}.apart", [BATCH, TOKENS, HEADS, DIM])],
           f"{layer}{name}.heads", [BATCH, HEADS, TOKENS, DIM], perm=[0, 2, 1, 3])
        for name in "qkv"
    )
    keys = op("Transpose", [k], f"{layer}keys", [BATCH, HEADS, DIM, TOKENS], perm=[0, 1, 3, 2])
    scores = op("Mul", [op("MatMul", [q, keys], f"{layer}products", [BATCH, HEADS, TOKENS, TOKENS]), scale], f"{layer}scores", [BATCH, HEADS, TOKENS, TOKENS])
    map = op("Softmax", [scores], f"{layer}map", [BATCH, HEADS, TOKENS, TOKENS], axis=-1)
    mixed = op("Transpose", [op("MatMul", [map, v], f"{layer}mixed", [BATCH, HEADS, TOKENS, DIM])], f"{layer}back", [BATCH, TOKENS, HEADS, DIM], perm=[0, 2, 1, 3])
    x = op("Add", [x, linear(op("Reshape", [mixed, joined], f"{layer}joined", STREAM), f"{layer}out")], f"{layer}stream", STREAM)
ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, STREAM)] for name in ("x", x)]
graph = helper.make_graph(nodes, "attentions", *ends, weights, value_info=declared[:-1])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
onnx.checker.check_model(model, full_check=True)
bare = onnx.ModelProto()
bare.CopyFrom(model)
del bare.graph.value_info[:]


def fused(model):
    made = ort_fusions.optimize_for_ort(ir.serde.deserialize_model(model))
    made = made[0] if isinstance(made, tuple) else made
    return collections.Counter(node.op_type for node in made.graph)["Attention"]


infer = onnx.shape_inference.infer_shapes
seen = {
    "declared sizes": fused(model), "no entries": fused(bare), "entries of infer_shapes": fused(infer(bare)),
    "entries of infer_shapes with data_prop": fused(infer(bare, data_prop=True)),
}
print(", ".join(f"{k} {v}" for k, v in seen.items()))
assert list(seen.values()) == [2, 2, 0, 2], "it behaves otherwise now"
PY
