"""Makes fixtures/reports/stacks and fixtures/reports/heads: small models of several stacks, and models that need their heads elsewhere, with
PyTorch's numbers.

    OMP_NUM_THREADS=1 python3 scripts/make_stack_fixtures.py        needs torch, onnx, onnxruntime, onnxscript

stacks/  two encoders after each other with a norm behind each, in all orders of norm and sum; towers of a picture and of a text; a tower
         that takes cut patches of one picture
heads/   heads that a convolution mixes, keys and maps that are averaged over heads, and a depthwise convolution that mixes none; outputs that
         hold what is inside of layers

golden.json of each has what PyTorch says: `outputs` of the whole model for `images`, and of children: without some layers (`kept`), or with
the output projection's columns of all heads but the first two at zero (`halved`).
"""

import copy
import json
import pathlib
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures/reports"
WIDTH, HEADS, SIDE, PATCH = 16, 4, 12, 3
warnings.filterwarnings("ignore")
torch.set_num_threads(1)
torch.set_grad_enabled(False)


def drawn(model, seed=0):
    torch.manual_seed(seed)
    for p in model.parameters():
        p.data.normal_(0, 0.4)
    for m in model.modules():
        if isinstance(m, nn.LayerNorm):
            m.weight.data.add_(1)
    return model.eval()


def images(count=2, channels=1):
    return torch.from_numpy(np.random.default_rng(1).normal(0, 1, (count, channels, SIDE, SIDE)).astype(np.float32))


class Attend(nn.Module):
    """An attention; `way` says what else it does with its heads."""

    def __init__(self, width=WIDTH, heads=HEADS, way=None):
        super().__init__()
        self.qkv, self.proj, self.heads, self.way = nn.Linear(width, 3 * width), nn.Linear(width, width), heads, way
        if way == "convolution":
            self.mix = nn.Conv2d(width, width, 3, padding=1)
        if way == "depthwise":
            self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        self.map = torch.softmax(q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5, -1)
        self.keys = k
        a = (self.map @ v).transpose(1, 2).reshape(n, t, d)
        if self.way in ("convolution", "depthwise"):
            # ScalableViT's local interaction, CSWin's position: a convolution of the values is added to what the heads attend to.
            side = int(t**0.5)
            grid = v.transpose(1, 2).reshape(n, t, d).transpose(1, 2).reshape(n, d, side, side)
            a = a + self.mix(grid).flatten(2).transpose(1, 2)
        return self.proj(a)


class Block(nn.Module):
    def __init__(self, form="pre", ffn=True, width=WIDTH, way=None):
        super().__init__()
        self.form, self.attn = form, Attend(width, way=way)
        self.n1 = nn.LayerNorm(width)
        if ffn:
            self.n2, self.ffn = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))

    def branches(self):
        return [(self.n1, self.attn)] + ([(self.n2, self.ffn)] if hasattr(self, "ffn") else [])

    def forward(self, x):
        for norm, branch in self.branches():
            x = x + branch(norm(x)) if self.form == "pre" else norm(x + branch(x))
            if branch is self.attn and branch.way == "merged":
                x = merged(x, branch.keys.mean(1))
        return x


def merged(x, keys):
    """Token merging: pairs of tokens that are alike by the mean of their keys over heads become one; here two of eight pairs."""
    keys = keys / keys.norm(dim=-1, keepdim=True)
    a, b = keys[:, ::2], keys[:, 1::2]
    best, partner = (a @ b.transpose(-1, -2)).max(-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    n, _, d = x.shape
    source, target = order[:, :2], partner[..., None].gather(1, order[:, :2])
    even, odd = x[:, ::2], x[:, 1::2]
    kept = even.gather(1, order[:, 2:].expand(-1, -1, d))
    odd = odd.scatter_add(1, target.expand(-1, -1, d), even.gather(1, source.expand(-1, -1, d)))
    return torch.cat([kept, odd], 1)


class Encoders(nn.Module):
    """Two stacks of two layers, with a norm behind each stack."""

    def __init__(self, form, ffn=True):
        super().__init__()
        self.patch = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.place = nn.Parameter(torch.zeros(1, (SIDE // PATCH) ** 2, WIDTH))
        self.stacks = nn.ModuleList(nn.ModuleList(Block(form, ffn) for _ in range(2)) for _ in range(2))
        self.norms, self.head = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2)), nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        for stack, norm in zip(self.stacks, self.norms):
            for block in stack:
                x = block(x)
            x = norm(x)
        return self.head(x.mean(1))

    def keep(self, layers):
        child = copy.deepcopy(self)
        for s, stack in enumerate(child.stacks):
            child.stacks[s] = nn.ModuleList(b for i, b in enumerate(stack) if 2 * s + i in layers)
        return child


class Towers(nn.Module):
    """A tower of pictures and one of texts, three layers each, as CLIP has them: of one width, so that numbers alone do not tell them apart."""

    def __init__(self):
        super().__init__()
        self.patch, self.words = nn.Conv2d(1, WIDTH, PATCH, PATCH), nn.Embedding(20, WIDTH)
        self.see = nn.ModuleList(Block() for _ in range(3))
        self.read = nn.ModuleList(Block() for _ in range(3))
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.p1, self.p2 = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)

    def forward(self, ids, pixels):
        x, t = self.patch(pixels).flatten(2).transpose(1, 2), self.words(ids)
        for block in self.see:
            x = block(x)
        for block in self.read:
            t = block(t)
        x, t = self.p1(self.n1(x).mean(1)), self.p2(self.n2(t).mean(1))
        return F.normalize(x, dim=-1) @ F.normalize(t, dim=-1).T

    def keep(self, see, read):
        child = copy.deepcopy(self)
        child.see = nn.ModuleList(child.see[i] for i in see)
        child.read = nn.ModuleList(child.read[i] for i in read)
        return child


class Patches(nn.Module):
    """A tower that takes the cut patches of one picture, [patches, pixels], as Qwen's do: no axis is a batch."""

    def __init__(self):
        super().__init__()
        self.embed, self.blocks, self.norm = nn.Linear(18, WIDTH), nn.ModuleList(Block() for _ in range(2)), nn.LayerNorm(WIDTH)
        self.merge = nn.Linear(4 * WIDTH, 8)
        self.register_buffer("order", torch.from_numpy(np.random.default_rng(2).permutation(64)))

    def forward(self, x):
        x = self.embed(x)[self.order][None]
        for block in self.blocks:
            x = block(x)
        return self.merge(self.norm(x)[0].reshape(16, 4 * WIDTH))


class Needing(nn.Module):
    """One model for each way in which something beside the output projection takes heads together."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.patch = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.blocks, self.norm, self.head = nn.ModuleList(Block(way=way) for _ in range(2)), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        states, maps = [], []
        for block in self.blocks:
            x = block(x)
            states.append(x)
            maps.append(block.attn.map)
        y = self.head(self.norm(x).mean(1))
        if self.way == "map":
            return y, maps[0].mean(1)
        if self.way == "inside":
            return y, maps[0]
        if self.way == "states":
            return y, states[0], states[1]
        return y

    def halved(self):
        child = copy.deepcopy(self)
        for block in child.blocks:
            block.attn.proj.weight.data[:, WIDTH // 2 :] = 0
        return child


def export(model, inputs, path, names=("x",), outputs=("y",), dynamo=False, opset=17, open_batch=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    if dynamo:
        shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs) if open_batch else None
        torch.onnx.export(model, inputs, path, dynamo=True, external_data=False, opset_version=opset, input_names=list(names),
                          output_names=list(outputs), dynamic_shapes=shapes, verbose=False)
    else:
        axes = {n: {0: "batch"} for n in (*names, *outputs)} if open_batch else None
        torch.onnx.export(model, inputs, path, dynamo=False, opset_version=opset, input_names=list(names), output_names=list(outputs),
                          dynamic_axes=axes)
    stripped = onnx.load(path)
    for part in (*stripped.graph.node, *stripped.graph.value_info, stripped.graph, stripped):
        # Where in the exporting script a node comes from is nobody's business.
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(stripped, path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {n: x.numpy() for n, x in zip(names, inputs)})
    truth = model(*inputs)
    for a, b in zip(found, truth if isinstance(truth, tuple) else (truth,)):
        assert np.abs(a - b.detach().numpy()).max() < 1e-4, path


def numbers(t):
    return [round(float(v), 6) for v in t.detach().reshape(-1)]


def stacks():
    folder, x = FIXTURES / "stacks", images()
    golden = {"images": numbers(x), "encoders": [], "towers": {}, "patches": {}}
    for form, ffn in (("pre", True), ("post", True), ("pre", False), ("post", False)):
        model = drawn(Encoders(form, ffn))
        name = f"{form}-norm{'' if ffn else '-attention-alone'}"
        exports = [(f"{name}.onnx", False, 17)] + ([(f"{name}-dynamo.onnx", True, 18)] if ffn else [])
        exports += [(f"{name}-written-out.onnx", False, 13)] if ffn else []
        kept = [[0, 1, 2, 3], [0, 2, 3], [1, 2, 3], [0, 1, 2], [0, 1, 3], [0, 2], [1, 3]]
        children = [{"kept": k, "outputs": numbers(model.keep(k)(x))} for k in kept]
        for file, dynamo, opset in exports:
            export(model, (x,), folder / file, dynamo=dynamo, opset=opset)
            golden["encoders"].append({"file": file, "children": children})
    towers, ids = drawn(Towers()), torch.from_numpy(np.random.default_rng(3).integers(0, 20, (3, 6)))
    export(towers, (ids, x), folder / "towers.onnx", ("ids", "pixels"), open_batch=False)
    choices = {"vision:even:2": ([0, 2], [0, 1, 2]), "vision:1,text:last:2": ([0], [1, 2]), "text:0,2": ([0, 1, 2], [0, 2]), "4": ([0, 1, 2], [0])}
    golden["towers"] = {"ids": ids.reshape(-1).tolist(), "children": {k: numbers(towers.keep(*v)(ids, x)) for k, v in choices.items()}}
    patches, p = drawn(Patches()), torch.randn(64, 18)
    export(patches, (p,), folder / "patches.onnx", open_batch=False)
    with FlopCounterMode(display=False) as counter:
        patches(p)
    golden["patches"] = {"macs": counter.get_total_flops() // 2}
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


def heads():
    folder, x = FIXTURES / "heads", images()
    golden = {"images": numbers(x), "models": []}
    for way in ("convolution", "merged", "map", "depthwise", "inside", "states"):
        model = drawn(Needing(way))
        first = lambda m: m(x)[0] if isinstance(m(x), tuple) else m(x)
        outputs = {"map": ("y", "map"), "inside": ("y", "map"), "states": ("y", "first", "second")}.get(way, ("y",))
        export(model, (x,), folder / f"{way}.onnx", outputs=outputs, opset=18)
        entry = {"file": f"{way}.onnx", "outputs": numbers(first(model)), "halved": numbers(first(model.halved()))}
        golden["models"].append(entry)
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    stacks()
    heads()
