# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Times the same commands of two binaries in turn: what a change of profiles or dependencies costs at run time.

    python scripts/bench/guard.py OLD NEW [--rounds 3] [--model .cache/dinov2-small-saliency.onnx --images .cache/photographs]
                                          [--large .cache/deit-base.onnx] [--only WORD]

OLD and NEW are binaries of `offshoot`. Prints a Markdown table: command, runtime, the fastest run of each in seconds, their ratio. Needs ONNX
Runtime's library in .onnxruntime or ORT_DYLIB_PATH.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

ANCESTOR, IMAGES = "models/fashion-vit.onnx", "fixtures/fashion-images.idx3-ubyte"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model")
    parser.add_argument("--images")
    parser.add_argument("--large")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    both = ["tract", "onnxruntime"]
    commands = [
        ("tune", f"tune {ANCESTOR} --data {IMAGES} --epochs 3 --seed 1", both),
        ("density", f"density {ANCESTOR} --images {IMAGES}", both),
        ("condense", f"condense {ANCESTOR} --images {IMAGES}", both),
        ("shrink", f"shrink {ANCESTOR} --images {IMAGES} --to 50%", both),
        ("eval", f"eval {ANCESTOR} --data {IMAGES}", both),
    ]
    if options.model:
        commands.append(("density, DINOv2-small", f"density {options.model} --images {options.images}", both))
        commands.append(("condense, DINOv2-small", f"condense {options.model} --images {options.images}", both))
    if options.large:
        commands.append(("grow, large, 8 of 12 heads", f"grow {options.large} --no-images --heads 8", [""]))
        commands.append(("grow, large, identity", f"grow {options.large} --no-images", [""]))
    print("| command | runtime | old, s | new, s | new / old |")
    print("|---|---|---:|---:|---:|")
    for name, command, runtimes in commands:
        if options.only not in name:
            continue
        for runtime in runtimes:
            seconds = {options.old: [], options.new: []}
            for _ in range(options.rounds):
                for binary in seconds:
                    with tempfile.TemporaryDirectory() as folder:
                        arguments = [binary, *command.split()]
                        arguments += ["--runtime", runtime] if runtime else []
                        if not name.startswith(("density", "eval")):
                            arguments += ["-o", str(Path(folder) / "out.onnx")]
                        start = time.perf_counter()
                        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                        seconds[binary].append(time.perf_counter() - start)
            old, new = (min(times) for times in seconds.values())
            print(f"| {name} | {runtime or 'none'} | {old:.2f} | {new:.2f} | {new / old:.2f} |", flush=True)


if __name__ == "__main__":
    main()
