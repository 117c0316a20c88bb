# /// script
# requires-python = ">=3.10"
# dependencies = ["torch==2.15.0"]
# ///
"""Measures training of a DeiT on an NVIDIA GPU: `offshoot tune` beside PyTorch, images a second and GPU memory.

    python scripts/bench/cuda_steps.py OFFSHOOT LIBRARY MODEL [--batch 32 128 256] [--precision f32 tf32 fp16 bf16] [--steps 30]

OFFSHOOT is the binary, LIBRARY the shared library of ONNX Runtime with CUDA, MODEL one of scripts/studies/export_deit.py, whose size is read
from its name. The data are random tensors, prepared, so that no picture is decoded. Every measurement is a process of its own: the
steps after the first five, of which the median counts, each of them ended by reading the loss. Memory is the peak of what nvidia-smi
calls used, less what was used before the process began; allocators keep what they once took, and so it stands for what a card must
have. Prints a JSON line a measurement; one that fails is a line with `error`.

PyTorch is measured where torch sees the device: eager, with fused AdamW and scaled_dot_product_attention, in float32, in float32 with
TF32, and under bfloat16 autocast. Needs only the standard library otherwise.
"""

import argparse
import array
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile

WARM_UP = 5
CLASSES = 1000
# Embedding dimension and heads; all have 12 layers, patches of 16 and images of 224 pixels.
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
IMAGE = (3, 224, 224)
PRECISIONS = ["f32", "tf32", "fp16", "bf16"]
# Prepared images are held in memory, 600 kB each.
MOST_IMAGES = 4096


def write_npz(path, images):
    """Random images, all the same, and labels that differ."""
    generator = random.Random(0)
    pixels = 1
    for d in IMAGE:
        pixels *= d
    image = array.array("f", (generator.gauss(0, 1) for _ in range(pixels))).tobytes()
    labels = array.array("q", (generator.randrange(CLASSES) for _ in range(images))).tobytes()
    arrays = {"x": ("<f4", (images, *IMAGE), [image] * images), "y": ("<i8", (images,), [labels])}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, (kind, shape, parts) in arrays.items():
            header = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
            header += b" " * (-(len(header) + 11) % 64) + b"\n"  # with 10 bytes before it a multiple of 64
            with archive.open(name + ".npy", "w", force_zip64=True) as file:
                file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
                for part in parts:
                    file.write(part)


def gpu_memory():
    """MiB in use on the first GPU, or None."""
    query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return None


def watched(command):
    """Runs a command; its output, and the peak of GPU memory above what was in use before."""
    before = gpu_memory()
    peak = before
    ended = threading.Event()

    def watch():
        nonlocal peak
        while not ended.wait(0.1):
            peak = max(peak, gpu_memory() or 0)

    watcher = threading.Thread(target=watch, daemon=True)
    if before is not None:
        watcher.start()
    process = subprocess.run(command, capture_output=True, text=True)
    ended.set()
    if before is not None:
        watcher.join()
    return process, None if before is None else peak - before


def speed(batch, seconds, memory):
    median = statistics.median(seconds[WARM_UP:])
    return {"images_per_second": round(batch / median, 1), "step_ms": round(1000 * median, 2), "gpu_mib": memory}


def offshoot(args, batch, precision, data, folder):
    metrics = os.path.join(folder, "metrics.jsonl")
    command = [args.offshoot, "tune", args.model, "--data", data, "--batch-size", str(batch)]
    command += ["--tf32"] if precision == "tf32" else ["--precision", precision]
    command += ["--epochs", "1", "--steps", str(steps_of(args, batch)), "--val-split", "0", "--augment", "none", "--no-shuffle"]
    command += ["--label-smoothing", "0", "--schedule", "constant", "--warmup", "0", "--lr", "1e-4", "--force"]
    command += ["--metrics", metrics, "-o", os.path.join(folder, "tuned.onnx")]
    command += ["--runtime", "onnxruntime", "--onnxruntime", args.library, "--device", args.device]
    process, memory = watched(command)
    if process.returncode != 0:
        return {"error": process.stderr.strip().splitlines()[-3:]}
    with open(metrics) as lines:
        steps = [line for line in map(json.loads, lines) if "loss" in line]
    return {**speed(batch, [batch / s["images_per_second"] for s in steps], memory), "last_loss": steps[-1]["loss"]}


def pytorch(args, batch, mode):
    own = [sys.executable, __file__, args.offshoot, args.library, args.model, "--device", args.device]
    process, memory = watched([*own, "--batch", str(batch), "--steps", str(steps_of(args, batch)), "--one", mode])
    if process.returncode != 0:
        return {"error": process.stderr.strip().splitlines()[-1:]}
    found = json.loads(process.stdout.splitlines()[-1])
    return {**speed(batch, found.pop("seconds"), memory), **found}


def measure_pytorch(size, batch, steps, mode, device):
    """Seconds of each step, in a process of its own."""
    import torch
    from torch import nn
    from torch.nn.functional import scaled_dot_product_attention

    dim, heads = SIZES[size]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

        def forward(self, x):
            b, n, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
            x = x + self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, dim))
            return x + self.ffn(self.norm2(x))

    class DeiT(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, dim, 16, 16)
            self.token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
            self.position = nn.Parameter(0.02 * torch.randn(1, 197, dim))
            self.blocks = nn.Sequential(*(Block() for _ in range(12)))
            self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, CLASSES)

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
            return self.head(self.norm(self.blocks(x))[:, 0])

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode != "f32"
    model = DeiT().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    loss_function = nn.CrossEntropyLoss()
    # Batches come from the host, as they do in training.
    images, labels = torch.randn(batch, *IMAGE), torch.randint(0, CLASSES, (batch,))
    if device == "cuda":
        images, labels = images.pin_memory(), labels.pin_memory()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        x, y = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=mode == "bf16"):
            loss = loss_function(model(x), y)
        loss.backward()
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - start)
    found = {"seconds": seconds, "torch": torch.__version__, "parameters": sum(p.numel() for p in model.parameters())}
    if device == "cuda":
        found["torch_peak_mib"] = torch.cuda.max_memory_allocated() // 2**20
    return found


def torch_sees(device):
    check = "import sys, torch; sys.exit(not (sys.argv[1] == 'cpu' or torch.cuda.is_available()))"
    return subprocess.run([sys.executable, "-c", check, device], capture_output=True).returncode == 0


def steps_of(args, batch):
    """Measured steps and those before them, as many as the images allow: an epoch's end would write a checkpoint."""
    return min(args.steps + WARM_UP, max(MOST_IMAGES // batch, WARM_UP + 3))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("offshoot", metavar="OFFSHOOT")
    parser.add_argument("library", metavar="LIBRARY")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128, 256])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--steps", type=int, default=30, help="measured steps")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu tries the script itself")
    parser.add_argument("--one", choices=["f32", "tf32", "bf16"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = next((s for s in SIZES if s in os.path.basename(args.model)), None)
    if size is None:
        sys.exit(f"{args.model}: its name says none of {', '.join(SIZES)}")
    if args.one:
        print(json.dumps(measure_pytorch(size, args.batch[0], args.steps, args.one, args.device)))
        return

    has_torch = torch_sees(args.device)
    if not has_torch:
        print(f"PyTorch LEFT OUT: {sys.executable} has no torch that sees {args.device}", file=sys.stderr)
    failed = False
    for batch in args.batch:
        with tempfile.TemporaryDirectory() as folder:
            data = os.path.join(folder, "data.npz")
            write_npz(data, batch * steps_of(args, batch))
            kinds = [("offshoot", p, lambda p=p: offshoot(args, batch, p, data, folder)) for p in args.precision]
            if has_torch:
                kinds += [("pytorch", m, lambda m=m: pytorch(args, batch, m)) for m in ("f32", "tf32", "bf16")]
            for what, precision, measure in kinds:
                found = measure()
                failed |= "error" in found
                print(json.dumps({"what": what, "precision": precision, "batch": batch, **found}), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
