# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy", "onnx==1.23.2", "onnxruntime==1.32.0"]
# ///
"""Checks that children are taken wherever their ancestors are: by ONNX's checkers, ONNX Runtime and onnxruntime-web.

    cargo build && python scripts/check/children.py [--offshoot BINARY] [--web FOLDER] [--jobs 2] [NAME ...]

Makes children of the fixtures under fixtures/graphs, or of those whose names hold a NAME: half the heads and half the FFN, the same with
folded constants, one layer, float16, and weights in int8 in both forms. Each is held to what its ancestor passes: `onnx.checker` with
full_check, strict shape inference with data propagation, a plain session of ONNX Runtime with the batch that the file declares, 3 where it
is open, and onnxruntime-web under node, whose outputs equal ONNX Runtime's to 1e-3 of their largest (float16: 1e-2; int8: 1e-1). FOLDER is where npm has
put onnxruntime-web. Exit code 1 where a child fails what its ancestor passes.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

FORMS = {
    "half": ["--heads", "50%", "--ffn-width", "50%"],
    "folded": ["--heads", "50%", "--ffn-width", "50%", "--fold"],
    "layers": ["--layers", "1"],
    "fp16": ["--dtype", "fp16"],
    "int8": ["--dtype", "int8"],
    "int8-rows": ["--dtype", "int8-rows"],
}
# How far two engines may be apart. Of int8 each rounds activations in its own way, and one flipped rounding spreads.
LIMITS = {".fp16": 1e-2, ".int8": 1e-1, ".int8-rows": 1e-1}
WEB = Path(__file__).with_name("web.mjs")
OPEN = 3  # the batch of a model that leaves it open


def grown(offshoot, model, form, child):
    """A child, or why there is none."""
    command = [offshoot, "grow", model, "--no-images", "--no-verify", *FORMS[form], "-o", child]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1:]


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def fed(model):
    """Numbers for the inputs of a model: pictures, and ones for anything else."""
    random = np.random.default_rng(0)
    taken = {}
    given = {t.name for t in model.graph.initializer}
    for value in (v for v in model.graph.input if v.name not in given):
        kind = value.type.tensor_type
        shape = [d.dim_value or (OPEN if i == 0 else 32) for i, d in enumerate(kind.shape.dim)]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        noise = random.standard_normal(shape) if dtype.kind == "f" else np.ones(shape)
        taken[value.name] = noise.astype(dtype)
    return taken


def checked(path):
    """What a model fails, by check, and what ONNX Runtime makes of it."""
    model = onnx.load(path)
    failed, outputs, taken = {}, None, fed(model)

    def attempt(what, check):
        try:
            return check()
        except Exception as error:
            failed[what] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"

    attempt("checker", lambda: onnx.checker.check_model(model, full_check=True))
    attempt("shapes", lambda: onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True))
    outputs = attempt("ONNX Runtime", lambda: session(path).run(None, taken))
    return failed, outputs, taken


def apart(paths, work, jobs):
    """What each model [fails and makes](checked), each in a process of its own: a model may end the process that opens it."""
    running, results = {}, {}

    def wait():
        pid, status = os.wait()
        path, file = running.pop(pid)
        if status == 0:
            results[path] = pickle.loads(file.read_bytes())
        else:
            results[path] = {"ONNX Runtime": f"ends its process ({os.waitstatus_to_exitcode(status)})"}, None, {}

    for at, path in enumerate(paths):
        file = work / f"{at}.pickle"
        pid = os.fork()
        if pid == 0:
            file.write_bytes(pickle.dumps(checked(path)))
            os._exit(0)
        running[pid] = path, file
        while len(running) >= jobs:
            wait()
    while running:
        wait()
    return [(path, *results[path]) for path in paths]


def in_browser(folder, made, work):
    """What onnxruntime-web makes of each model: its outputs, or what it says."""
    jobs = []
    for at, (path, _, outputs, taken) in enumerate(made):
        if outputs is None:
            continue
        inputs = []
        for n, (name, array) in enumerate(taken.items()):
            file = work / f"{at}.{n}.in"
            file.write_bytes(np.ascontiguousarray(array).tobytes())
            inputs.append({"name": name, "type": str(array.dtype), "dims": array.shape, "file": str(file)})
        jobs.append({"model": str(path), "inputs": inputs, "outputs": str(work / str(at))})
    listed = work / "jobs.json"
    listed.write_text(json.dumps(jobs))
    done = subprocess.run(["node", str(WEB), str(folder), str(listed)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"node ended with {done.returncode}: {done.stderr.strip()[-1000:]}")
    found = {}
    for job, line in zip(jobs, map(json.loads, done.stdout.splitlines()), strict=True):
        found[job["model"]] = line.get("error") or [
            np.fromfile(f"{job['outputs']}.{n}.bin", o["type"]).reshape(o["dims"]) for n, o in enumerate(line["outputs"])
        ]
    return found


def distance(found, expected):
    """The largest difference of two lists of outputs, as a share of the largest number; infinite where their shapes differ."""
    if len(found) != len(expected) or any(a.shape != b.shape for a, b in zip(found, expected)):
        return np.inf
    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(found, expected)]
    return max((np.abs(a - b).max() / max(np.abs(b).max(), 1e-9) for a, b in pairs if a.size), default=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--offshoot", type=Path, default=Path("target/debug/offshoot"))
    parser.add_argument("--web", type=Path, default=Path(".cache/web"))
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    ancestors = [p for p in sorted(Path("fixtures/graphs").glob("*.onnx")) if not args.names or any(n in p.stem for n in args.names)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        work = Path(folder)
        wanted = [(a, form, work / f"{a.stem}.{form}.onnx") for a in ancestors for form in FORMS]
        said = list(pool.map(lambda w: grown(args.offshoot, *w), wanted))
        pool.shutdown()
        children = [(a, form, child) for (a, form, child), why in zip(wanted, said) if why is None]
        paths = [*ancestors, *(child for *_, child in children)]
        made = apart(paths, work, args.jobs)
        web = in_browser(args.web.resolve(), made, work)
        failed = {}
        for path, faults, outputs, _ in made:
            failed[path] = faults
            if outputs is None:
                continue
            of_web = web[str(path)]
            limit = LIMITS.get(path.suffixes[0], 1e-3)
            if isinstance(of_web, str):
                faults["onnxruntime-web"] = of_web
            elif (off := distance(of_web, outputs)) > limit:
                faults["onnxruntime-web"] = f"{off:.1e} off"
    wrong = [
        f"{a.stem}, {form}: {check}: {why}"
        for a, form, child in children
        for check, why in failed[child].items() if check not in failed[a]
    ]
    print("\n".join(wrong))
    for ancestor in ancestors:
        for check, why in failed[ancestor].items():
            print(f"{ancestor.stem} itself fails: {check}: {why}")
    print(f"{len(children)} children of {len(ancestors)} models, {len(wanted) - len(children)} refused: {len(wrong)} fail what their ancestors pass")
    return bool(wrong) or not children


if __name__ == "__main__":
    sys.exit(main())
