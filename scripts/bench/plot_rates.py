# /// script
# requires-python = ">=3.10"
# dependencies = ["matplotlib==3.11.2"]
# ///
"""Draws docs/rates.svg: validation loss over epochs at several learning rates, from four kinds of start, and at the rate that `tune` finds.

    cargo build --release && scripts/fetch/models.sh --calibration
    python scripts/bench/plot_rates.py [--offshoot target/release/offshoot] [--output docs/rates.svg]

The bundled ancestor from scratch and a child of its learngene learn labels, a child that `shrink` fitted learns from the ancestor, all three
on the 300 images of fixtures/; a child of DINOv2-small at 50 %, fitted by `shrink` too, learns from it on 69 photographs. `--without-dinov2`
leaves the last one out. Every curve is kept in .cache/rates.json as it is made: a run that is broken off goes on from there, and a new one
begins with that file away. Needs matplotlib.
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
CACHE = Path(".cache")


def run(*command):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{result.stderr}")
    return result.stdout


def scratch(offshoot, folder):
    run(offshoot, "grow", ANCESTOR, "--init", "from-scratch", "-o", folder / "scratch.onnx")
    return folder / "scratch.onnx"


def child(offshoot, folder):
    run(offshoot, "condense", ANCESTOR, "--images", IMAGES, "-o", folder / "gene.onnx")
    run(offshoot, "grow", folder / "gene.onnx", "--layers", "even:4", "-o", folder / "child.onnx")
    return folder / "child.onnx"


def fitted(offshoot, folder):
    run(offshoot, "shrink", ANCESTOR, "--images", IMAGES, "--to", "50%", "-o", folder / "fitted.onnx")
    return folder / "fitted.onnx"


def dinov2(offshoot, _):
    kept = CACHE / "rates-dinov2-50.onnx"
    if not kept.exists():
        run(offshoot, "shrink", DINOV2, "--images", PHOTOGRAPHS, "--to", "50%", "-o", kept)
    return kept


LABELS = ["--data", IMAGES, "--epochs", 20, "--batch-size", 32]
PHOTOS = ["--data", PHOTOGRAPHS, "--limit", 61, "--val-split", 0.11, "--epochs", 2, "--batch-size", 8]
# Name, what makes the model, and the flags of its training.
STARTS = [
    ("the bundled ancestor from scratch", scratch, LABELS),
    ("a learngene child of half its layers", child, LABELS),
    ("a fitted child at 50 %", fitted, [*LABELS, "--teacher", ANCESTOR, "--distill", 1]),
    ("DINOv2-small at 50 %, fitted", dinov2, [*PHOTOS, "--teacher", DINOV2, "--distill", 1]),
]


def curves(offshoot, folder, name, make, flags, panel, keep):
    """Computes what a panel lacks: the rate that is found, the loss before training, and a curve for each rate."""
    files = ["--force", "--metrics", folder / "log.jsonl", "-o", folder / "out.onnx"]
    model = None
    if "found" not in panel:
        model = make(offshoot, folder)
        report = json.loads(run(offshoot, "tune", model, *flags, *files, "--steps", 1, "--json"))
        panel |= {"found": report["learning_rate"]["rate"], "start": report["start"]["val_loss"], "curves": {}}
        keep()
    # The rate that is found comes first: it is what the plot is about.
    for rate in [panel["found"], *(r for r in RATES if r != panel["found"])]:
        if repr(rate) in panel["curves"]:
            continue
        model = model or make(offshoot, folder)
        run(offshoot, "tune", model, *flags, *files, "--lr", rate)
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        later = [line["val_loss"] for line in lines if line.get("val_loss") is not None and line["epoch"] > 0]
        panel["curves"][repr(rate)] = [panel["start"], *later]
        keep()
        print(f"{name}: {rate:g}: {[round(loss, 5) for loss in panel['curves'][repr(rate)]]}", flush=True)


def draw(panels, output):
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.6), squeeze=False)
    for axis, (name, panel) in zip(axes[0], panels.items()):
        for rate in sorted(map(float, panel["curves"]), reverse=True):
            losses, found = panel["curves"][repr(rate)], rate == panel["found"]
            label = f"{rate:.3g}" + (", found" if found else "")
            axis.plot(range(len(losses)), losses, label=label, linewidth=2.4 if found else 1.2)
        axis.set(title=name, xlabel="epoch", ylabel="validation loss", yscale="log")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(title="learning rate", fontsize=8)
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offshoot", default="target/release/offshoot")
    parser.add_argument("--output", default="docs/rates.svg")
    parser.add_argument("--without-dinov2", action="store_true")
    options = parser.parse_args()
    CACHE.mkdir(exist_ok=True)
    kept = CACHE / "rates.json"
    panels = json.loads(kept.read_text()) if kept.exists() else {}
    keep = lambda: kept.write_text(json.dumps(panels, indent=1) + "\n")
    starts = STARTS[:3] if options.without_dinov2 else STARTS
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        for name, make, flags in starts:
            curves(options.offshoot, Path(folder), name, make, flags, panels.setdefault(name, {}), keep)
    draw({name: panels[name] for name, *_ in starts}, options.output)


if __name__ == "__main__":
    main()
