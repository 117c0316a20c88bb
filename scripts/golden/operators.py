# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "onnx==1.23.2"]
# ///
"""Makes fixtures/operators: graphs of one operator each, of ONNX's newest operator sets, and what ONNX's own reference evaluator
computes with them.

    python scripts/golden/operators.py        needs onnx

The input of a graph is the operator's first operand, flat; the other operands stand in the graph.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

FOLDER = Path(__file__).resolve().parents[2] / "fixtures/operators"


def numbers(*shape, phase=0.0, scale=1.0):
    return (scale * np.sin(1.7 * np.arange(np.prod(shape)) + phase)).astype(np.float32).reshape(shape)


def attention(rank, **attributes):
    q, k = ((1, 6, 8), (1, 6, 4)) if rank == 3 else ((1, 4, 6, 2), (1, 2, 6, 2))
    return "Attention", 25, [numbers(*q), numbers(*k, phase=1), numbers(*k, phase=2)], attributes, 1


def linear(rule, decay=None, beta=None, past=False):
    operands = [numbers(1, 5, 8), numbers(1, 5, 4, phase=1), numbers(1, 5, 6, phase=2)]
    operands.append(numbers(1, 2, 2, 3, phase=3) if past else None)
    operands.append(numbers(1, 5, decay, phase=4, scale=0.5) if decay else None)
    operands.append(np.abs(numbers(1, 5, beta, phase=5)) if beta else None)
    return "LinearAttention", 27, operands, {"q_num_heads": 4, "kv_num_heads": 2, "update_rule": rule}, 2


def causal(kernel, past=False, **attributes):
    operands = [numbers(2, 3, 7), numbers(3, 1, kernel, phase=1), numbers(3, phase=2)]
    operands.append(numbers(2, 3, kernel - 1, phase=3) if past else None)
    return "CausalConvWithState", 27, operands, attributes, 2


CASES = {
    "swiglu": ("SwiGLU", 28, [numbers(2, 3, 4), numbers(2, 3, 4, phase=1)], {}, 1),
    "swiglu-alpha": ("SwiGLU", 28, [numbers(2, 3, 4), numbers(2, 3, 4, phase=1)], {"alpha": 1.7}, 1),
    "cumprod": ("CumProd", 26, [numbers(2, 5, phase=1), np.array(1, np.int64)], {}, 1),
    "cumprod-exclusive": ("CumProd", 26, [numbers(2, 5, 3, phase=1), np.array(-2, np.int32)], {"exclusive": 1}, 1),
    "cumprod-reverse": ("CumProd", 26, [numbers(2, 5, phase=1), np.array(1, np.int64)], {"reverse": 1, "exclusive": 1}, 1),
    "bitcast": ("BitCast", 26, [numbers(2, 3)], {"to": TensorProto.INT32}, 1),
    "causal-conv": causal(3),
    "causal-conv-state": causal(4, past=True, activation="silu"),
    "linear-attention": linear("linear"),
    "linear-attention-gated": linear("gated", decay=4),
    "linear-attention-delta": linear("delta", beta=2, past=True),
    "linear-attention-gated-delta": linear("gated_delta", decay=2, beta=1, past=True),
    "attention-window": attention(4, left_window_size=2, right_window_size=1),
    "attention-left": attention(3, left_window_size=1, is_causal=1, q_num_heads=4, kv_num_heads=2),
    "einsum": ("Einsum", 28, [numbers(2, 3, 4), numbers(2, 5, 4, phase=1)], {"equation": "...qd,...kd->...qk"}, 1),
}


def model(op, opset, operands, attributes, outputs):
    x, rest = operands[0], operands[1:]
    while rest and rest[-1] is None:
        rest.pop()
    tensors = [numpy_helper.from_array(np.array(x.shape, np.int64), "shape")]
    tensors += [numpy_helper.from_array(t, f"operand_{j}") for j, t in enumerate(rest, 1) if t is not None]
    names = ["operand_0"] + [f"operand_{j}" if t is not None else "" for j, t in enumerate(rest, 1)]
    made = [f"y_{j}" for j in range(outputs)]
    kind = TensorProto.INT32 if op == "BitCast" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["operand_0"]), helper.make_node(op, names, made, **attributes)],
        op,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, x.size, 1, 1])],
        [helper.make_tensor_value_info(y, kind, None) for y in made],
        tensors,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=13)
    made.producer_name = ""
    return onnx.shape_inference.infer_shapes(made, strict_mode=True)


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    golden = {}
    for name, (op, opset, operands, attributes, outputs) in CASES.items():
        one = model(op, opset, operands, attributes, outputs)
        onnx.checker.check_model(one)
        onnx.save(one, FOLDER / f"{name}.onnx")
        x = operands[0].reshape(1, -1, 1, 1)
        found = ReferenceEvaluator(one).run(None, {"x": x})
        golden[name] = {
            "x": [float(v) for v in x.ravel()],
            "outputs": [{"shape": list(y.shape), "values": [float(v) for v in y.ravel()]} for y in found],
        }
    lines = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in golden.items()]
    (FOLDER / "golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
