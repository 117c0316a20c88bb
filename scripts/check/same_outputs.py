# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Holds a refactoring to what it promises: two builds of `offshoot` do the same, byte for byte, on every fixture.

    python3 scripts/check/same_outputs.py OLD_BINARY NEW_BINARY [--only FIXTURE] [--runtime tract|onnxruntime] [--jobs 2] [--hashes FOLDER]

Each command runs on one thread, on tract and on ONNX Runtime (from .onnxruntime or ORT_DYLIB_PATH), in an empty folder of its own: `inspect`, `density`,
`condense`, `grow` in eight shapes and with its other options, `shrink --to 75%`, a step graph, three updates of `tune`, and `eval`. Compared are the
exit code, stdout, stderr and every file. A command that both builds refuse in the same words is the same. What changes from run to run is
left out: `IGNORED` lists the fields of JSON, `MEASURED` the words of messages.

The outputs of OLD_BINARY are kept as hashes under FOLDER (target/same-outputs), by the hash of the binary: a later call runs the new one alone.
Exits with 1 where something differs, and says which command, which file, and, once both have run, how.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGES = LABELLED = "fixtures/fashion-images.idx3-ubyte"

# Fields of JSON that hold versions, times and rates.
IGNORED = {
    "version", "offshoot", "runtime_version", "library", "seconds", "time", "started", "date", "latency", "latency_ms", "milliseconds", "elapsed", "images_per_second",
    "updates_per_second", "rate_images", "peak_memory", "memory", "threads",
}
# Words of messages that hold the same, and the folder of the run.
MEASURED = [
    (re.compile(r"\b\d+(\.\d+)?(e-?\d+)? ?(ms|s|min|h)\b"), "TIME"),
    (re.compile(r"\b\d+(\.\d+)? (images|updates|samples)/s\b"), "RATE"),
    (re.compile(r"\b\d+(\.\d+)? ms an image, the ancestor \d+(\.\d+)?"), "LATENCY"),
    # ONNX Runtime's log.
    (re.compile(r"(?<!\d)\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+\b"), "CLOCK"),
    (re.compile(r"\bTIME an image, the ancestor \d+(\.\d+)?"), "LATENCY"),
]


def fixtures():
    """Every model of fixtures/ and models/, by path."""
    return sorted(
        path.relative_to(ROOT).as_posix()
        for folder in ("fixtures", "models")
        for path in (ROOT / folder).rglob("*.onnx")
    )


def commands(model, runtime):
    """Name and arguments of each command on one model. `OUT` stands for the folder of the run."""
    here = ["--runtime", runtime, "--threads", "1"]
    first = runtime == "tract"
    if first:
        # What runs nothing is compared once.
        yield "inspect", ["inspect", model, "--json"]
        for name, flags in {
            "grow": [],
            "grow-heads": ["--heads", "1"],
            "grow-layers": ["--layers", "1"],
            "grow-ffn": ["--ffn-width", "50%"],
            "grow-width": ["--width", "50%"],
            "grow-wider": ["--heads", "8", "--ffn-width", "150%"],
            "grow-classes": ["--classes", "5"],
            "grow-all": ["--heads", "2", "--layers", "last:1", "--ffn-width", "24"],
            "grow-deeper": ["--layers", "4"],
            "scratch": ["--init", "from-scratch", "--seed", "3"],
            "finetune": ["--init", "pretrain-finetune", "--heads", "1", "--seed", "3"],
            "heuristic": ["--init", "heuristic-learngene", "--seed", "3"],
            "auto": ["--init", "auto-learngene", "--seed", "3"],
            "transformation": ["--init", "weight-transformation", "--seed", "3"],
            "selection": ["--init", "weight-selection", "--heads", "1", "--seed", "3"],
            "expansion": ["--init", "linear-expansion", "--seed", "3"],
            "frequency": ["--init", "frequency", "--heads", "1", "--seed", "3"],
            "fold": ["--fold"],
            "fp16": ["--dtype", "fp16"],
            "dequantize": ["--dequantize", "--heads", "1"],
            "image-size": ["--image-size", "64"],
        }.items():
            yield name, ["grow", model, "--no-images", *flags, "-o", "OUT/child.onnx"]
        yield "step", ["tune", model, "--data", LABELLED, "--classes", "10", "--emit-step", "OUT/step.onnx", "--batch-size", "2"]
    data = ["--data", LABELLED]
    yield "density", ["density", model, "--images", IMAGES, "--json", *here]
    yield "condense", ["condense", model, "--images", IMAGES, "-o", "OUT/gene.onnx", *here]
    yield "shrink", ["shrink", model, "--images", IMAGES, "--to", "75%", "-o", "OUT/small.onnx", *here]
    yield "eval", ["eval", model, *data, "--json", *here]
    yield "tune", ["tune", model, *data, "--classes", "10", "--steps", "3", "--batch-size", "4", "--lr", "1e-4", "--seed", "1", "-o", "OUT/tuned.onnx",
                   "--metrics", "OUT/metrics.jsonl", *here]
    yield "tied", ["grow", model, "--images", IMAGES, "--tied", "-o", "OUT/tied.onnx", *here]


def strip(value):
    """JSON without the fields that change from run to run."""
    if isinstance(value, dict):
        return {key: strip(inner) for key, inner in value.items() if key not in IGNORED}
    return [strip(inner) for inner in value] if isinstance(value, list) else value


def settled(data, folder):
    """Text without what changes from run to run; other bytes as they are."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data
    try:
        lines = [json.loads(line) for line in text.splitlines() if line.strip()] if "\n{" in text[:-1] else [json.loads(text)]
        return json.dumps([strip(line) for line in lines]).replace(str(folder), "OUT").encode()
    except ValueError:
        text = text.replace(str(folder), "OUT")
        for pattern, word in MEASURED:
            text = pattern.sub(word, text)
        return text.encode()


def run(binary, arguments, environment):
    """What one command leaves: exit code, stdout, stderr, files; as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [binary, *(argument.replace("OUT", folder) for argument in arguments)], cwd=ROOT, env=environment, capture_output=True,
        )
        left = {
            "exit code": str(result.returncode).encode(),
            "stdout": settled(result.stdout, folder),
            "stderr": settled(result.stderr, folder),
        }
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                data = path.read_bytes()
                left[path.relative_to(folder).as_posix()] = data if path.suffix == ".onnx" else settled(data, folder)
        return left


def hashes(left):
    return {name: hashlib.sha256(data).hexdigest() for name, data in left.items()}


def difference(old, new):
    """How two texts differ, in a few lines."""
    import difflib

    try:
        old, new = old.decode().splitlines(), new.decode().splitlines()
    except UnicodeDecodeError:
        return f"{len(old)} and {len(new)} bytes"
    return "\n".join(list(difflib.unified_diff(old, new, "old", "new", lineterm="", n=0))[2:12])[:2000]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", default="", help="models whose path holds this")
    parser.add_argument("--command", default="", help="commands whose name holds this")
    parser.add_argument("--runtime", choices=["tract", "onnxruntime"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--hashes", type=Path, default=ROOT / "target/same-outputs")
    options = parser.parse_args()
    environment = {**os.environ, "NO_COLOR": "1", "ORT_DISABLE_TELEMETRY": "1"}
    environment.setdefault("ORT_DYLIB_PATH", str(ROOT / ".onnxruntime/libonnxruntime.so"))
    if not Path(environment["ORT_DYLIB_PATH"]).exists():
        sys.exit("ONNX Runtime's library is missing: scripts/fetch/onnxruntime.sh .onnxruntime")
    options.hashes.mkdir(parents=True, exist_ok=True)
    # Both run under one name, since messages of usage repeat it.
    with tempfile.TemporaryDirectory() as folder:
        binaries = []
        for name, binary in ("old", options.old), ("new", options.new):
            (Path(folder) / name).mkdir()
            binaries.append(shutil.copy(binary, Path(folder) / name / "offshoot"))
        old, new = binaries
        kept_at = options.hashes / f"{hashlib.sha256(Path(old).read_bytes()).hexdigest()[:16]}.jsonl"
        kept = {}
        if kept_at.exists():
            kept = {tuple(row["at"]): row["hashes"] for row in map(json.loads, kept_at.read_text().splitlines())}
        jobs = [
            (model, runtime, name, arguments)
            for model in fixtures() if options.only in model
            for runtime in ("tract", "onnxruntime") if options.runtime in (None, runtime)
            for name, arguments in commands(model, runtime) if options.command in name
        ]
        if not jobs:
            sys.exit("no fixture and command of these names")

        def check(job):
            model, runtime, name, arguments = job
            at = (model, runtime, *arguments)
            given = None
            expected = kept.get(at)
            if expected is None:
                given = run(old, arguments, environment)
                expected = hashes(given)
            found = run(new, arguments, environment)
            lines = []
            if hashes(found) != expected:
                given = given or run(old, arguments, environment)
                for part in sorted({*given, *found}):
                    if given.get(part) != found.get(part):
                        lines.append(f"{model} {runtime} {name}: {part} differs\n{difference(given.get(part, b''), found.get(part, b''))}")
            return at, expected, lines, found["exit code"] == b"0"

        differing = done = 0
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool, open(kept_at, "a") as keep:
            for at, expected, lines, succeeded in pool.map(check, jobs):
                if at not in kept:
                    keep.write(json.dumps({"at": at, "hashes": expected}) + "\n")
                    keep.flush()
                done += succeeded
                differing += bool(lines)
                for line in lines:
                    print(line, flush=True)
    print(f"{len(jobs)} commands on {len({job[0] for job in jobs})} models, {done} of them successful: {differing} differ")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
