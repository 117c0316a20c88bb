"""Makes fixtures/quantized/*.onnx and weights.json: fixtures/dialects/separate.onnx as ONNX Runtime's quantiser writes it in four forms, and
with a scale for each block of eight.

    python scripts/make_quantized_fixtures.py

`dynamic` has MatMulInteger behind DynamicQuantizeLinear, `qdq` has QuantizeLinear and DequantizeLinear around every product, `operators` has
QLinearMatMul and QLinearConv, `all-operators` everything that the quantiser writes by its defaults (QGemm, QLinearAdd, QLinearSoftmax and
others), `blocks` DequantizeLinear of operator set 21 with `block_size`. weights.json holds, for each file, the sum and the sum of squares of every weight matrix of two axes that is
quantised, worked out here as (integer - zero point) x scale. Needs onnx, onnxruntime, numpy.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

SOURCE, FOLDER = Path("fixtures/dialects/separate.onnx"), Path("fixtures/quantized")


class Images(CalibrationDataReader):
    def __init__(self):
        random = np.random.default_rng(1)
        self.batches = iter([{"input": random.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(16)])

    def get_next(self):
        return next(self.batches, None)


def moments(path):
    """Of every quantised matrix: the sum and the sum of squares of what it stands for."""
    graph = onnx.load(path).graph
    held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in graph.initializer}
    found = []
    for name, q in held.items():
        if q.ndim == 2 and name.endswith("_quantized"):
            stem = name.removesuffix("_quantized")
            w = (q - held[f"{stem}_zero_point"]) * held[f"{stem}_scale"]
            found.append([float(f"{w.sum():.6e}"), float(f"{(w**2).sum():.6e}")])
    return sorted(found, key=lambda m: m[1])


def blocks(path, size=8):
    """Matrices as int8 with a scale for each block of `size` elements of a column, and the moments of what they stand for."""
    model = version_converter.convert_version(onnx.load(SOURCE), 21)
    graph = model.graph
    held = {t.name: t for t in graph.initializer}
    used = [n.input[1] for n in graph.node if n.op_type == "MatMul" and n.input[1] in held]
    found, nodes = [], []
    for name in dict.fromkeys(used):
        w = numpy_helper.to_array(held[name])
        scale = np.abs(w.reshape(-1, size, w.shape[1])).max(1) / np.float32(127)
        spread = np.repeat(scale, size, 0)
        q = np.clip(np.round(w / spread), -127, 127).astype(np.int8)
        graph.initializer.remove(held[name])
        graph.initializer.extend([numpy_helper.from_array(q, f"{name}_q"), numpy_helper.from_array(scale.astype(np.float32), f"{name}_s")])
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s"], [name], axis=0, block_size=size))
        stands = q.astype(np.float64) * spread
        found.append([float(f"{stands.sum():.6e}"), float(f"{(stands**2).sum():.6e}")])
    nodes.extend(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return sorted(found, key=lambda m: m[1])


def main():
    FOLDER.mkdir(exist_ok=True)
    quantize_dynamic(SOURCE, FOLDER / "dynamic.onnx", weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"])
    for name, form in (("qdq", QuantFormat.QDQ), ("operators", QuantFormat.QOperator)):
        quantize_static(SOURCE, FOLDER / f"{name}.onnx", Images(), quant_format=form, weight_type=QuantType.QInt8, per_channel=name == "qdq",
                        op_types_to_quantize=["MatMul", "Conv"])
    quantize_static(SOURCE, FOLDER / "all-operators.onnx", Images(), quant_format=QuantFormat.QOperator)
    truth = {name: moments(FOLDER / f"{name}.onnx") for name in ("dynamic", "qdq", "operators", "all-operators")}
    truth["blocks"] = blocks(FOLDER / "blocks.onnx")
    (FOLDER / "weights.json").write_text(json.dumps(truth) + "\n")
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.name:16} {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
