# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Kills training at random moments and resumes it, and compares what comes out with a run that nobody disturbed.

    cargo build --release && python scripts/check/kills.py [--offshoot target/release/offshoot] [--kills 100] [--seed 0]

A child of the bundled ancestor is tuned on the images that lie in fixtures/, with mixup, a moving average and a checkpoint every 5 updates. It is killed
(SIGKILL, which nothing can catch) after a random time, and the same command goes on with --resume, until it ends; its models must be those of the
undisturbed run byte for byte, its metrics line for line. Then the next run begins, until there were so many kills. Exit code 1 where anything differs.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ["out.onnx", "out.last.onnx"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offshoot", default="target/release/offshoot")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        child = folder / "child.onnx"
        subprocess.run([options.offshoot, "grow", "models/fashion-vit.onnx", "--no-images", "--layers", "even:2", "--heads", "4", "-o", child], check=True,
                       stderr=subprocess.DEVNULL)

        def command(to, *more):
            return [options.offshoot, "tune", child, "--data", "fixtures/fashion-images.idx3-ubyte", "--batch-size", "8", "--epochs", "4", "--mixup", "0.4",
                    "--ema", "0.99", "--threads", "1", "--checkpoint-every", "5", "--metrics", to / "log.jsonl", "-o", to / "out.onnx", *more]

        def lines(to):
            rows = [json.loads(line) for line in (to / "log.jsonl").read_text().splitlines()]
            return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]

        calm = folder / "calm"
        calm.mkdir()
        start = time.time()
        subprocess.run(command(calm), check=True, stderr=subprocess.DEVNULL)
        length = time.time() - start
        print(f"undisturbed: {len(lines(calm))} lines in {length:.1f} s", flush=True)
        kills = runs = 0
        while kills < options.kills:
            to = folder / f"run{runs}"
            to.mkdir()
            while True:
                resume = ["--resume", "--force"] if (to / "out.checkpoint.safetensors").exists() else ["--force"]
                process = subprocess.Popen(command(to, *resume), stderr=subprocess.PIPE)
                try:
                    said = process.communicate(timeout=dice.uniform(0.05, length / 3))[1].decode(errors="replace")
                    if process.returncode == 0:
                        break
                    sys.exit(f"run {runs} ended with {process.returncode}:\n{said}")
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
                    kills += 1
            for name in NAMES:
                if (to / name).read_bytes() != (calm / name).read_bytes():
                    sys.exit(f"run {runs} after {kills} kills: {name} is not that of the undisturbed run")
            if lines(to) != lines(calm):
                sys.exit(f"run {runs} after {kills} kills: its metrics are not those of the undisturbed run")
            left = [p.name for p in to.iterdir() if p.name not in [*NAMES, "log.jsonl", "out.checkpoint.safetensors"]]
            print(f"run {runs}: the same after {kills} kills in all{', left: ' + ', '.join(left) if left else ''}", flush=True)
            runs += 1
        print(f"{kills} kills, {runs} runs, nothing differs")


if __name__ == "__main__":
    main()
