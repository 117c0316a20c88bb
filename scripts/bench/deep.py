# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "onnx==1.23.2"]
# ///
"""Times `inspect` and `grow` against the number of nodes: ViTs of 16 features and 17, 68, 340 and 1,700 layers.

    python scripts/bench/deep.py OLD NEW [--limit 120] [--layers 17 68 340 1700]

OLD and NEW are binaries. Prints a Markdown table of processor seconds, one run each, in turn; a run of more than `--limit` seconds is said.
"""

import argparse
import resource
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

WIDTH, HEADS, FFN = 16, 2, 32


def vit(layers, path):
    """Writes a ViT with random weights, as TorchScript would, and gives its number of nodes."""
    random = np.random.default_rng(0)
    nodes, weights = [], []

    def weight(name, *shape):
        weights.append(numpy_helper.from_array((random.standard_normal(shape) * 0.1).astype(np.float32), name))
        return name

    def constant(name, value, kind):
        weights.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def add(op, inputs, name, **attributes):
        nodes.append(helper.make_node(op, inputs, [name], name=f"{name}_node", **attributes))
        return name

    x = add("Conv", ["x", weight("patch", WIDTH, 3, 4, 4), weight("patch.bias", WIDTH)], "patches", kernel_shape=[4, 4], strides=[4, 4])
    x = add("Reshape", [x, constant("flat", [0, WIDTH, -1], np.int64)], "rows")
    x = add("Transpose", [x], "tokens", perm=[0, 2, 1])
    x = add("Add", [x, weight("positions", 1, 16, WIDTH)], "placed")
    constant("packed", [0, 0, 3, HEADS, WIDTH // HEADS], np.int64)
    constant("joined", [0, 0, WIDTH], np.int64)
    for i in range(3):
        constant(f"part{i}", i, np.int64)
    for name, value in ("scale", (WIDTH // HEADS) ** -0.5), ("root", 2**0.5), ("one", 1.0), ("half", 0.5):
        constant(name, value, np.float32)
    for layer in range(layers):
        own = f"layer{layer}."

        def linear(y, name, rows, columns):
            y = add("MatMul", [y, weight(f"{own}{name}", rows, columns)], f"{own}{name}.product")
            return add("Add", [y, weight(f"{own}{name}.bias", columns)], f"{own}{name}.sum")

        def norm(y, name):
            return add("LayerNormalization", [y, weight(f"{own}{name}", WIDTH), weight(f"{own}{name}.bias", WIDTH)], f"{own}{name}.norm", axis=-1)

        y = linear(norm(x, "norm1"), "qkv", WIDTH, 3 * WIDTH)
        y = add("Reshape", [y, "packed"], f"{own}heads")
        y = add("Transpose", [y], f"{own}apart", perm=[2, 0, 3, 1, 4])
        q, k, v = (add("Gather", [y, f"part{i}"], f"{own}part{i}", axis=0) for i in range(3))
        scores = add("MatMul", [q, add("Transpose", [k], f"{own}keys", perm=[0, 1, 3, 2])], f"{own}scores")
        weighed = add("Softmax", [add("Mul", [scores, "scale"], f"{own}scaled")], f"{own}softmax", axis=-1)
        y = add("Transpose", [add("MatMul", [weighed, v], f"{own}values")], f"{own}back", perm=[0, 2, 1, 3])
        y = add("Reshape", [y, "joined"], f"{own}attended")
        x = add("Add", [x, linear(y, "projection", WIDTH, WIDTH)], f"{own}first")
        y = linear(norm(x, "norm2"), "up", WIDTH, FFN)
        e = add("Erf", [add("Div", [y, "root"], f"{own}divided")], f"{own}erf")
        y = add("Mul", [y, add("Add", [e, "one"], f"{own}raised")], f"{own}gated")
        x = add("Add", [x, linear(add("Mul", [y, "half"], f"{own}gelu"), "down", FFN, WIDTH)], f"{own}second")
    add("LayerNormalization", [x, weight("norm", WIDTH), weight("norm.bias", WIDTH)], "y", axis=-1)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "vit", [info("x", 1, ["batch", 3, 16, 16])], [info("y", 1, ["batch", 16, WIDTH])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return len(nodes)


def seconds(command, limit):
    """Processor seconds of a command that succeeds within the limit."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"over {limit:g}"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return f"{after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binaries", nargs=2, metavar=("OLD", "NEW"))
    parser.add_argument("--limit", type=float, default=120)
    parser.add_argument("--layers", type=int, nargs="+", default=[17, 68, 340, 1700])
    options = parser.parse_args()
    print("| layers | nodes | `inspect` before | now | `grow` before | now |\n|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        model, child = Path(folder) / "model.onnx", Path(folder) / "child.onnx"
        flags = ["--no-images", "--no-verify", "--heads", "1", "--ffn-width", "50%", "--force", "-o", str(child)]
        for layers in options.layers:
            nodes = vit(layers, model)
            runs = [["inspect", str(model), "--json"], ["grow", str(model), *flags]]
            times = [seconds([binary, *run], options.limit) for run in runs for binary in options.binaries]
            print(f"| {layers} | {nodes:,} | {' | '.join(times)} |", flush=True)


if __name__ == "__main__":
    main()
