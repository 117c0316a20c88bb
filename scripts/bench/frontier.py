# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Measures how near children of DINOv2-small stay to it at six sizes, and draws docs/frontier.svg, the picture of the README.

    cargo build --release && scripts/fetch/models.sh --calibration && scripts/fetch/onnxruntime.sh .onnxruntime
    python scripts/bench/frontier.py [--offshoot target/release/offshoot] [--cache .cache]
    python scripts/bench/frontier.py --draw

`shrink` makes the children from 78 photographs without labels, in one run; `compare` holds each against its ancestor on 20 photographs that no
step has seen. The figures are kept in docs/frontier.json, and `--draw` only draws them. Four minutes on two cores.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIZES = [90, 75, 60, 50, 40, 30]
FIGURES, PICTURE = ROOT / "docs/frontier.json", ROOT / "docs/frontier.svg"

# The plot: its corners, and the values at them.
LEFT, RIGHT, TOP, BOTTOM = 70, 610, 60, 300
PARAMETERS, CORRELATION = (8, 26), (0.7, 1.0)


def measure(offshoot, cache):
    """The ancestor, then a child of every size: parameters, bytes, correlation with the ancestor and its standard error."""
    model, rows = cache / "dinov2-small-saliency.onnx", []

    def run(*arguments):
        return subprocess.run([offshoot, *map(str, arguments)], check=True, stdout=subprocess.PIPE).stdout

    with tempfile.TemporaryDirectory() as folder:
        sizes = ",".join(f"{size}%" for size in SIZES)
        run("shrink", model, "--images", cache / "calibration", "--to", sizes, "--seed", "0", "-o", folder)
        for size in SIZES:
            child = Path(folder) / f"{model.stem}-{size}.onnx"
            found = json.loads(run("compare", model, child, "--images", cache / "photographs", "--json"))
            if not rows:
                rows.append({"size": 100, "parameters": found["parameters"]["a"], "correlation": 1.0, "standard_error": 0.0})
            rows.append({
                "size": size,
                "parameters": found["parameters"]["b"],
                "correlation": round(found["correlation"], 4),
                "standard_error": round(found["correlation_error"], 4),
            })
            print(rows[-1], flush=True)
    return rows


def drawn(rows):
    """The figures as a picture, in colours that are read on white and on black."""

    def x(parameters):
        return LEFT + (RIGHT - LEFT) * (parameters / 1e6 - PARAMETERS[0]) / (PARAMETERS[1] - PARAMETERS[0])

    def y(correlation):
        return BOTTOM - (BOTTOM - TOP) * (correlation - CORRELATION[0]) / (CORRELATION[1] - CORRELATION[0])

    def text(at, words, anchor="middle", more=""):
        return f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}"{more}>{words}</text>'

    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 360" width="640" height="360" font-family="sans-serif" font-size="13">',
        '<rect width="640" height="360" rx="8" fill="#ffffff"/>',
        '<g fill="#333333">',
        text((LEFT, 26), "DINOv2-small, shrunk without labels and without training", "start", ' font-size="16" font-weight="bold"'),
        text((LEFT, 46), "correlation with the ancestor on 20 unseen photographs (bars: standard error)", "start"),
    ]
    for tenths in range(round(CORRELATION[0] * 20), round(CORRELATION[1] * 20) + 1):
        level = tenths / 20
        out.append(f'<path d="M{LEFT} {y(level):.1f}H{RIGHT}" stroke="#dddddd"/>')
        out.append(text((LEFT - 8, y(level) + 4), f"{level:.2f}", "end"))
    for millions in range(PARAMETERS[0], PARAMETERS[1] + 1, 2):
        out.append(text((x(millions * 1e6), BOTTOM + 20), f"{millions} M"))
    out.append(text(((LEFT + RIGHT) / 2, BOTTOM + 44), "parameters of the whole model"))
    out.append("</g>")
    points = [(x(row["parameters"]), y(row["correlation"])) for row in rows]
    line = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    out.append(f'<path d="M{line}" fill="none" stroke="#1f77b4" stroke-width="2"/>')
    for row, (a, b) in zip(rows, points):
        low, high = (y(row["correlation"] + sign * row["standard_error"]) for sign in (-1, 1))
        out.append(f'<path d="M{a:.1f} {low:.1f}V{high:.1f}" stroke="#1f77b4" stroke-width="2"/>')
        out.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="5" fill="#1f77b4"/>')
        side, anchor = (0, "middle") if row["size"] > 50 else (8, "start")
        lines = ["ancestor"] if row["size"] == 100 else [f'{row["size"]} %', f'{row["correlation"]:.3f}']
        out += [text((a + side, b + 22 + 15 * i), line, anchor, ' fill="#333333"') for i, line in enumerate(lines)]
    out.append("</svg>")
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offshoot", default="target/release/offshoot")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache")
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    if not options.draw:
        rows = measure(options.offshoot, options.cache)
        FIGURES.write_text("[\n" + ",\n".join("  " + json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")
    PICTURE.write_text(drawn(json.loads(FIGURES.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
