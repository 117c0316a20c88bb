#!/usr/bin/env bash
# onnxscript 0.7.2 (onnx 1.23.2), optimizer.optimize(), which torch.onnx.export(dynamo=True) of torch 2.15 calls: a bias of zeros goes.
# Most would expect: constants are folded, but a model keeps its parameters; and what happens to one linear layer happens to all.
# Output seen: Gemm and Conv lose an all-zero bias (3 inputs become 2), MatMul + Add keep it. So a fresh classifier, whose bias begins
# at zero, has its bias on inputs of three dimensions and none on inputs of two, and training from the file never learns one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/python"
"$folder/python/bin/pip" install --quiet --disable-pip-version-check onnxscript==0.7.2 onnx==1.23.2 numpy
"$folder/python/bin/python" - <<'PY'
import numpy as np
import onnx
import onnxscript
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)


def biases(operator, zero):
    """The initializers that are left of a layer with weights `w` and bias `b`."""
    bias = np.zeros(3, np.float32) if zero else random.normal(size=3).astype(np.float32)
    shapes = {"Gemm": ([6, 3], [2, 6], [2, 3]), "Conv": ([3, 6, 2, 2], [1, 6, 4, 4], [1, 3, 3, 3]), "MatMul + Add": ([6, 3], [2, 6], [2, 3])}
    weights, given, result = shapes[operator]
    if operator == "MatMul + Add":
        nodes = [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("Add", ["t", "b"], ["y"])]
    else:
        nodes = [helper.make_node(operator, ["x", "w", "b"], ["y"])]
    tensors = [numpy_helper.from_array(random.normal(size=weights).astype(np.float32), "w"), numpy_helper.from_array(bias, "b")]
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s)] for n, s in (("x", given), ("y", result))]
    graph = helper.make_graph(nodes, "layer", *ends, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return sorted(i.name for i in onnxscript.optimizer.optimize(model).graph.initializer)


seen = {(operator, zero): biases(operator, zero) for operator in ("Gemm", "Conv", "MatMul + Add") for zero in (False, True)}
for (operator, zero), left in seen.items():
    print(f"{operator:12} bias of {'zeros  ' if zero else 'numbers'} -> parameters {left}")
for (operator, zero), left in seen.items():
    assert left == (["w"] if zero and operator != "MatMul + Add" else ["b", "w"]), (operator, zero, left)
PY
