# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Times `grow` with and without its verification: on every fixture, and on larger models.

    python scripts/bench/verification.py OLD NEW [--rounds 5] [--large .cache/deit-small.onnx .cache/deit-base.onnx]

OLD is a binary of a commit that does not verify, NEW the one that does. For each model, in turn, the fastest of so many runs: OLD, NEW with
`--no-verify`, NEW with `--verify`, on the embedded runtime. Every child has half its heads, or all where half cannot be had. Prints a Markdown
table: the large models each, the fixtures as the median and the largest of their ratios, then one line for each fixture.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

FOLDERS = ["fixtures/graphs", "fixtures/dialects", "fixtures/exporters"]


def seconds(binary, model, *flags):
    """How long one run takes; None where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "grow", str(model), "--no-images", *flags, "-o", str(Path(folder) / "child.onnx")]
        begun = time.monotonic()
        code = subprocess.run(command, capture_output=True).returncode
        return time.monotonic() - begun if code == 0 else None


def measure(old, new, model, rounds):
    """The flags of the child, and the fastest runs: old, new without verification, new with it; None where not both make it."""
    heads = half_of_heads(new, model)
    shape = ["--heads", str(heads)] if heads else []
    ways = [(old, shape), (new, [*shape, "--no-verify"]), (new, [*shape, "--verify", "--runtime", "tract"])]
    runs = [[seconds(binary, model, *flags) for binary, flags in ways] for _ in range(rounds)]
    if any(None in run for run in runs):
        return None
    return shape, [min(way) for way in zip(*runs)]


def half_of_heads(new, model):
    """Half of the fewest heads that a layer has."""
    result = subprocess.run([new, "inspect", str(model), "--json"], capture_output=True, text=True)
    layers = json.loads(result.stdout).get("layers", []) if result.returncode == 0 else []
    return min((layer.get("heads", 0) for layer in layers), default=0) // 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", nargs="*", default=[])
    options = parser.parse_args()
    print("| model | old, ms | --no-verify, ms | ratio | --verify, ms | ratio to --no-verify |")
    print("|---|---:|---:|---:|---:|---:|")
    fixtures, left_out = [], []
    large = [Path(m) for m in options.large]
    for model in large + sorted(p for folder in FOLDERS for p in Path(folder).glob("*.onnx")):
        found = measure(options.old, options.new, model, options.rounds)
        if found is None:
            left_out.append(model.name)
            continue
        shape, (old, without, verified) = found
        times = f"{1e3 * old:.1f} | {1e3 * without:.1f} | {without / old:.2f} | {1e3 * verified:.1f} | {verified / without:.1f}"
        print(f"| {' '.join([model.name, *shape])} | {times} |", flush=True)
        if model not in large:
            fixtures.append((old, without, verified / without))
    olds, withouts, ratios = zip(*fixtures)
    print(f"\n{len(fixtures)} fixtures: {1e3 * sum(olds):.0f} ms before, {1e3 * sum(withouts):.0f} without verification,", end=" ")
    print(f"{sum(withouts) / sum(olds):.3f}; with it {statistics.median(ratios):.1f} times as long (median), {max(ratios):.1f} at most")
    if left_out:
        print(f"left out, as not both grow them: {', '.join(left_out)}")


if __name__ == "__main__":
    main()
