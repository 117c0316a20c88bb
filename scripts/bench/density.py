# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "onnxruntime==1.32.0", "timm==1.0.31", "torch==2.15.0"]
# ///
"""Times `density` beside a bare forward pass on ONNX Runtime and beside the way of the paper's code in PyTorch.

    python scripts/studies/export_deit.py small && cargo build --release
    python scripts/bench/density.py [--offshoot target/release/offshoot] [--images 64] [--threads 2] [--rounds 5]

DeiT-small, random weights, noise of 224 pixels in one .npy file, which all three read. Every measurement is a process of its own and all take
turns; medians. `bare` is ONNX Runtime's session alone, in batches like Offshoot's, with nothing read but the logits, and `pytorch` keeps every
attention map of a batch and weighs it with the distances of patches in NumPy. Seconds of the other two count from the loaded library on, of
Offshoot from the start of the process. Memory is the peak of anonymous pages; Offshoot's with four times as many images shows whether it grows.
Needs numpy, onnxruntime, torch and timm.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("lib",)]

import measured
import numpy as np

MODEL, BATCH, SIDE, PATCH = ".cache/deit-small.onnx", 8, 14, 16


def bare(images, threads):
    import onnxruntime
    start = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
    x = np.load(images, mmap_mode="r")
    for at in range(0, len(x), BATCH):
        session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(x[at:at + BATCH])})
    return time.perf_counter() - start


def pytorch(images, threads):
    import timm
    import torch
    torch.set_num_threads(threads)
    start = time.perf_counter()
    model = timm.create_model("deit_small_patch16_224").eval()
    maps = {}
    for k, block in enumerate(model.blocks):
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, __, out, k=k: maps.__setitem__(k, out.numpy()))
    rows, columns = np.divmod(np.arange(SIDE * SIDE), SIDE)
    distance = PATCH * np.hypot(rows[:, None] - rows[None], columns[:, None] - columns[None]).astype(np.float32)
    x = np.load(images, mmap_mode="r")
    sums = np.zeros((len(model.blocks), 6))
    with torch.no_grad():
        for at in range(0, len(x), BATCH):
            model(torch.from_numpy(np.ascontiguousarray(x[at:at + BATCH])))
            for k, attention in maps.items():
                patches = attention[:, :, 1:, 1:]
                sums[k] += (patches * distance).sum(-1).mean(-1).sum(0)
    assert np.isfinite(sums).all()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offshoot", default="target/release/offshoot")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--do", choices=["bare", "pytorch"], help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        print(globals()[options.do](options.file, options.threads))
        return
    with tempfile.TemporaryDirectory(dir=".cache") as folder:
        few, many = Path(folder) / "few.npy", Path(folder) / "many.npy"
        noise = np.random.default_rng(0)
        np.save(few, noise.standard_normal((options.images, 3, 224, 224), dtype=np.float32))
        np.save(many, noise.standard_normal((4 * options.images, 3, 224, 224), dtype=np.float32))
        ours = lambda file: [options.offshoot, "density", MODEL, "--images", str(file), "--threads", str(options.threads), "--json"]
        theirs = lambda what: [sys.executable, __file__, "--do", what, "--file", str(few), "--threads", str(options.threads)]
        found = {"offshoot density": [], "bare forward, ONNX Runtime": [], "the paper's way, PyTorch": []}
        for turn in range(options.rounds + 1):
            for (name, figures), command in zip(found.items(), [ours(few), theirs("bare"), theirs("pytorch")]):
                run = measured.Measured(command)
                assert run.status == 0, run.err
                if turn:  # the first turn warms the page cache
                    figures.append((run.seconds if name.startswith("offshoot") else float(run.out.splitlines()[-1]), run.anonymous))
        print(f"{options.images} images, {options.threads} threads, load {os.getloadavg()[0]:.1f}\n")
        print("| | seconds | against bare | anonymous MB |\n|---|---:|---:|---:|")
        medians = {name: [statistics.median(c) for c in zip(*figures)] for name, figures in found.items()}
        for name, (seconds, memory) in medians.items():
            print(f"| {name} | {seconds:.2f} | {seconds / medians['bare forward, ONNX Runtime'][0]:.2f} | {memory:.0f} |")
        run = measured.Measured(ours(many))
        print(f"| offshoot density, {4 * options.images} images | {run.seconds:.2f} | | {run.anonymous:.0f} |")


if __name__ == "__main__":
    main()
