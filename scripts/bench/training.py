# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "numpy==2.5.5",
#     "onnx==1.23.2",
#     "onnxruntime==1.32.0",
#     "onnxsim==0.8.1",
#     "timm==1.0.31",
#     "torch==2.15.0",
# ]
# ///
"""Measures training steps: forward, backward and AdamW on random images, in single precision, of Offshoot, PyTorch and onnxsim.

    python scripts/studies/export_deit.py tiny small && cargo bench --bench training --no-run
    python scripts/bench/training.py [--model fashion tiny small] [--mode offshoot recompute standard fused foreach compile onnxsim] [--threads 2] [--steps 8]
                                     [--rounds 3] [--offshoot target/release/deps/training-HASH] [--onnxsim python] [--json]

Every measurement is a process of its own, so that the peak of its memory (VmHWM) is its own too, and the modes take turns. `offshoot` is the
program of `cargo bench --bench training` with fused operators, `recompute` that with values of layers computed again, `standard` that with
standard operators alone, `fused` and `foreach` are eager PyTorch with that form of AdamW, `compile` is
torch.compile with the fused one, and `onnxsim` its compiled training loop (Adam, all matrices, biases and norms trained), which its own
simplification goes before. Prints a table, or with --json one line a process: seconds of the first step, which may compile, of the fastest and of
the median one, peak memory in MiB, and the load of the machine before it. Batches: 64 images for the bundled ancestor, 16 for DeiT-tiny, 8 for
DeiT-small (those at 224 pixels). Needs torch and timm.
"""

import argparse
import glob
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

BATCH = {"fashion": 64, "tiny": 16, "small": 8, "base": 4}
FILE = {"fashion": "models/fashion-vit.onnx", **{size: f".cache/deit-{size}.onnx" for size in ("tiny", "small", "base")}}
IMAGE = {"fashion": (1, 28, 28)}
WARM_UP = 2
NAMES = {"offshoot": "**Offshoot, fused operators**", "standard": "Offshoot, standard operators", "recompute": "Offshoot, fused, `--recompute`",
         "fused": "PyTorch eager, fused AdamW", "foreach": "PyTorch eager, foreach AdamW", "compile": "torch.compile", "onnxsim": "onnxsim's compiled loop"}


def memory():
    with open("/proc/self/status") as status:
        return round(next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")))


def figures(seconds):
    return {"first": round(seconds[0], 4), "fastest": round(min(seconds[WARM_UP:]), 4), "median": round(statistics.median(seconds[WARM_UP:]), 4),
            "peak_mib": memory()}


def offshoot(program, size, mode, steps):
    forms = {"offshoot": ["fused"], "recompute": ["fused", "recompute"], "standard": ["standard"]}
    run = subprocess.run([program, FILE[size], str(BATCH[size]), str(steps), *forms[mode]], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(run.stderr)
    line = json.loads(run.stdout.splitlines()[-1])
    return {"fastest": line["fastest_ms"] / 1e3, "median": line["median_ms"] / 1e3, "peak_mib": round(line["peak_bytes"] / 2**20)}


def onnxsim_loop(size, threads, steps):
    """onnxsim's loop takes a graph of fixed shape that ends in a scalar loss."""
    import numpy as np
    import onnx
    import onnxruntime
    import onnxsim
    from onnx import TensorProto, helper, numpy_helper
    options = onnxruntime.SessionOptions
    onnxruntime.SessionOptions = lambda: (made := options(), setattr(made, "intra_op_num_threads", threads))[0]
    batch, proto = BATCH[size], onnx.load(FILE[size])
    image, logits = proto.graph.input[0].name, proto.graph.output[0].name
    shape = [batch, *IMAGE.get(size, (3, 224, 224))]
    proto, _ = onnxsim.simplify(proto, overwrite_input_shapes={image: shape})
    graph = proto.graph
    for node in [n for n in graph.node if n.op_type == "Constant"]:  # for which it has no rule
        node.attribute[0].t.name = node.output[0]
        graph.initializer.append(node.attribute[0].t)
        graph.node.remove(node)
    classes = graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    graph.input.append(helper.make_tensor_value_info("targets", TensorProto.FLOAT, [batch, classes]))
    graph.initializer.append(numpy_helper.from_array(np.float32(-1 / batch), "share"))
    graph.node.extend([
        helper.make_node("Softmax", [logits], ["shares"], axis=-1),
        helper.make_node("Log", ["shares"], ["log"]),
        helper.make_node("Mul", ["log", "targets"], ["own"]),
        helper.make_node("ReduceSum", ["own"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "share"], ["loss"]),
    ])
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("loss", TensorProto.FLOAT, []))
    trained = [t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT and t.dims]
    loop = onnxsim.compile_training_loop(proto, "loss", trained, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feeds = {image: random.standard_normal(shape, dtype=np.float32), "targets": np.eye(classes, dtype=np.float32)[random.integers(0, classes, batch)]}
    seconds = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        loss = loop(feeds, 1e-4)
        seconds.append(time.perf_counter() - start)
    assert np.isfinite(loss)
    return {**figures(seconds), "onnxsim": onnxsim.__version__}


def measure(size, mode, threads, steps):
    if mode == "onnxsim":
        return onnxsim_loop(size, threads, steps)
    import timm
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if size == "fashion":
        sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("studies",)]
        import train_ancestor
        model = train_ancestor.ViT().train()
    else:
        model = timm.create_model(f"deit_{size}_patch16_224", pretrained=False).train()
    form = {"foreach": True} if mode == "foreach" else {"fused": True}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, **form)
    forward = torch.compile(model) if mode == "compile" else model
    images = torch.randn(BATCH[size], *IMAGE.get(size, (3, 224, 224)))
    labels = torch.randint(0, 10 if size == "fashion" else 1000, (BATCH[size],))
    loss_function = torch.nn.CrossEntropyLoss()
    seconds = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss_function(forward(images), labels).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return {**figures(seconds), "torch": torch.__version__}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=BATCH, default=["fashion", "tiny", "small"])
    parser.add_argument("--mode", nargs="+", choices=NAMES, default=[m for m in NAMES if m != "foreach"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="measured steps of a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind, in turn")
    parser.add_argument("--offshoot", default=max(glob.glob("target/release/deps/training-*[0-9a-f]"), key=os.path.getmtime, default=None))
    parser.add_argument("--onnxsim", default=sys.executable, help="Python that has onnxsim and onnxruntime")
    parser.add_argument("--json", action="store_true", help="one line a process instead of a table")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.model[0], args.mode[0], args.threads, args.steps)))
        return
    found = {}
    for _ in range(args.rounds):
        for size in args.model:
            for mode in args.mode:
                load = round(os.getloadavg()[0], 2)
                figures = apart(size, mode, args)
                found.setdefault((size, mode), []).append(figures)
                if args.json:
                    line = {"model": size, "batch": BATCH[size], "mode": mode, "threads": args.threads, "load": load, **figures}
                    print(json.dumps(line), flush=True)
    if not args.json:
        table(found, args)


def apart(size, mode, args):
    """The figures of one process."""
    if mode in ("offshoot", "recompute", "standard"):
        return offshoot(args.offshoot, size, mode, args.steps)
    own = ["--one", "--model", size, "--mode", mode, "--threads", str(args.threads), "--steps", str(args.steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    python = args.onnxsim if mode == "onnxsim" else sys.executable
    run = subprocess.run([python, __file__, *own], capture_output=True, text=True, env=environment)
    if run.returncode != 0:
        return {"failed": run.stderr.strip().splitlines()[-1]}
    return json.loads(run.stdout.splitlines()[-1])


def table(found, args):
    """Median and fastest milliseconds of the processes of a kind, how many times the first mode's median that is, and peak memory."""
    print("| |" + "".join(f" {size}, batch {BATCH[size]} |" for size in args.model) + "\n|---|" + "---:|" * len(args.model))
    for mode in args.mode:
        cells = []
        for size in args.model:
            runs = found[size, mode]
            if failed := [r["failed"] for r in runs if "failed" in r]:
                cells.append(f"failed: {failed[0][:80]}")
                continue
            median, first = (statistics.median(r["median"] for r in found[size, m] if "median" in r) for m in (mode, args.mode[0]))
            fastest, memory = min(r["fastest"] for r in runs), max(r["peak_mib"] for r in runs)
            cells.append(f"{1e3 * median:.0f} ({1e3 * fastest:.0f}) ms, {median / first:.2f}, {memory} MB")
        print(f"| {NAMES[mode]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
