# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Efficiency of data-parallel training on paper: a measured step and the cost of a ring all-reduce.

    python scripts/bench/plot_scaling.py [--parameters 86.6e6] [--step NAME=SECONDS ...] [-o docs/scaling.svg]

Every rank computes its step in SECONDS, then the gradients (4 bytes a parameter) are summed in a ring over N ranks: each rank sends and
receives 2 (N - 1) / N of them, in 2 (N - 1) messages a bucket of 16 MiB that take LATENCY each. Efficiency is the share of a step that is
not spent waiting for the sum. Solid lines: the sum after the step, as Offshoot does. Dashed lines: the sum in bfloat16, and behind the
backward pass, two thirds of the step. It prints the table of docs/scaling.md, and needs only the standard library.
"""

import argparse
import math

RATES = {"1 Gb/s": 1e9, "10 Gb/s": 1e10, "100 Gb/s": 1e11}
COLOURS = {"1 Gb/s": "#c0392b", "10 Gb/s": "#d68910", "100 Gb/s": "#1f618d"}
RANKS = [8, 16, 32, 64, 128, 256, 512, 1024]
LATENCY = 20e-6
BUCKET = 16 * 2**20
BACKWARD = 2 / 3


def ring(size, ranks, rate):
    """Seconds of an all-reduce of so many bytes at a rate in bits a second."""
    return 2 * (ranks - 1) / ranks * size * 8 / rate + 2 * (ranks - 1) * LATENCY * math.ceil(size / BUCKET)


def efficiency(step, size, ranks, rate, better=False):
    exposed = max(0.0, ring(size / 2, ranks, rate) - BACKWARD * step) if better else ring(size, ranks, rate)
    return step / (step + exposed)


def panel(left, name, step, size):
    width, height, top = 300, 220, 40
    x = lambda ranks: left + width * math.log2(ranks / RANKS[0]) / math.log2(RANKS[-1] / RANKS[0])
    y = lambda share: top + height * (1 - share)
    out = [f'<text x="{left}" y="24" font-weight="bold">{name}</text>']
    for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
        strong = "#888" if share == 0.8 else "#ddd"
        out.append(f'<line x1="{left}" x2="{left + width}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="{strong}"/>')
        out.append(f'<text x="{left - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:g}</text>')
    for ranks in RANKS:
        out.append(f'<text x="{x(ranks):.1f}" y="{top + height + 16}" text-anchor="middle">{ranks}</text>')
    for label, rate in RATES.items():
        for better in (False, True):
            points = " ".join(f"{x(n):.1f},{y(efficiency(step, size, n, rate, better)):.1f}" for n in RANKS)
            dashes = ' stroke-dasharray="5 4"' if better else ""
            out.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[label]}" stroke-width="2"{dashes}/>')
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=86.6e6, help="of the model: DeiT-B")
    parser.add_argument("--step", action="append", required=True, metavar="NAME=SECONDS")
    parser.add_argument("-o", "--output", default="docs/scaling.svg")
    args = parser.parse_args()
    steps = [(name, float(seconds)) for name, seconds in (s.rsplit("=", 1) for s in args.step)]
    size = 4 * args.parameters
    width = 60 + 360 * len(steps)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 320" font-family="sans-serif" font-size="12">']
    out.append(f'<rect width="{width}" height="320" fill="white"/>')
    for i, (name, step) in enumerate(steps):
        out += panel(60 + 360 * i, name, step, size)
        for label, rate in RATES.items():
            for kind, better in (("", False), (", bf16 behind the backward pass", True)):
                cells = " | ".join(f"{efficiency(step, size, n, rate, better):.2f}" for n in RANKS)
                print(f"| {name} | {label}{kind} | {cells} |")
    for i, label in enumerate(RATES):
        out.append(f'<line x1="{60 + 110 * i}" x2="{84 + 110 * i}" y1="302" y2="302" stroke="{COLOURS[label]}" stroke-width="2"/>')
        out.append(f'<text x="{90 + 110 * i}" y="306">{label}</text>')
    out.append('<text x="400" y="306">ranks; dashed: bf16, behind the backward pass</text></svg>')
    with open(args.output, "w") as file:
        file.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
