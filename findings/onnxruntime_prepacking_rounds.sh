#!/usr/bin/env bash
# onnxruntime 1.32.0, processor: an int8 weight, DequantizeLinear along its columns, MatMul (no block size, float32 activations).
# Most would expect: the configuration entry session.disable_prepacking chooses between memory and speed, and no outputs change.
# Output seen: with prepacking, the default, activations are rounded to 8 bits in blocks, and outputs are off by 8e-3 of the largest,
# as float64 says; with session.disable_prepacking=1 they are not, and outputs are right to 4e-7, as with session.qdq_matmulnbits_accuracy_level=1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/python"
"$folder/python/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 numpy
cd "$folder"
"$folder/python/bin/python" - <<'PY'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ROWS, K, N = 16, 256, 256
rng = np.random.default_rng(0)
weight = rng.integers(-127, 128, (K, N)).astype(np.int8)
scale = rng.uniform(0.5, 1.5, N).astype(np.float32) / 127
x = rng.standard_normal((ROWS, K)).astype(np.float32)
nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1), helper.make_node("MatMul", ["x", "w"], ["y"])]
ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, K]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, N])]
weights = [numpy_helper.from_array(weight, "q"), numpy_helper.from_array(scale, "s")]
graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
expected = x.astype(np.float64) @ (weight.astype(np.float64) * scale.astype(np.float64))


def error(**entries):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for name, value in entries.items():
        options.add_session_config_entry("session." + name, value)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return float(np.abs(session.run(None, {"x": x})[0] - expected).max() / np.abs(expected).max())


found = {
    "default": error(),
    "disable_prepacking=1": error(disable_prepacking="1"),
    "qdq_matmulnbits_accuracy_level=1": error(qdq_matmulnbits_accuracy_level="1"),
}
for name, value in found.items():
    print(f"{name:40} largest error {value:.1e} of the largest output")
default, *others = found.values()
assert default > 1e-3 and max(others) < 1e-5, "that has changed"
PY
