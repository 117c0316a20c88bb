# /// script
# requires-python = ">=3.10"
# dependencies = ["matplotlib==3.11.2"]
# ///
"""Draws docs/rates.svg: validation loss over epochs at several learning rates, from four kinds of start, and at the rate that `tune` finds.

    cargo build --release && scripts/fetch/models.sh --calibration
    python scripts/bench/plot_rates.py [--offshoot target/release/offshoot] [--output docs/rates.svg]

The bundled ancestor from scratch and a child of its learngene learn labels, a child that `shrink` fitted learns from the ancestor, all three
on the 300 images of fixtures/; a child of DINOv2-small at 50 %, fitted by `shrink` too, learns from it on 69 photographs. `--without-dinov2`
leaves the last one out. `--trainer` may be another build that makes the runs with a rate that is given. Needs matplotlib.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ANCESTOR, IMAGES = "models/fashion-vit.onnx", "fixtures/fashion-images.idx3-ubyte"
DINOV2, PHOTOGRAPHS = ".cache/dinov2-small-saliency.onnx", ".cache/calibration"
RATES = [5e-4, 1e-4, 2e-5]


def run(*command):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{result.stderr}")
    return result.stdout


def starts(offshoot, folder, with_dinov2):
    """Name, model, and the flags of its training."""
    at = lambda name: folder / f"{name}.onnx"
    labels = ["--data", IMAGES, "--epochs", 20, "--batch-size", 32]
    run(offshoot, "grow", ANCESTOR, "--init", "from-scratch", "-o", at("scratch"))
    yield "the bundled ancestor from scratch", at("scratch"), labels
    run(offshoot, "condense", ANCESTOR, "--images", IMAGES, "-o", at("gene"))
    run(offshoot, "grow", at("gene"), "--layers", "even:4", "-o", at("child"))
    yield "a learngene child of half its layers", at("child"), labels
    run(offshoot, "shrink", ANCESTOR, "--images", IMAGES, "--to", "50%", "-o", at("fitted"))
    yield "a fitted child at 50 %", at("fitted"), [*labels, "--teacher", ANCESTOR, "--distill", 1]
    if with_dinov2:
        kept = folder.parent / "rates-dinov2-50.onnx"
        if not kept.exists():
            run(offshoot, "shrink", DINOV2, "--images", PHOTOGRAPHS, "--to", "50%", "-o", kept)
        flags = ["--data", PHOTOGRAPHS, "--limit", 61, "--val-split", 0.11, "--teacher", DINOV2, "--distill", 1, "--epochs", 3, "--batch-size", 8]
        yield "DINOv2-small at 50 %, fitted", kept, flags


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offshoot", default="target/release/offshoot")
    parser.add_argument("--trainer")
    parser.add_argument("--output", default="docs/rates.svg")
    parser.add_argument("--without-dinov2", action="store_true")
    options = parser.parse_args()
    Path(".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=".cache") as folder:
        folder = Path(folder)
        panels = []
        for name, model, flags in starts(options.offshoot, folder, not options.without_dinov2):
            log, out = folder / "log.jsonl", folder / "out.onnx"
            files = ["--force", "--metrics", log, "-o", out]
            report = json.loads(run(options.offshoot, "tune", model, *flags, *files, "--steps", 1, "--json"))
            found, start = report["learning_rate"]["rate"], report["start"]["val_loss"]
            curves = {}
            for rate in sorted({*RATES, found}, reverse=True):
                run(options.trainer or options.offshoot, "tune", model, *flags, *files, "--lr", rate)
                lines = [json.loads(line) for line in log.read_text().splitlines()]
                later = [line["val_loss"] for line in lines if line.get("val_loss") is not None and line["epoch"] > 0]
                curves[rate] = [start, *later]
                print(f"{name}: {rate:g}{' (found)' if rate == found else ''}: {[round(loss, 5) for loss in curves[rate]]}", flush=True)
            panels.append((name, found, curves))
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.6))
    for axis, (name, found, curves) in zip(axes, panels):
        for rate, losses in curves.items():
            label = f"{rate:.2g}" + (", found" if rate == found else "")
            axis.plot(range(len(losses)), losses, label=label, linewidth=2.4 if rate == found else 1.2)
        axis.set(title=name, xlabel="epoch", ylabel="validation loss", yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(title="learning rate", fontsize=8)
    figure.tight_layout()
    figure.savefig(options.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
