# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "onnx==1.23.2", "onnxruntime==1.32.0", "onnxscript==0.7.2", "torch==2.15.0"]
# ///
"""Trains models/fashion-vit.onnx, the small ancestor that the tests and the examples use, and exports it.

A Vision Transformer of 8 layers with 8 heads of 8 channels (0.4 M parameters, 1.6 MB) on the 60 000 training images of
Fashion-MNIST, on one CPU core in about 45 minutes. Exports after every epoch, so the file is there early. The accuracy that it
prints is that of the exported file in ONNX Runtime, on all 10 000 test images.

    scripts/fetch/models.sh --fashion-mnist
    OMP_NUM_THREADS=1 python scripts/studies/train_ancestor.py

With --epochs 0 it exports the model as it starts, which `offshoot tune` can train by the same recipe (docs/benchmarks.md).

Needs torch, onnx, onnxruntime, onnxscript and numpy. Where a run was interrupted, --resume goes on from its last epoch.
"""

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from torch import nn

MEAN, STD = 0.2860, 0.3530
PREPROCESS = (
    '{"size":[28,28],"channels":1,"mean":[0.2860],"std":[0.3530],'
    '"crop_ratio":1.0,"interpolation":"bicubic","resize":"short-side"}'
)
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attention = torch.softmax(torch.matmul(q * self.scale, k.transpose(-2, -1)), dim=-1)
        return self.proj(torch.matmul(attention, v).transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.up, self.down = nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, depth=8, dim=64, heads=8, hidden=256, patch=4, image=28, classes=10):
        super().__init__()
        grid = image // patch
        self.patch = nn.Conv2d(1, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.position = nn.Parameter(torch.cat([torch.randn(1, 1, dim) * 0.02, sines(grid, dim)], dim=1))
        self.blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02 if module is self.head else module.in_features**-0.5 * 0.7)
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            diversify(block.attention)
            nn.init.trunc_normal_(block.down.weight, std=hidden**-0.5 * 0.3)

    def forward(self, image):
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def sines(grid, dim):
    """The position embedding starts as sines of the row and the column; it is learned like every other weight."""
    frequency = 1 / 30 ** (torch.arange(dim // 4) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (y, x)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).unsqueeze(0) * 0.5


def diversify(attention):
    """Heads start different: from keys that have nothing to do with the queries (a wide view) to keys equal to the queries (a token
    looks at what resembles it, hence at its neighbours), and from flat to sharp, in an order of its own in every layer."""
    dim, heads = attention.proj.in_features, attention.heads
    q, k, _ = attention.qkv.weight.data.view(3, heads, dim // heads, dim).unbind(0)
    for head, place in enumerate(torch.randperm(heads).tolist()):
        likeness = place / (heads - 1)
        gain = 0.7 + 1.6 * likeness
        q[head] *= gain
        k[head] = likeness * q[head] + math.sqrt(1 - likeness**2) * gain * k[head]


def idx(path):
    raw = path.read_bytes()
    rank = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def augment(images, generator):
    """Random crop out of two pixels of padding, and a random flip."""
    n = len(images)
    padded = F.pad(images, (2, 2, 2, 2))
    offset = torch.randint(0, 5, (2, n), generator=generator)
    rows = offset[0].view(n, 1, 1) + torch.arange(28).view(1, 28, 1)
    columns = torch.arange(28).repeat(n, 1)
    flip = torch.rand(n, generator=generator) < 0.5
    columns[flip] = columns[flip].flip(1)
    columns = (offset[1].view(n, 1) + columns).view(n, 1, 28)
    return padded[torch.arange(n).view(n, 1, 1), rows, columns]


def normalise(images):
    return ((images.float() / 255 - MEAN) / STD).unsqueeze(1)


def export(model, path, mode=torch.onnx.TrainingMode.EVAL):
    """TorchScript exporter, opset 17, dynamic batch, the preprocessing and the class names as metadata. Replaces the file at once.

    In the mode TRAINING, equal weights of different layers (biases that are still zero) stay apart; nothing else differs here."""
    model = copy.deepcopy(model).eval()
    part = path.with_name(path.name + ".tmp")
    torch.onnx.export(
        model, (torch.zeros(2, 1, 28, 28),), str(part), dynamo=False, opset_version=17,
        training=mode, input_names=["image"], output_names=["logits"], dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
    )
    proto = onnx.load(part)
    for key, value in (("offshoot.preprocess", PREPROCESS), ("offshoot.classes", json.dumps(CLASSES, separators=(",", ":")))):
        proto.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, part)
    os.replace(part, path)


def accuracy(path, images, labels):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    logits = [session.run(None, {"image": normalise(part).numpy()})[0] for part in torch.from_numpy(images.copy()).split(500)]
    return float((np.concatenate(logits).argmax(1) == labels).mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(".cache/fashion-mnist"), help="folder of the four IDX files")
    parser.add_argument("--output", type=Path, default=Path("models/fashion-vit.onnx"))
    parser.add_argument("--checkpoint", type=Path, default=Path(".cache/fashion-vit.pt"))
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, help="stop every epoch after so many steps (to try the script)")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images = torch.from_numpy(idx(args.data / "train-images-idx3-ubyte").copy())
    labels = torch.from_numpy(idx(args.data / "train-labels-idx1-ubyte").copy()).long()
    test_images, test_labels = idx(args.data / "t10k-images-idx3-ubyte"), idx(args.data / "t10k-labels-idx1-ubyte")

    model = ViT()
    average = copy.deepcopy(model)  # exponential moving average of the weights: this is what is exported
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": args.decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98), fused=True)
    per_epoch = min(len(images) // args.batch, args.steps or len(images))
    total, warmup, step, first = args.epochs * per_epoch, per_epoch // 2, 0, 0
    if args.resume:
        state = torch.load(args.checkpoint)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])
        step, first = state["step"], state["epoch"] + 1
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {args.epochs} epochs of {per_epoch} steps", flush=True)

    if args.epochs == 0:
        export(model, args.output, torch.onnx.TrainingMode.TRAINING)
    for epoch in range(first, args.epochs):
        start, losses = time.time(), []
        order = torch.randperm(len(images), generator=generator)
        for batch in order[: per_epoch * args.batch].split(args.batch):
            rate = args.rate * min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / (total - warmup)))
            for group in optimiser.param_groups:
                group["lr"] = max(rate, 1e-6)
            with torch.autocast("cpu", torch.bfloat16):  # twice as fast; the weights stay 32-bit
                logits = model(normalise(augment(images[batch], generator)))
            loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            step += 1
            keep = min(0.999, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
            losses.append(loss.item())
            if step % 100 == 0:
                print(f"  step {step}/{total}: loss {np.mean(losses[-100:]):.4f}, {(time.time() - start) / len(losses):.3f} s a step", flush=True)
        args.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {"model": model.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save({**state, "generator": generator.get_state(), "step": step, "epoch": epoch}, args.checkpoint)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        export(average, args.output)
        percent = 100 * accuracy(args.output, test_images, test_labels)
        print(f"epoch {epoch + 1}/{args.epochs}: loss {np.mean(losses):.4f}, test accuracy {percent:.2f} %, {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
