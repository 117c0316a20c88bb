# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Measures the tables of docs/benchmarks.md again and puts them in: what stands between `<!-- NAME` and `<!-- end -->` is this script's.

    python -m venv .cache/bench && .cache/bench/bin/pip install torch timm onnxscript onnx onnxruntime onnxsim onnxslim onnx-graphsurgeon pillow matplotlib
    .cache/bench/bin/python scripts/bench/report.py [NAME ...]         # all of them: about 40 minutes on two cores that do nothing else

Builds Offshoot, exports the models that are missing and fetches photographs first. Needs hyperfine. A block is replaced when its measurement has
ended well; the others stay. `docs/costs.svg` is drawn again with `costs`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("lib",)]

import measured

DOCUMENT = Path("docs/benchmarks.md")
OFFSHOOT = "target/release/offshoot"
PYTHON = sys.executable


def run(*command, **more):
    print("+", *command, file=sys.stderr, flush=True)
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env={**os.environ, "PYTHON": PYTHON}, **more).stdout.strip()


def script(name, *arguments):
    return lambda: run(PYTHON, f"scripts/{name}", *arguments)


def start():
    """Medians of 40 processes."""
    rows = ["| command | median [ms] |", "|---|---:|"]
    for arguments in (["--help"], ["inspect", "models/fashion-vit.onnx"], ["inspect", ".cache/deit-base.onnx"]):
        median = statistics.median(measured.Measured([OFFSHOOT, *arguments]).seconds for _ in range(40))
        rows.append(f"| `offshoot {' '.join(arguments)}` | {1e3 * median:.1f} |")
    return "\n".join(rows)


def data():
    """Images a second that the loader makes, with nothing else running, beside those that a step takes."""
    step = {}
    for line in run(PYTHON, "scripts/bench/training.py", "--mode", "offshoot", "--rounds", "1", "--json").splitlines():
        figures = json.loads(line)
        step[figures["model"]] = figures["batch"] / figures["median"]
    photographs, grey = f"DeiT-tiny {step['tiny']:.0f}, DeiT-small {step['small']:.0f}", f"bundled ancestor {step['fashion']:.0f}"
    cases = [("20 ImageNet photographs at 224, random resized crops and flips", ".cache/photographs", 224, 16, "standard", photographs),
             ("the same with RandAugment and random erasing", ".cache/photographs", 224, 16, "deit", photographs),
             ("wallpapers (4 megapixels in the middle) at 224, random resized crops and flips", ".cache/calibration", 224, 16, "standard", photographs),
             ("Fashion-MNIST at 28, padded crops and flips", ".cache/fashion-mnist", 28, 64, "light", grey)]
    rows = ["| images a second | decoded, augmented, batched | a training step takes |", "|---|---:|---|"]
    for what, path, size, batch, augmentation, taken in cases:
        made = json.loads(run("cargo", "bench", "--locked", "--bench", "data", "--", path, str(size), str(batch), "10", augmentation))
        rows.append(f"| {what} | {made['images_per_second']:,.0f} | {taken} |")
    return "\n".join(rows)


def costs():
    run(PYTHON, "scripts/bench/plot_costs.py")
    return "![How time and memory grow with the size of the model, images, layers and descendants](costs.svg)"


BLOCKS = {
    "writing": lambda: run("scripts/bench/grow.sh"),
    "tools": lambda: "\n\n".join(run(PYTHON, "scripts/bench/other_tools.py", f".cache/{m}.onnx", "--rounds", n) for m, n in (("deit-base", "3"), ("vit-large", "1"))),
    "start": start,
    "large": lambda: run("scripts/bench/large.sh"),
    "density": script("bench_density.py"),
    "training": script("bench_training.py"),
    "data": data,
    "costs": costs,
}


def prepare(names):
    """What the measurements need and is not there yet."""
    run("cargo", "build", "--locked", "--release")
    if {"training", "data"} & set(names):
        run("cargo", "bench", "--locked", "--bench", "training", "--bench", "data", "--no-run")
    run("scripts/fetch/onnxruntime.sh", ".onnxruntime")
    run("scripts/fetch/models.sh", "--fashion-mnist", "--calibration", ".cache")
    os.environ.setdefault("ORT_DYLIB_PATH", str(Path(".onnxruntime/libonnxruntime.so").resolve()))
    for size, file in (("tiny", "deit-tiny"), ("small", "deit-small"), ("base", "deit-base"), ("large", "vit-large"), ("huge", "vit-huge")):
        if not Path(f".cache/{file}.onnx").exists():
            run(PYTHON, "scripts/studies/export_deit.py", size, *(["--external"] if size == "large" else []))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*BLOCKS, []], metavar="NAME", help=", ".join(BLOCKS))
    names = parser.parse_args().names or list(BLOCKS)
    prepare(names)
    model = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    for name in names:
        load = os.getloadavg()[0]
        table = BLOCKS[name]()
        head, rest = DOCUMENT.read_text().split(f"<!-- {name}:", 1)
        _, tail = rest.split("<!-- end -->", 1)
        under = f"{date.today()}, {os.cpu_count()} cores ({model}, {platform.system()}), load {load:.1f} before it"
        DOCUMENT.write_text(f"{head}<!-- {name}: {under} -->\n\n{table}\n\n<!-- end -->{tail}")


if __name__ == "__main__":
    main()
