# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Compares what `offshoot` computes on a GPU with what it computes on the processor, model by model.

    python3 scripts/check/compare_devices.py OFFSHOOT LIBRARY [MODEL...] [--jobs 8] [--precision bf16]

OFFSHOOT is the binary, LIBRARY the shared library of ONNX Runtime with CUDA; without MODELs, the bundled ones and all fixtures.
Each model goes through `density`, `shrink --to 75%` and three updates of `tune` with a new classifier of ten classes, on the CPU and
on the device. A command that fails on the CPU, because the model has nothing of what it wants, is counted and left out; one that fails
on the device alone, or whose numbers differ by more than the tolerance, is printed and makes the exit code 1. Prints a line a
command with the largest relative difference. With --precision the device tunes in half precision. Needs only the standard library.
"""

import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

IMAGES = "fixtures/fashion-images.idx3-ubyte"
# Sums in another order. What is chosen by such numbers, and what is learned from them, moves further than they do.
TOLERANCE = {"density": 1e-3, "shrink": 2e-2, "tune": 1e-2}
# Losses in half precision.
HALF_TOLERANCE = 5e-2
# Not computed from the model's outputs.
UNCOMPARED = {"seconds", "images_per_second", "peak_memory", "path", "time", "latency"}


def numbers(value, key=""):
    """All numbers of a JSON value, with their places, up to those that differ from run to run."""
    if isinstance(value, dict):
        for k, v in value.items():
            if not any(u in k for u in UNCOMPARED):
                yield from numbers(v, f"{key}.{k}")
    elif isinstance(value, list):
        for i, v in enumerate(value):
            yield from numbers(v, f"{key}[{i}]")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, value


def run(args, command, model, device):
    """The numbers that a command gives, or what it says where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        return run_in(folder, args, command, model, device)


def run_in(folder, args, command, model, device):
    metrics, output = os.path.join(folder, "metrics.jsonl"), os.path.join(folder, "output.onnx")
    own = {
        "density": ["--images", IMAGES, "--limit", "8", "--json"],
        "shrink": ["--images", IMAGES, "--limit", "16", "--crops", "16", "--to", "75%", "--json", "-o", output],
        "tune": ["--data", IMAGES, "--batch-size", "8", "--steps", "3", "--epochs", "1", "--val-split", "0", "--augment", "none", "--classes", "10",
                 "--lr", "1e-4", "--warmup", "0", "--metrics", metrics, "-o", output],
    }[command]
    if command == "tune" and device == args.device and args.precision:
        own += ["--precision", args.precision]
    line = [args.offshoot, command, model, *own, "--runtime", "onnxruntime", "--onnxruntime", args.library, "--device", device, "--threads", "2"]
    try:
        process = subprocess.run(line, capture_output=True, text=True, timeout=args.timeout)
    except subprocess.TimeoutExpired:
        return None, f"took more than {args.timeout} s"
    if process.returncode != 0:
        said = [l for l in process.stderr.strip().splitlines() if "error" in l or "hint" in l] or process.stderr.strip().splitlines()
        said = " ".join(said)
        # The library says the cause last.
        said = said if len(said) <= 1000 else f"{said[:300]} ... {said[-700:]}"
        return None, f"exit code {process.returncode}: {said}"
    if command == "tune":
        with open(metrics) as lines:
            return [("loss", s["loss"]) for s in map(json.loads, lines) if "loss" in s], None
    return list(numbers(json.loads(process.stdout))), None


def compare(args, model, command):
    (here, why), (there, error) = (run(args, command, model, d) for d in ("cpu", args.device))
    if here is None and there is None:
        return "left out", why
    if there is None and args.precision and "has no bfloat16" in error:
        return "left out", error
    if here is None or there is None:
        return "FAILED", f"on the {'CPU' if here is None else 'device'} alone: {why or error}"
    if [k for k, _ in here] != [k for k, _ in there]:
        return "FAILED", "other things are measured"
    worst, place = max(((abs(a - b) / max(abs(a), abs(b), 1e-3), k) for (k, a), (_, b) in zip(here, there)), default=(0.0, ""))
    tolerance = HALF_TOLERANCE if args.precision and command == "tune" else TOLERANCE[command]
    return "ok" if worst <= tolerance else "DIFFERS", f"{len(here)} numbers, {worst:.1e} {place if worst else ''}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("offshoot", metavar="OFFSHOOT")
    parser.add_argument("library", metavar="LIBRARY")
    parser.add_argument("models", metavar="MODEL", nargs="*")
    parser.add_argument("--commands", nargs="+", choices=TOLERANCE, default=list(TOLERANCE))
    parser.add_argument("--precision", choices=["fp16", "bf16"], help="what the device tunes in")
    parser.add_argument("--jobs", type=int, default=8, help="models at a time")
    parser.add_argument("--timeout", type=int, default=120, help="seconds for a command")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu tries the script itself")
    args = parser.parse_args()
    models = args.models or sorted(glob.glob("models/*.onnx") + glob.glob("fixtures/**/*.onnx", recursive=True))

    counts = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        work = [(m, c) for m in models for c in args.commands]
        for (model, command), (verdict, text) in zip(work, pool.map(lambda w: compare(args, *w), work)):
            counts[command, verdict] = counts.get((command, verdict), 0) + 1
            print(f"{verdict:8} {command:7} {model}: {text}", flush=True)
    for (command, verdict), n in sorted(counts.items()):
        print(f"{command} {verdict}: {n}")
    sys.exit(any(verdict in ("FAILED", "DIFFERS") for _, verdict in counts))


if __name__ == "__main__":
    main()
