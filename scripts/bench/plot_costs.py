# /// script
# requires-python = ">=3.10"
# dependencies = ["matplotlib==3.11.2", "numpy==2.5.5"]
# ///
"""Measures how time and memory of commands grow with model size, number of images, layers and descendants, and draws docs/costs.svg.

    python scripts/studies/export_deit.py tiny small base && python scripts/studies/export_deit.py large --external && cargo build --release
    python scripts/bench/plot_costs.py [--offshoot target/release/offshoot] [--threads 2] [--output docs/costs.svg]

Each point is the faster of two runs, a process of its own; memory is its peak of anonymous pages (RssAnon: mapped pages of the model are the page
cache's). Images are noise of 224 pixels in an .npy file. Prints the points, too. Needs numpy and matplotlib.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("lib",)]

import matplotlib
import measured

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

SIZES = {".cache/deit-tiny.onnx": 23, ".cache/deit-small.onnx": 88, ".cache/deit-base.onnx": 346, ".cache/vit-large.onnx": 1218}


def measure(command):
    """Seconds and peak of anonymous memory in MB, of the faster of two runs."""
    runs = [measured.Measured(command) for _ in range(2)]
    assert not any(run.status for run in runs), runs[-1].err
    best = min((run.seconds, run.anonymous) for run in runs)
    print(f"{best[0]:8.3f} s {best[1]:6.0f} MB  {' '.join(command[1:5])}", flush=True)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offshoot", default="target/release/offshoot")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--output", default="docs/costs.svg")
    options = parser.parse_args()
    run = lambda *arguments: measure([options.offshoot, *map(str, arguments)])
    tiny = next(iter(SIZES))
    with tempfile.TemporaryDirectory(dir=".cache") as folder:
        at = lambda name: f"{folder}/{name}"
        images = {}
        for count in (8, 16, 32, 64, 128):
            images[count] = at(f"{count}.npy")
            np.save(images[count], np.random.default_rng(0).standard_normal((count, 3, 224, 224), dtype=np.float32))
        seen = lambda count: ("--images", images[count], "--threads", options.threads)
        out = ("--force", "-o", at("out.onnx"))
        panels = {
            "model, MB": {
                "inspect": [(mb, *run("inspect", m)) for m, mb in SIZES.items()],
                "grow, half the FFN": [(mb, *run("grow", m, "--no-images", "--ffn-width", "50%", *out)) for m, mb in SIZES.items()],
                "condense, 8 images": [(mb, *run("condense", m, *seen(8), *out)) for m, mb in SIZES.items()],
            },
            "images (DeiT-tiny)": {
                "density": [(n, *run("density", tiny, *seen(n))) for n in images],
                "condense": [(n, *run("condense", tiny, *seen(n), *out)) for n in images],
            },
        }
        depths = {}
        for layers in (2, 4, 6, 8, 10, 12):
            depths[layers] = at(f"{layers}-layers.onnx")
            run("grow", tiny, "--no-images", "--layers", f"even:{layers}", "--force", "-o", depths[layers])
        panels["layers (DeiT-tiny)"] = {
            "density, 16 images": [(n, *run("density", m, *seen(16))) for n, m in depths.items()],
            "grow, half the FFN": [(n, *run("grow", m, "--no-images", "--ffn-width", "50%", *out)) for n, m in depths.items()],
        }
        points = []
        for count in (1, 2, 4, 8, 16):
            table = "".join(f'[[descendant]]\noutput = "{i}.onnx"\nlayers = "even:{2 + i % 11}"\n' for i in range(count))
            Path(at("list.toml")).write_text(table)
            points.append((count, *run("grow", tiny, "--no-images", "--batch", at("list.toml"), "--force", "-o", at("many"))))
        panels["descendants of DeiT-tiny in one command"] = {"grow --batch": points}
    figure, axes = plt.subplots(2, len(panels), figsize=(4 * len(panels), 6))
    for (top, bottom), (what, lines) in zip(axes.T, panels.items()):
        for name, points in lines.items():
            x, seconds, memory = zip(*points)
            top.plot(x, seconds, marker="o", label=name)
            bottom.plot(x, memory, marker="o")
        top.set_ylabel("seconds")
        bottom.set_ylabel("anonymous memory, MB")
        bottom.set_xlabel(what)
        top.legend()
        for axis in (top, bottom):
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(options.output)


if __name__ == "__main__":
    main()
