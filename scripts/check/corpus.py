# /// script
# requires-python = ">=3.10"
# dependencies = ["onnx==1.23.2", "onnxruntime==1.32.0"]
# ///
"""Checks that Offshoot reads and writes the ONNX backend test corpus without changing a model.

    cargo build --example rewrite && python scripts/check/corpus.py [--onnx-runtime] [FOLDER ...]

The corpus is what lies in the folder backend/test/data of the Python package onnx, and the models of its node tests, which newer
packages keep as code: those are made first. Every model is read and written by target/debug/examples/rewrite and compared: the
protobuf messages must be equal, every node, attribute, tensor and metadata entry. With --onnx-runtime, what ONNX Runtime loads
before must load after. Further folders are checked in the same way. Exit code 1 where a model changed or was refused.
Needs onnx, numpy and pillow, and onnxruntime for --onnx-runtime. Seen with onnx 1.23.2: 2033 models.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import onnx

warnings.filterwarnings("ignore")  # node tests divide by zero on purpose


def node_tests(folder):
    """Writes the models of onnx's node tests."""
    from onnx.backend.test.case.node import collect_testcases

    count = 0
    for case in collect_testcases(None):
        if case.model is None:
            continue
        (folder / f"{case.name}.onnx").write_bytes(case.model.SerializeToString())
        count += 1
    return count


def loads(path):
    """What ONNX Runtime says of a model: nothing where it loads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return str(error).splitlines()[0]
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--rewrite", type=Path, default=Path("target/debug/examples/rewrite"))
    parser.add_argument("--onnx-runtime", action="store_true")
    args = parser.parse_args()

    data = Path(onnx.__file__).parent / "backend/test/data"
    bad = []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        made = scratch / "node-tests"
        made.mkdir()
        print(f"onnx {onnx.__version__}: {node_tests(made)} models of node tests", flush=True)
        for n, folder in enumerate([data, made, *args.folders]):
            out = scratch / f"out{n}"
            out.mkdir()
            run = subprocess.run([args.rewrite, folder, out], stdout=subprocess.PIPE, text=True)
            bad += [f"refused: {line}" for line in run.stdout.splitlines()]
            equal = loaded = total = 0
            for path in sorted(folder.rglob("*.onnx")):
                total += 1
                after = out / path.relative_to(folder)
                if not after.exists():
                    continue
                if onnx.load(path, load_external_data=False) != onnx.load(after, load_external_data=False):
                    bad.append(f"changed: {path}")
                    continue
                equal += 1
                if args.onnx_runtime and loads(path) is None:
                    why = loads(after)
                    if why is None:
                        loaded += 1
                    else:
                        bad.append(f"no longer loads: {path}: {why}")
            text = f"{folder.name}: {equal} of {total} models equal"
            print(text + (f", {loaded} load in ONNX Runtime before and after" if args.onnx_runtime else ""), flush=True)
    for line in bad:
        print(line)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
