"""Measures training steps of PyTorch: forward, backward and AdamW of a DeiT on random images, in single precision.

    python scripts/bench_training.py [--model tiny small] [--mode fused foreach compile] [--threads 2] [--steps 8] [--rounds 3]

Every measurement is a process of its own, so that the peak of its memory (VmHWM) is its own too, and the modes take turns. `fused`
and `foreach` are eager PyTorch with that form of AdamW, `compile` is torch.compile with the fused one; its first step, which
compiles, is given apart. Prints one JSON line a process: seconds of the fastest and of the median step, peak memory in MiB, and the
load of the machine before it. Batches are those of docs/benchmarks.md: 16 images for DeiT-tiny, 8 for DeiT-small, at 224 pixels.
Needs torch and timm.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

BATCH = {"tiny": 16, "small": 8, "base": 4}
WARM_UP = 2


def measure(size, mode, threads, steps):
    import timm
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = timm.create_model(f"deit_{size}_patch16_224", pretrained=False).train()
    form = {"foreach": True} if mode == "foreach" else {"fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, **form)
    forward = torch.compile(model) if mode == "compile" else model
    images = torch.randn(BATCH[size], 3, 224, 224)
    labels = torch.randint(0, 1000, (BATCH[size],))
    loss_function = torch.nn.CrossEntropyLoss()
    seconds = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss_function(forward(images), labels).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    return {
        "first": round(seconds[0], 4),
        "fastest": round(min(seconds[WARM_UP:]), 4),
        "median": round(statistics.median(seconds[WARM_UP:]), 4),
        "peak_mib": round(peak),
        "torch": torch.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=BATCH, default=["tiny", "small"])
    parser.add_argument("--mode", nargs="+", choices=["fused", "foreach", "compile"], default=["fused", "foreach", "compile"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="measured steps of a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind, in turn")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.model[0], args.mode[0], args.threads, args.steps)))
        return
    for _ in range(args.rounds):
        for size in args.model:
            for mode in args.mode:
                load = os.getloadavg()[0]
                own = ["--one", "--model", size, "--mode", mode, "--threads", str(args.threads), "--steps", str(args.steps)]
                environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
                run = subprocess.run([sys.executable, __file__, *own], capture_output=True, text=True, env=environment)
                if run.returncode != 0:
                    sys.exit(f"{size} {mode} failed:\n{run.stderr}")
                kind = {"model": size, "batch": BATCH[size], "mode": mode, "threads": args.threads, "load": round(load, 2)}
                print(json.dumps({**kind, **json.loads(run.stdout.splitlines()[-1])}), flush=True)


if __name__ == "__main__":
    main()
