# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy", "onnx==1.23.2"]
# ///
"""Times children beside their ancestor in every engine, and writes the second table of docs/deployment.md.

    OMP_NUM_THREADS=1 python scripts/studies/export_deit.py small && scripts/fetch/models.sh && python scripts/lib/engines.py install
    python scripts/bench/latency.py [--engine NAME ...] [--model FILE ...] [--rounds 20] [--write]

Models of full size, DeiT-S (random weights; the same shapes as ViT-S) and DINOv2-small, are shrunk to 75 and 50 % of the parameters of their
heads and FFNs. Each engine loads ancestor and children in one process, for one image and one thread, and runs them in turn; what counts is the
processor time of the process, the median of the rounds, of a child over its ancestor. The embedded runtime is timed by `offshoot compare`. The
ratio of MACs stands beside. On a machine that does other work the figures are rough: `--under-load` says so in the table.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts/lib")]

import engines as deployed
from engines import ENGINES

PAGE = ROOT / "docs/deployment.md"
MODELS = [".cache/deit-small.onnx", ".cache/dinov2-small-saliency.onnx"]
SIZES = ["75%", "50%"]


def output(command):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


def fixed(offshoot, model, path):
    """The same file for one image."""
    if not path.exists():
        output([offshoot, "grow", model, "--no-images", "--no-verify", "--batch-axis", "1", "-o", path])
    return path


def family(offshoot, model, images, folder):
    """An ancestor and its children, each for one image, and MACs of each child over those of its ancestor."""
    files, macs = [model], []
    for size in SIZES:
        child = folder / f"{model.stem}-{size[:-1]}.onnx"
        if not child.exists():
            # How many heads and neurons stay is what counts here, not which: a few crops will do.
            output([offshoot, "shrink", model, "--images", images, "--to", size, "--crops", "24", "-o", child])
        files.append(child)
    for file in files:
        macs.append(json.loads(output([offshoot, "inspect", file, "--json"]))["macs"])
    return [fixed(offshoot, f, folder / f"{f.stem}-one.onnx") for f in files], [m / macs[0] for m in macs[1:]]


def ratios(name, args, files, x, folder):
    """Latency of each child over its ancestor's, or the reason why there is none."""
    given = folder / "input.npy"
    np.save(given, x)
    if name == "offshoot":
        np.savez(folder / "inputs.npz", **{onnx.load(files[0], load_external_data=False).graph.input[0].name: x})
        found = []
        for child in files[1:]:
            compare = [args.offshoot, "compare", files[0], child, "--inputs", folder / "inputs.npz", "--no-verify", "--runtime", "tract"]
            times = json.loads(output([*compare, "--threads", "1", "--runs", args.rounds, "--json"]))["latency_ms"]
            found.append(times["b"] / times["a"])
        return found
    if name == "web":
        command = deployed.web_command(args.engines, given, folder, files, args.rounds)
    else:
        command = deployed.command(name, args.engines, str(given), str(folder / "out.npz"), [str(f) for f in files], args.rounds)
    done = subprocess.run(["timeout", str(args.limit), *command], capture_output=True, text=True, errors="replace")
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
    medians = [statistics.median(times) for times in json.loads(done.stdout.splitlines()[-1])]
    print(f"  {name}: {', '.join(f'{m:.1f}' for m in medians)} ms", file=sys.stderr, flush=True)
    return [m / medians[0] for m in medians[1:]] if len(medians) == len(files) else "not all files load"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="append", choices=ENGINES)
    parser.add_argument("--model", action="append", type=Path)
    parser.add_argument("--images", type=Path, default=".cache/photographs")
    parser.add_argument("--offshoot", type=Path, default="target/release/offshoot")
    parser.add_argument("--engines", default=".cache/engines")
    parser.add_argument("--kept", type=Path, default=".cache/engines/models", help="where children are kept")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--limit", type=int, default=900, help="seconds of one engine")
    parser.add_argument("--under-load", action="store_true", help="say that the machine did other work")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", RTEN_NUM_THREADS="1")
    args.kept.mkdir(parents=True, exist_ok=True)
    columns, cells = [], {}
    for model in args.model or list(map(Path, MODELS)):
        files, macs = family(args.offshoot, model, args.images, args.kept)
        columns += [f"{model.stem}, {size}" for size in SIZES]
        cells.setdefault("MACs", []).extend(f"{m:.3f}" for m in macs)
        dims = [d.dim_value for d in onnx.load(files[0], load_external_data=False).graph.input[0].type.tensor_type.shape.dim]
        x = np.random.default_rng(0).standard_normal([n or 224 for n in dims]).astype(np.float32)
        for name in args.engine or ENGINES:
            with tempfile.TemporaryDirectory() as folder:
                there = deployed.version(name, args.engines, str(args.offshoot)) or name == "offshoot"
                found = ratios(name, args, [f.absolute() for f in files], x, Path(folder)) if there else [None] * len(SIZES)
            if isinstance(found, str):
                print(f"{model.stem}: {ENGINES[name].title}: {found}", file=sys.stderr)
                found = [None] * len(SIZES)
            title = f"{ENGINES[name].title} {'' if name == 'offshoot' else there or ''}".strip()
            cells.setdefault(title, []).extend("" if f is None else f"{f:.3f}" for f in found)
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {title} | {' | '.join(row)} |" for title, row in cells.items()]
    load = "The machine did other work meanwhile: rough.\n\n" if args.under_load else ""
    text = load + "\n".join(lines)
    print(text)
    if args.write:
        page = PAGE.read_text()
        PAGE.write_text(re.sub(r"(<!-- latency -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.S))


if __name__ == "__main__":
    main()
