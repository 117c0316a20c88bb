"""Trains with a step graph that `offshoot tune MODEL --data D --emit-step STEP.onnx` wrote. Needs onnxruntime and numpy.

    python train_step.py STEP.onnx --data DATA.npz [--steps 100] [--lr 5e-4] [-o TRAINED.npz]
    python train_step.py STEP.onnx --pseudo-random --steps 5

STEP.json and STEP.safetensors stand beside STEP.onnx: what its inputs and outputs mean, and the weights before the first step.
DATA.npz holds `x`, prepared images (float32 [images, channels, height, width]), and `y`, their classes (integers). Batches follow
one another in the order of the data; images that do not fill the last batch are left out. Prints a JSON line a step with the loss
before the update, and writes the trained weights under the names of the model's initializers.

`--pseudo-random` trains on one batch of made-up images instead, the one that train_step.c makes.
"""

import argparse
import itertools
import json
import os
import sys

import numpy as np
import onnxruntime

# What `--emit-step` takes without `--betas`.
BETA1, BETA2 = 0.9, 0.999


def read_safetensors(path):
    """The tensors of a safetensors file: the length of its header (8 bytes, little endian), the header (JSON), then the values."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        values = file.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "F32":
            sys.exit(f"{path}: {name} is {entry['dtype']}; the state of a step graph is F32")
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(values[begin:end], "<f4").reshape(entry["shape"])
    return tensors


def batches_of(path, shape, classes):
    """Batches of images and target distributions of an .npz, without end."""
    with np.load(path) as data:
        x, y = data["x"], data["y"].astype(np.int64)
    size = shape[0]
    if list(x.shape[1:]) != shape[1:]:
        sys.exit(f"{path}: x has images of {list(x.shape[1:])}, and the step graph takes {shape[1:]}")
    if x.dtype != np.float32 or len(x) != len(y) or len(x) < size:
        sys.exit(f"{path}: x must be float32, and x and y must hold the same number of images, {size} or more")
    if y.min() < 0 or y.max() >= classes:
        sys.exit(f"{path}: y holds classes from {y.min()} to {y.max()}, and the model has {classes}")
    targets = np.eye(classes, dtype=np.float32)[y]
    for i in itertools.cycle(range(len(x) // size)):
        part = slice(i * size, (i + 1) * size)
        yield x[part], targets[part]


def pseudo_random(shape, classes):
    """The same batch again and again, from a linear congruential generator; train_step.c has the same one."""
    state = 1

    def draw():
        nonlocal state
        state = (1664525 * state + 1013904223) % 2**32
        return state >> 8

    pixels = [draw() / 2**23 - 1 for _ in range(np.prod(shape))]
    images = np.array(pixels, np.float32).reshape(shape)
    targets = np.eye(classes, dtype=np.float32)[[draw() % classes for _ in range(shape[0])]]
    return itertools.repeat((images, targets))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", help="STEP.onnx")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", help="DATA.npz")
    source.add_argument("--pseudo-random", action="store_true")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=5e-4, help="learning rate")
    parser.add_argument("-o", "--output", help="TRAINED.npz")
    args = parser.parse_args()

    beside = os.path.splitext(args.step)[0]
    with open(beside + ".json") as file:
        description = json.load(file)
    initial = read_safetensors(beside + ".safetensors")
    session = onnxruntime.InferenceSession(args.step, providers=["CPUExecutionProvider"])
    value = onnxruntime.OrtValue.ortvalue_from_numpy

    # What is fed at every step: images, targets and the scalars of AdamW.
    shapes = {port["name"]: port["shape"] for port in description["inputs"]}
    fed = {"targets", "learning_rate", "first_moment_correction", "second_moment_correction"}
    others = [name for name in shapes if name not in fed]
    if len(others) != 1 or not fed <= set(shapes):
        sys.exit(f"{args.step}: this example feeds images and {sorted(fed)}, and the graph takes {list(shapes)}")
    image, classes = others[0], shapes["targets"][1]
    source = batches_of(args.data, shapes[image], classes) if args.data else pseudo_random(shapes[image], classes)

    # What is carried from step to step.
    state = {}
    for tensor in description["state"]:
        start = initial[tensor["name"]] if tensor["initial"] is not None else np.zeros(tensor["shape"], np.float32)
        state[tensor["name"]] = value(start)
    outputs = ["loss"] + [tensor["next"] for tensor in description["state"]]

    for step, (images, targets) in zip(range(1, args.steps + 1), source):
        feeds = {
            image: images,
            "targets": targets,
            "learning_rate": np.float32(args.lr),
            "first_moment_correction": np.float32(1 / (1 - BETA1**step)),
            "second_moment_correction": np.float32(1 / (1 - BETA2**step) ** 0.5),
        }
        feeds = {name: value(np.ascontiguousarray(array)) for name, array in feeds.items()}
        loss, *after = session.run_with_ort_values(outputs, {**feeds, **state})
        state = dict(zip(state, after))
        print(json.dumps({"step": step, "loss": float(loss.numpy())}), flush=True)

    if args.output:
        weights = [tensor["name"] for tensor in description["state"] if tensor["initial"] is not None]
        np.savez(args.output, **{name: state[name].numpy() for name in weights})


if __name__ == "__main__":
    main()
