# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "onnx==1.23.2", "onnxruntime==1.32.0", "onnxsim==0.8.1"]
# ///
"""Compares ways to make the bundled ancestor smaller: accuracy on Fashion-MNIST's test images before and after equal tuning.

    scripts/fetch/models.sh --fashion-mnist && cargo build --release
    python -m venv .cache/onnxsim && .cache/onnxsim/bin/pip install onnxsim onnxruntime
    python scripts/bench/shrink.py [--onnxsim .cache/onnxsim/bin/python] [--jobs 2] [--table]

Children keep a share of the parameters of all heads and FFNs. Calibration sees 192 training images without labels, others for every
seed. Every child is tuned by the same command on the same labelled training images. Files and results stay in --folder: a run that
was broken off goes on, and --table prints what is there. Needs numpy and onnx; without --onnxsim its rows are left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

HEADS, HEAD_DIM, WIDTH, NEURONS, LAYERS = 8, 8, 64, 256, 8
HEAD = HEAD_DIM * 3 * (WIDTH + 1) + HEAD_DIM * WIDTH
NEURON = WIDTH + 1 + WIDTH
WHOLE = LAYERS * (HEADS * HEAD + NEURONS * NEURON)


def uniform(share):
    """As many heads as the share says, to the nearest, and as many neurons as then fit under it; the same in every layer."""
    heads = round(share * HEADS)
    return heads, int((share * WHOLE / LAYERS - heads * HEAD) // NEURON)


class Weights:
    """The weights of a copy of the ancestor, by layer: heads are columns of `qkv` and rows of `proj`, neurons of `up` and `down`."""

    def __init__(self, path):
        self.model = onnx.load(path)
        self.tensors = {t.name: t for t in self.model.graph.initializer}
        self.makers = {o: n for n in self.model.graph.node for o in n.output}

    def matrix(self, layer, part):
        node = self.makers[f"/blocks.{layer}/{part}/MatMul_output_0"]
        return next(i for i in node.input if i in self.tensors)

    def array(self, name):
        return numpy_helper.to_array(self.tensors[name])

    def set(self, name, array):
        self.tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))

    def new(self, name, numbers):
        self.model.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        return name

    def heads(self, layer):
        """Matrices and bias with an axis of heads in front."""
        qkv, bias = f"blocks.{layer}.attention.qkv", f"blocks.{layer}.attention.qkv.bias"
        weight = self.array(self.matrix(layer, "attention/qkv")).reshape(WIDTH, 3, HEADS, HEAD_DIM)
        proj = self.array(self.matrix(layer, "attention/proj")).reshape(HEADS, HEAD_DIM, WIDTH)
        return weight.transpose(2, 0, 1, 3), self.array(bias).reshape(3, HEADS, HEAD_DIM).transpose(1, 0, 2), proj

    def neurons(self, layer):
        up, down = self.array(self.matrix(layer, "up")), self.array(self.matrix(layer, "down"))
        return up.T, self.array(f"blocks.{layer}.up.bias")[:, None], down

    def keep(self, layer, heads, neurons):
        weight, bias, proj = (a[heads] for a in self.heads(layer))
        inside = len(heads) * HEAD_DIM
        self.set(self.matrix(layer, "attention/qkv"), weight.transpose(1, 2, 0, 3).reshape(WIDTH, 3 * inside))
        self.set(f"blocks.{layer}.attention.qkv.bias", bias.transpose(1, 0, 2).reshape(-1))
        self.set(self.matrix(layer, "attention/proj"), proj.reshape(inside, WIDTH))
        # The graph reads the heads' number and their joint width from constants and from the embedding.
        split = self.makers[f"/blocks.{layer}/attention/Concat_output_0"]
        joined = self.makers[f"/blocks.{layer}/attention/Concat_1_output_0"]
        split.input[3] = self.new(f"heads.{layer}", [len(heads)])
        joined.input[2] = self.new(f"heads_width.{layer}", [inside])
        up, bias, down = (a[neurons] for a in self.neurons(layer))
        self.set(self.matrix(layer, "up"), up.T)
        self.set(f"blocks.{layer}.up.bias", bias[:, 0])
        self.set(self.matrix(layer, "down"), down)


def largest(parts, count):
    """The units with the largest sum of squares over all weights that carry them."""
    squares = sum(np.square(p.astype(np.float64)).reshape(len(p), -1).sum(1) for p in parts)
    return sorted(np.argsort(-squares, kind="stable")[:count])


def prune(ancestor, shape, child, random=None):
    """Keeps (heads, neurons) of every layer: the largest, or, given a generator, any."""
    weights = Weights(ancestor)

    def chosen(parts, count):
        return sorted(random.permutation(len(parts[0]))[:count]) if random else largest(parts, count)

    for layer, (heads, neurons) in enumerate(shape):
        kept = chosen(weights.heads(layer), heads), chosen(weights.neurons(layer), neurons)
        weights.keep(layer, *kept)
    used = {i for n in weights.model.graph.node for i in n.input}
    dead = [n for n in weights.model.graph.node if n.op_type == "Unsqueeze" and not used & set(n.output)]
    for node in dead:
        weights.model.graph.node.remove(node)
    onnx.checker.check_model(weights.model)
    onnx.save(weights.model, child)


def onnxsim_children(ancestor, images, share, pruned, recovered):
    """onnxsim's structured pruning and its recovery; runs in the interpreter that has onnxsim.

    Its pruning follows no Reshape, and simplifying puts some into every FFN unless the batch is fixed. So it works on the model
    simplified at a batch of one, and the weights that it leaves, which keep their names, go into the ancestor's own graph.
    """
    import onnxruntime
    import onnxsim

    values = np.fromfile(images, np.uint8, offset=16).reshape(-1, 1, 1, 28, 28)
    batches = [{"image": ((v / 255 - 0.2860) / 0.3530).astype(np.float32)} for v in values]
    simple, _ = onnxsim.simplify(onnx.load(ancestor), overwrite_input_shapes={"image": [1, 1, 28, 28]})
    neurons = int((share * WHOLE / LAYERS - HEADS * HEAD) // NEURON)
    thin = onnxsim.apply_structured_pruning(simple, sparsity=1 - neurons / NEURONS)
    fitted = onnxsim.apply_pruning_finetune(simple, thin, calibration_data=batches)
    heads = onnxsim.apply_attention_head_pruning(simple, sparsity=1 - share)
    untouched = heads.graph.initializer == simple.graph.initializer
    print(f"onnxsim {onnxsim.__version__}: {neurons} neurons a layer; heads {'left alone' if untouched else 'pruned'}")
    for model, path in ((thin, pruned), (fitted, recovered)):
        found = {t.name: t for t in model.graph.initializer}
        child = onnx.load(ancestor)
        for tensor in child.graph.initializer:
            tensor.CopyFrom(found[tensor.name])
        onnx.save(child, path)
        (want,), (have,) = (
            onnxruntime.InferenceSession(m.SerializeToString()).run(None, batches[0]) for m in (model, child)
        )
        assert np.abs(want - have).max() < 1e-4, "the weights do not give what the pruned model gives"


class Bench:
    def __init__(self, options):
        self.options = options
        self.folder = Path(options.folder)
        self.data = Path(options.data)
        self.ancestor = "models/fashion-vit.onnx"
        (self.folder / "tuning").mkdir(parents=True, exist_ok=True)
        self.images = np.fromfile(self.data / "train-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
        labels = np.fromfile(self.data / "train-labels-idx1-ubyte", np.uint8, offset=8)
        count = options.tuning_images
        write_idx(self.folder / "tuning/train-images-idx3-ubyte", self.images[:count])
        write_idx(self.folder / "tuning/train-labels-idx1-ubyte", labels[:count])

    def offshoot(self, *arguments):
        command = [self.options.offshoot, *map(str, arguments), "--threads", "1"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        return done.stdout

    def calibration(self, seed):
        """192 training images from behind those that are tuned on, others for every seed."""
        path = self.folder / f"calibration-{seed}.idx3-ubyte"
        if not path.exists():
            rest = np.arange(self.options.tuning_images, len(self.images))
            chosen = np.random.default_rng(seed).choice(rest, 192, replace=False)
            write_idx(path, self.images[chosen])
        return path

    def once(self, path, make):
        """Runs `make` with a path to write, which gets its name when it is complete."""
        if not path.exists():
            part = path.with_name("part-" + path.name)
            part.unlink(missing_ok=True)
            make(part)
            part.rename(path)
        return path

    def shrink(self, seed):
        """The descendants of all shares, from one calibration."""
        shares = ",".join(f"{percent(s)}%" for s in self.options.shares)
        images = ["--images", self.calibration(seed), "--to", shares, "--seed", seed]
        folder = self.folder / f"shrink-{seed}"

        def make(part):
            part.write_text(self.offshoot("shrink", self.ancestor, *images, "--json", "--force", "-o", f"{folder}/"))

        text = self.once(self.folder / f"shrink-{seed}.json", make).read_text()
        return [(Path(d["file"]), d["allocation"]["layers"]) for d in json.loads(text)["descendants"]]

    def shrunk(self, share, seed):
        """A descendant and its shape, heads and neurons of every layer."""
        child, layers = self.shrink(seed)[self.options.shares.index(share)]
        if any(layer["dropped"] for layer in layers):
            sys.exit(f"{child}: a whole layer was left out, which pruning at its shape does not do")
        return child, [(layer["heads"], layer["neurons"]) for layer in layers]

    def densities(self):
        images = ["--images", self.calibration(0)]
        text = self.once(
            self.folder / "densities.json",
            lambda part: part.write_text(self.offshoot("density", self.ancestor, *images, "--json")),
        ).read_text()
        return np.array(json.loads(text)["densities"])

    def eps(self, heads):
        """The eps at which the layers together have as many clusters as the child has heads."""
        gaps = np.sort(np.diff(np.sort(self.densities(), axis=1), axis=1).ravel())[::-1]
        clusters = LAYERS * (heads - 1)
        return (gaps[clusters - 1] + gaps[clusters]) / 2

    def grown(self, share, projection):
        heads, neurons = uniform(share)
        shape = ["--heads", heads, "--ffn-width", neurons, "--eps", f"{self.eps(heads):.4f}", "--ffn-eps", 0]
        images = ["--images", self.calibration(0), "--projection", projection]
        return self.once(
            self.folder / f"{percent(share)}-density-{projection}.onnx",
            lambda part: self.offshoot("grow", self.ancestor, *images, *shape, "-o", part),
        )

    def pruned(self, share, name, shape, seed=None):
        random = None if seed is None else np.random.default_rng(seed)
        return self.once(
            self.folder / f"{percent(share)}-{name}.onnx", lambda part: prune(self.ancestor, shape, part, random)
        )

    def by_onnxsim(self, share):
        names = [self.folder / f"{percent(share)}-onnxsim{n}.onnx" for n in ("", "-recovered")]
        if not all(n.exists() for n in names):
            arguments = [self.ancestor, self.calibration(0), share, *names]
            subprocess.run([self.options.onnxsim, __file__, "--child", *map(str, arguments)], check=True)
        return names

    def children(self, share):
        """Pairs of a row's name and the row's children, one for each seed."""
        seeds, shape = range(self.options.seeds), [uniform(share)] * LAYERS
        shrunk, own = zip(*(self.shrunk(share, seed) for seed in seeds))
        rows = [
            ("`shrink`", shrunk),
            ("its shape, largest norms", [self.pruned(share, f"magnitude-own-{s}", own[s]) for s in seeds]),
            ("its shape, at random", [self.pruned(share, f"random-own-{s}", own[s], s) for s in seeds]),
            ("uniform shape, largest norms", [self.pruned(share, "magnitude", shape)]),
            ("uniform shape, at random", [self.pruned(share, f"random-{s}", shape, s) for s in seeds]),
            ("density, `fitted`", [self.grown(share, "fitted")]),
            ("density, `matched`", [self.grown(share, "matched")]),
            ("density, `paper`", [self.grown(share, "paper")]),
        ]
        if self.options.onnxsim:
            plain, recovered = self.by_onnxsim(share)
            rows += [("onnxsim, structured pruning", [plain]), ("onnxsim, with its recovery", [recovered])]
        return rows

    def evaluated(self, child):
        data = ["--data", self.data, "--json"]
        return self.once(
            child.with_suffix(".eval.json"), lambda part: part.write_text(self.offshoot("eval", child, *data))
        )

    def tuned(self, child):
        o = self.options
        data = ["--data", self.folder / "tuning", "--val-split", 0, "--augment", "pad=2,flip=0.5"]
        steps = ["--epochs", o.epochs, "--lr", o.lr, "--seed", 0, "--force"]
        tuned = child.with_name("tuned-" + child.name)
        self.once(tuned, lambda part: self.offshoot("tune", child, *data, *steps, "-o", part))
        return self.evaluated(tuned)

    def parameters(self, model):
        return json.loads(self.offshoot_plain("inspect", model, "--json"))["parameters"]

    def offshoot_plain(self, *arguments):
        return subprocess.run([self.options.offshoot, *map(str, arguments)], capture_output=True, text=True, check=True).stdout

    def table(self, rows):
        whole = self.parameters(self.ancestor)
        print("| share kept | | parameters | test accuracy | after tuning |\n|---|---|---:|---:|---:|")
        for share, name, children in rows:
            sizes = [self.parameters(c) for c in children]
            kept = statistics.mean(1 - (whole - s) / WHOLE for s in sizes)
            before = [c.with_suffix(".eval.json") for c in children]
            after = [c.with_name("tuned-" + c.name).with_suffix(".eval.json") for c in children]
            size = f"{statistics.mean(sizes) / 1000:.0f} k ({100 * kept:.1f} %)"
            print(f"| {100 * share:.0f} % | {name} | {size} | {accuracy(before)} | {accuracy(after)} |")


def accuracy(files):
    found = [100 * json.loads(f.read_text())["top1"] for f in files if f.exists()]
    if len(found) < 2:
        return f"{found[0]:.2f} %" if found else ""
    return f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} % ({len(found)})"


def percent(share):
    return round(100 * share)


def write_idx(path, array):
    header = [0x0800 + array.ndim, *array.shape]
    path.write_bytes(np.array(header, ">u4").tobytes() + array.tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offshoot", default="target/release/offshoot")
    parser.add_argument("--data", default=".cache/fashion-mnist")
    parser.add_argument("--folder", default=".cache/bench-shrink")
    parser.add_argument("--onnxsim", help="Python that has onnxsim and onnxruntime")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.85, 0.75, 0.5])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tuning-images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", default="5e-4")
    parser.add_argument("--jobs", type=int, default=1, help="commands side by side, one thread each")
    parser.add_argument("--table", action="store_true", help="print what is there and run nothing")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        ancestor, images, share, pruned, recovered = options.child
        return onnxsim_children(ancestor, images, float(share), pruned, recovered)
    os.chdir(Path(__file__).resolve().parents[2])
    bench = Bench(options)
    bench.densities()
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(bench.shrink, range(options.seeds)))
        made = list(pool.map(bench.children, options.shares))
        rows = [(share, *row) for share, found in zip(options.shares, made) for row in found]
        if not options.table:
            # First seeds and small shares first: a run that is broken off has what says most.
            children = [r[2][seed] for seed in range(options.seeds) for r in reversed(rows) if seed < len(r[2])]
            work = [pool.map(bench.evaluated, children), pool.map(bench.tuned, children)]
            for results in work:
                list(results)
    bench.table(rows)


main()
