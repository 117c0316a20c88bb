# /// script
# requires-python = ">=3.10"
# dependencies = ["onnx==1.23.2"]
# ///
"""Checks children in half precision with ONNX's own checker and full shape inference: `grow --dtype` on every fixture.

    python scripts/check/element_types.py [target/debug/offshoot]

Needs onnx. Types that disagree with an operator's schema are errors of the checker's shape inference.
"""

import glob
import subprocess
import sys
import tempfile
from collections import Counter

import onnx

OFFSHOOT = sys.argv[1] if len(sys.argv) > 1 else "target/debug/offshoot"


def check(path, dtype, folder):
    child = f"{folder}/child.onnx"
    command = [OFFSHOOT, "grow", path, "--no-images", "--dtype", dtype, "--force", "-o", child]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return "refused" if "has no bfloat16" in done.stderr else done.stderr.strip().splitlines()[0]
    model = onnx.load(child)
    foreign = {n.domain for n in model.graph.node} - {"", "ai.onnx"} or any(
        n.op_type == "SimplifiedLayerNormalization" for n in model.graph.node
    )
    if foreign:
        return "left out: operators of ONNX Runtime"
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    halves = sum(t.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) for t in model.graph.initializer)
    return "valid" if halves else "nothing is half"


def main():
    wrong = 0
    paths = sorted(glob.glob("fixtures/graphs/*.onnx") + glob.glob("fixtures/dialects/*.onnx"))
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("fp16", "bf16"):
            results = Counter()
            for path in paths + ["models/fashion-vit.onnx"]:
                result = check(path, dtype, folder)
                results[result if result in ("valid", "refused") or result.startswith("left out") else "wrong"] += 1
                if result not in ("valid", "refused") and not result.startswith("left out"):
                    wrong += 1
                    print(f"{path} {dtype}: {result}")
            print(dtype, dict(results))
    sys.exit(wrong > 0)


main()
