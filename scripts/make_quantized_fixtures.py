"""Makes fixtures/quantized/*.onnx and weights.json: fixtures/dialects/separate.onnx as ONNX Runtime's quantiser writes it in three forms.

    python scripts/make_quantized_fixtures.py

`dynamic` has MatMulInteger behind DynamicQuantizeLinear, `qdq` has QuantizeLinear and DequantizeLinear around every product, `operators` has
QLinearMatMul and QLinearConv. weights.json holds, for each file, the sum and the sum of squares of every weight matrix of two axes that is
quantised, worked out here as (integer - zero point) x scale. Needs onnx, onnxruntime, numpy.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
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


def main():
    FOLDER.mkdir(exist_ok=True)
    quantize_dynamic(SOURCE, FOLDER / "dynamic.onnx", weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"])
    for name, form in (("qdq", QuantFormat.QDQ), ("operators", QuantFormat.QOperator)):
        quantize_static(SOURCE, FOLDER / f"{name}.onnx", Images(), quant_format=form, weight_type=QuantType.QInt8, per_channel=name == "qdq",
                        op_types_to_quantize=["MatMul", "Conv"])
    truth = {name: moments(FOLDER / f"{name}.onnx") for name in ("dynamic", "qdq", "operators")}
    (FOLDER / "weights.json").write_text(json.dumps(truth) + "\n")
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.name:16} {path.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
