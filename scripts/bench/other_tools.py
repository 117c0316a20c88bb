# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "numpy==2.5.5",
#     "onnx-graphsurgeon==0.6.1",
#     "onnx==1.23.2",
#     "onnxruntime==1.32.0",
#     "onnxsim==0.8.1",
#     "onnxslim==0.1.98",
#     "pillow==13.0.0",
# ]
# ///
"""Times `inspect`, `grow` and `condense` beside Python onnx, onnx-graphsurgeon, onnxsim and OnnxSlim doing comparable work.

    python scripts/studies/export_deit.py base && python scripts/studies/export_deit.py large --external && cargo build --release
    python -m venv .cache/tools && .cache/tools/bin/pip install onnx onnxsim onnxslim onnx-graphsurgeon onnxruntime pillow
    .cache/tools/bin/python scripts/bench/other_tools.py [MODEL ...] [--offshoot target/release/offshoot] [--rounds 3]

Every measurement is a process of its own, which writes a new file; all take turns, and the table has the medians. Memory is the peak of anonymous pages (RssAnon) and of all
resident pages (VmHWM), which count the mapped model too. What each does:

- inspect: Offshoot types the graph and reads the anatomy; the others load the model and count operators and parameters, as far as each goes.
- grow: half the FFN neurons. Python onnx and graphsurgeon cut the matrices by names that were looked up by hand beforehand; onnxsim prunes; OnnxSlim
  cannot prune and writes its optimised model.
- condense: 4 photographs. Beside it Python onnx and ONNX Runtime: every Softmax made an output, run, mean attention distances, the model written. The
  bare forward pass of ONNX Runtime, session and start of Python included, is what neither can do without.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("lib",)]

import measured

PHOTOGRAPHS = ".cache/photographs"  # scripts/fetch/models.sh


# What the other tools do; each runs in a process of its own.


def counted(initializers):
    import math
    return sum(math.prod(t.dims) for t in initializers)


def inspect_onnx(model, _):
    import onnx
    graph = onnx.load(model).graph
    print(len(graph.node), counted(graph.initializer))


def inspect_graphsurgeon(model, _):
    import math

    import onnx
    import onnx_graphsurgeon as gs
    graph = gs.import_onnx(onnx.load(model))
    print(len(graph.nodes), sum(math.prod(t.shape) for t in graph.tensors().values() if isinstance(t, gs.Constant)))


def inspect_onnxsim(model, _):
    import onnx
    from onnxsim import model_info
    print(model_info.ModelInfo(onnx.load(model)))


def inspect_onnxslim(model, _):
    from onnxslim.utils import summarize_model
    print(summarize_model(model, "model").op_type_counts)


def ffn_matrices(graph):
    """Names of the matrices and biases of FFNs of a plain Vision Transformer: [d, 4d] with its bias, and [4d, d] behind it."""
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    adds = {x: n for n in graph.node if n.op_type == "Add" for x in n.input}
    for n in graph.node:
        shape = shapes.get(n.input[1]) if n.op_type == "MatMul" else None
        if shape and shape[1] == 4 * shape[0]:
            yield n.input[1], 1
            yield next(x for x in adds[n.output[0]].input if x in shapes), 0
        elif shape and shape[0] == 4 * shape[1]:
            yield n.input[1], 0


def grow_onnx(model, out):
    import numpy as np
    import onnx
    from onnx import numpy_helper
    proto = onnx.load(model)
    held = {t.name: t for t in proto.graph.initializer}
    for name, axis in ffn_matrices(proto.graph):
        value = numpy_helper.to_array(held[name])
        half = np.ascontiguousarray(np.take(value, range(value.shape[axis] // 2), axis))
        held[name].CopyFrom(numpy_helper.from_array(half, name))
    onnx.save(proto, out)


def grow_graphsurgeon(model, out):
    import numpy as np
    import onnx
    import onnx_graphsurgeon as gs
    proto = onnx.load(model)
    wanted = dict(ffn_matrices(proto.graph))
    graph = gs.import_onnx(proto)
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant) and tensor.name in wanted:
            axis = wanted[tensor.name]
            tensor.values = np.ascontiguousarray(np.take(tensor.values, range(tensor.values.shape[axis] // 2), axis))
    graph.cleanup()
    onnx.save(gs.export_onnx(graph), out)


def grow_onnxsim(model, out):
    import onnx
    import onnxsim
    onnx.save(onnxsim.apply_structured_pruning(onnx.load(model), sparsity=0.5), out)


def grow_onnxslim(model, out):
    import onnxslim
    onnxslim.slim(model, out)


def condense_python(model, out):
    import numpy as np
    import onnx
    import onnxruntime
    from PIL import Image
    proto = onnx.load(model)
    outputs = [n.output[0] for n in proto.graph.node if n.op_type == "Softmax"]
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    for name in outputs:
        probe.graph.output.add(name=name)
    with tempfile.TemporaryDirectory(dir=Path(out).parent) as folder:
        path = f"{folder}/probe.onnx"
        onnx.save(probe, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        images = []
        for file in photographs():
            image = Image.open(file).convert("RGB").resize((224, 224), Image.BICUBIC)
            images.append((np.asarray(image, np.float32) / 255 - 0.45) / 0.225)
        maps = session.run(outputs, {session.get_inputs()[0].name: np.stack(images).transpose(0, 3, 1, 2)})
    side = 14
    at = np.stack(np.divmod(np.arange(side * side), side), 1) * 16.0
    distance = np.linalg.norm(at[:, None] - at[None], axis=-1)
    for m in maps:
        print((m[:, :, 1:, 1:] * distance).sum(-1).mean((0, 2)))
    onnx.save(proto, out)


def forward_python(model, _):
    """What any way to measure densities has to do at least: the session and the forward pass, of what is no image."""
    import numpy as np
    import onnxruntime
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: np.zeros((4, 3, 224, 224), np.float32)})


def photographs():
    return sorted(p for p in Path(PHOTOGRAPHS).iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))[:4]


# The measurement.


def measure(command, folder):
    """Seconds, peak of anonymous and of resident memory in MB; or why there are none."""
    # What the process before this one has written is not this one's to replace, which file systems write out at once, or to wait for.
    for written in folder.glob("*.onnx*"):
        written.unlink()
    os.sync()
    run = measured.Measured(command)
    if run.status:
        said = [line for line in run.err.strip().splitlines() if line.strip()]
        return None, said[-1] if said else f"status {run.status}"
    return (run.seconds, run.anonymous, run.resident), None


def commands(offshoot, model, folder):
    other = lambda task, out=None: [sys.executable, __file__, "--do", task, model, out or "-"]
    to = lambda name: str(folder / name)
    images = folder / "photographs"
    images.mkdir(exist_ok=True)
    for p in photographs():
        shutil.copy(p, images)
    ours = lambda *arguments: [offshoot, *arguments]
    return {
        "inspect": [("Offshoot", ours("inspect", model)), ("Python onnx", other("inspect_onnx")), ("onnx-graphsurgeon", other("inspect_graphsurgeon")),
                    ("onnxsim", other("inspect_onnxsim")), ("OnnxSlim", other("inspect_onnxslim"))],
        "grow, half the FFN": [("Offshoot", ours("grow", model, "--no-images", "--ffn-width", "50%", "-o", to("a.onnx"))),
                               ("Python onnx", other("grow_onnx", to("b.onnx"))), ("onnx-graphsurgeon", other("grow_graphsurgeon", to("c.onnx"))),
                               ("onnxsim", other("grow_onnxsim", to("d.onnx"))), ("OnnxSlim, writes all", other("grow_onnxslim", to("e.onnx")))],
        "condense, 4 photographs": [("Offshoot", ours("condense", model, "--images", str(images), "-o", to("f.onnx"))),
                                    ("Python onnx, ONNX Runtime", other("condense_python", to("g.onnx"))),
                                    ("bare forward pass, ONNX Runtime", other("forward_python"))],
        "the disk": [("cp", ["cp", "--reflink=never", *([str(p) for p in (Path(model), Path(f"{model}.data")) if p.exists()]), str(folder)])],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[".cache/deit-base.onnx", ".cache/vit-large.onnx"])
    parser.add_argument("--offshoot", default="target/release/offshoot")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--do", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        globals()[options.do](*options.models)
        return
    for model in options.models:
        bytes_of = sum(p.stat().st_size for p in Path(model).parent.glob(Path(model).name + "*"))
        print(f"\n{model}, {bytes_of / 1e6:.0f} MB, load {os.getloadavg()[0]:.1f}\n")
        print("| work | tool | seconds | times Offshoot | anonymous MB | resident MB |\n|---|---|---:|---:|---:|---:|")
        with tempfile.TemporaryDirectory(dir=Path(model).parent) as folder:
            for work, tools in commands(options.offshoot, model, Path(folder)).items():
                found, reasons = {name: [] for name, _ in tools}, {}
                for turn in range(options.rounds + 1):
                    for name, command in tools:
                        if name in reasons:
                            continue
                        figures, reason = measure(command, Path(folder))
                        if reason:
                            reasons[name] = reason
                        elif turn:  # the first turn warms the page cache
                            found[name].append(figures)
                first = None
                for name, _ in tools:
                    if name in reasons:
                        print(f"| {work} | {name} | failed: {reasons[name][:150]} | | | |", flush=True)
                        continue
                    seconds, anonymous, resident = (statistics.median(column) for column in zip(*found[name]))
                    first = first or seconds
                    print(f"| {work} | {name} | {seconds:.3f} | {seconds / first:.1f} | {anonymous:.0f} | {resident:.0f} |", flush=True)


if __name__ == "__main__":
    main()
