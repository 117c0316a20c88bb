# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "numpy==2.5.5",
#     "onnx==1.23.2",
#     "onnxruntime==1.32.0",
#     "safetensors==0.8.0",
#     "timm==1.0.31",
#     "torch==2.15.0",
#     "torchvision==0.29.2",
#     "transformers==5.23.0",
# ]
# ///
"""Makes fixtures/gradients/golden.json: PyTorch's gradients of every fixture model, to compare Offshoot's with.

    OMP_NUM_THREADS=1 python scripts/golden/gradient.py [NAME ...]

Each fixture's model is rebuilt as scripts/fixtures/graphs.py built it (same seeds; the outputs of graph and model are compared), and
differentiated in float64. The loss is the sum of all outputs, each element times a pseudo-random weight; input and weights come from
an integer hash (`values`) that the Rust test computes too.

What a graph holds is mapped to parameters by value: the weights are random, so an element of an initializer that equals an element of
a parameter is that element. This covers transposed, packed, split and renamed weights, and tables that the exporter gathered into
place (`table[index]`). The golden file holds, for each initializer whose elements each are a different element of the parameters, the
norm of the gradient and its dot products with three vectors of ±1 (`signs`); elements that are no parameter's (the zeros of a packed
bias) are given as `holes` and left out. Parameters that an exporter gathered into place stand under `folds`, with the index of the
parameter's element for each element of the initializer: there the initializer's gradient is added up first. What cannot be mapped is
listed under `unmapped` with its reason.

The fixtures hf4-* need transformers 4, as scripts/fixtures/graphs.py says; the other entries of the file stay as they are.
"""

import argparse
import json
import sys
import zlib
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("lib", "fixtures")]

import graphs
from hashed import hashes, values
import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from onnx import numpy_helper

INPUT, OUTPUT, SIGNS = 1, 100, 200  # seeds; outputs and vectors of signs count on from there


def signs(count, seed):
    return 1.0 - 2.0 * (hashes(count, seed) >> 31).astype(np.float64)


def outputs_of(result):
    result = result if isinstance(result, tuple) else tuple(result.values()) if isinstance(result, dict) else (result,)
    return [o for o in result if o is not None]


def summary(gradient):
    gradient = gradient.ravel()
    return {"norm": float(f"{np.linalg.norm(gradient):.9g}"), "dots": [float(f"{signs(len(gradient), SIGNS + k) @ gradient:.9g}") for k in range(3)]}


def tensors(graph):
    """Initializers and tensors of Constant nodes that the graph uses, as float32."""
    for t in graph.initializer:
        yield t.name, numpy_helper.to_array(t)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            yield node.output[0], numpy_helper.to_array(node.attribute[0].t)


def rebuilt(file, options, builder):
    """The model of a fixture, as scripts/fixtures/graphs.py built it, and what it says of itself."""
    seed = zlib.crc32(file.encode())
    torch.manual_seed(seed)
    model, facts = builder()
    model.eval()
    graphs.scramble(model, seed)
    return graphs.Resized(model) if options.get("dynamic_size") else model, facts


def golden(folder, file, options, builder):
    model, facts = rebuilt(file, options, builder)
    shape = (options.get("batch") or 2, *facts["image"])
    x = values(shape, INPUT)

    path = folder / f"{file}.onnx"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    fed = x.transpose(0, 2, 3, 1) if options.get("channels_last") else x
    exported = session.run(None, {session.get_inputs()[0].name: fed.astype(np.float32)})
    model = model.double()
    for p in model.parameters():
        p.requires_grad_(True)
    outputs = outputs_of(model(torch.from_numpy(x)))
    for ours, theirs in zip(exported, outputs, strict=True):
        error = np.abs(ours - theirs.detach().numpy()).max() / theirs.abs().max().item()
        assert error < 1e-4, f"{file}: the rebuilt model differs by {error:.1e}"
    sum((o * torch.from_numpy(values(tuple(o.shape), OUTPUT + i))).sum() for i, o in enumerate(outputs)).backward()

    # All parameters that the outputs depend on, as one vector.
    names, weights, gradients = [], [], []
    for name, p in model.named_parameters():
        if p.grad is not None:
            names.append(name)
            weights.append(p.detach().numpy().astype(np.float32).ravel())
            gradients.append(p.grad.numpy().ravel())
    starts = np.cumsum([0] + [len(w) for w in weights])
    flat, gradient = np.concatenate(weights), np.concatenate(gradients)
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())

    entries, folds, unmapped = [], [], []
    found = np.zeros(len(flat), dtype=int)
    kept = []
    for name, t in tensors(onnx.load(path).graph):
        if t.dtype != np.float32 or t.size < 2:
            continue
        at = np.clip(np.searchsorted(ordered, t.ravel()), 0, len(flat) - 1)
        index = np.where((ordered[at] == t.ravel()) & ~np.isin(t.ravel(), list(twice)), order[at], -1)
        hit = np.unique(np.searchsorted(starts, index[index >= 0], side="right"))
        for e in np.flatnonzero(np.isin(t.ravel(), list(twice))):
            # Equal elements of several parameters: the one in a parameter that the rest of the tensor is from.
            first, last = np.searchsorted(ordered, t.ravel()[e], "left"), np.searchsorted(ordered, t.ravel()[e], "right")
            candidates = [c for c in order[first:last] if np.searchsorted(starts, c, side="right") in hit]
            if len(candidates) == 1:
                index[e] = candidates[0]
        if (index < 0).any():
            # Equal elements of one parameter, which is this tensor as a whole.
            for start, w in zip(starts, weights):
                places = np.arange(len(w))
                for view in [places, places.reshape(t.shape[::-1]).T.ravel()] if len(w) == t.size else []:
                    if np.array_equal(w[view], t.ravel()):
                        index = start + view
        share = (index >= 0).mean()
        if share < 0.05:
            continue  # a constant of the exporter: a mask, a rotary table, a size; equal elements are chance
        kept.append((name, index))
        np.add.at(found, index[index >= 0], 1)
    for name, index in kept:
        mapped = index >= 0
        if (found[index[mapped]] == 1).all():
            own = np.where(mapped, gradient[np.maximum(index, 0)], 0)
            entry = {"name": name, **summary(own)}
            if not mapped.all():
                entry["holes"] = np.flatnonzero(~mapped).tolist()
            entries.append(entry)
    folded = {}
    for name, index in kept:
        mapped = index >= 0
        if not (found[index[mapped]] == 1).all():
            for p in sorted(set(np.searchsorted(starts, index[mapped], side="right") - 1)):
                inside = np.where((index >= starts[p]) & (index < starts[p + 1]), index - starts[p], -1)
                folded.setdefault(int(p), []).append({"name": name, "index": inside.tolist()})
    for p, parts in folded.items():
        folds.append({"parameter": names[p], "length": len(weights[p]), **summary(gradients[p]), "from": parts})
    for name, start, w in zip(names, starts, weights):
        missing = int((found[start:start + len(w)] == 0).sum())
        if missing:
            unmapped.append({"parameter": name, "elements": missing, "of": len(w),
                             "reason": "no element of the graph equals these elements: the exporter computed with them, or never reads them"})
    scale = float(f"{np.linalg.norm(gradient):.6g}")
    return {"file": path.name, "scale": scale, "initializers": entries, "folds": folds, "unmapped": unmapped}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only fixtures whose name contains one of these")
    parser.add_argument("--graphs", type=Path, default=Path("fixtures/graphs"))
    parser.add_argument("--output", type=Path, default=Path("fixtures/gradients/golden.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    made = {e["file"]: e for e in json.loads(args.output.read_text())} if args.output.exists() else {}
    for file, _, _, options, _, builder in graphs.FIXTURES:
        if args.names and not any(n in file for n in args.names) or not (args.graphs / f"{file}.onnx").exists():
            continue
        if file.startswith("hf") and file.startswith("hf4") != transformers.__version__.startswith("4."):
            print(f"{file:40} left as it is: this is transformers {transformers.__version__}")
            continue
        entry = made[f"{file}.onnx"] = golden(args.graphs, file, options, builder)
        print(f"{file:40} {len(entry['initializers'])} initializers, {len(entry['folds'])} folds, unmapped {[u['parameter'] for u in entry['unmapped']]}", flush=True)
    ordered = [made[f"{f[0]}.onnx"] for f in graphs.FIXTURES if f"{f[0]}.onnx" in made]
    line = lambda e: json.dumps(e, separators=(",", ":"))
    args.output.write_text("[\n" + ",\n".join(line(e) for e in ordered) + "\n]\n")
    print(f"{len(ordered)} fixtures, {args.output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
