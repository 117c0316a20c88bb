# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "einops==0.8.2",
#     "numpy==2.5.5",
#     "onnx==1.23.2",
#     "onnxruntime==1.32.0",
#     "onnxscript==0.7.2",
#     "open-clip-torch==3.3.0",
#     "safetensors==0.8.0",
#     "timm==1.0.31",
#     "torch==2.15.0",
#     "torchvision==0.29.2",
#     "transformers==5.23.0",
#     "vit-pytorch==1.26.14",
# ]
# ///
"""Makes the coverage table in docs/dialects.md: every family of Vision Transformers in timm, and those of vit-pytorch and
open_clip, exported in two ways. The models stand in `families.py`.

    OMP_NUM_THREADS=1 python scripts/lib/coverage.py export [NAME ...]      export the models into the cache folder
    OMP_NUM_THREADS=1 python scripts/lib/coverage.py check [NAME ...]       check what is there with the `offshoot` binary
    python scripts/lib/coverage.py table [NAME ...]                         write the table, between other marks with --mark:
                                                                            `table vit_pytorch open_clip --mark libraries`

Options: --cache FOLDER (default /tmp/offshoot-coverage), --binary PATH (default target/release/offshoot), --jobs N.

Each family is one model: shallow and narrow where the family allows, with random weights, scrambled. An export runs in a process of its
own with a time limit. Beside the graph the truth is written down, all of it from PyTorch: the attentions in order of execution with
their heads and FFNs, the outputs for two images, the outputs with the input features of output projections and of last FFN matrices at
zero from the middle on (heads, neurons), and the gradient of the cross-entropy in float64.

`check` runs `inspect`, `grow` (as it is, twice the heads, half the heads, one head, half the FFN), `density` and `tune --emit-step` and
compares with that truth in ONNX Runtime. Gradients are compared with those of the model's parameters where a weight of the graph is one,
and all of them, those of folded norms and gathered tables too, with the gradients of the exported graph that PyTorch runs in double
precision (`onnx_in_torch.py`). Needs torch, timm, onnx, onnxscript and onnxruntime.
"""

import argparse
import collections
import copy
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from families import MODELS, build

TOLERANCE = 1e-5
LIMIT = 420  # seconds that an export may take
EXPORTERS = {"ts": 17, "dynamo": 18}


# ------------------------------------------------------------------------------------------------ the truth, from PyTorch


OUT = ["attn_out_proj", "proj", "out_proj", "o_proj", "output", "final", "c_proj", "project", "proj_out", "fc_o", "to_out", "upsampling"]  # names of output projections
DOWN = ["mlp_out_proj", "fc2", "w3", "conv3", "w2", "down_proj", "conv2", "pwconv2", "linear2", "ln2", "pw2", "pw_proj"]  # of last FFN matrices
SINGLE = {"SHSA", "SHMA", "LinearSelfAttention", "LambdaLayer", "PatchMerger"}  # attentions with one map, which LambdaNet's heads of queries share
# What the product says of a child that cannot be exact where heads or neurons are removed.
INEXACT = ("statistics change", "heads are mixed", "taken together")
KEEPS = {"WindowAttentionGlobal", "FactorAttnConvRelPosEnc", "CascadedGroupAttention"}  # attentions whose heads cannot go: see docs/dialects.md
BLOCKS = {"ParallelScalingBlock", "DiffParallelScalingBlock"}  # attention and FFN in one module
DIMS_FIRST = {"timm.models.nest"}  # models that join heads as (dim heads), not (heads dim)
# One query each; CLIP's AttentionPool2d asks from every token. vit-pytorch calls all its attentions alike: where they stand says it.
OTHERS = re.compile(r"ClassAttn|ClassAttention|AttentionPool(?!2d|er)|CrossAttention|LatentPool|AbsPool|CrossTransformer|cls_transformer|attn_pool", re.I)


def within(model, name):
    """The classes of a module and of those that it is part of."""
    parts = name.split(".")
    return " ".join(type(model.get_submodule(".".join(parts[:k]))).__name__ for k in range(1, len(parts) + 1))


def first_child(module, names):
    from torch import nn
    for n in names:
        child = getattr(module, n, None)
        if isinstance(child, nn.Module) and features(child)[0]:
            return child


def attentions(model):
    """(name, module, heads, output projection) of what says that it has heads; without a projection, the module itself."""
    found = []
    for name, m in model.named_modules():
        heads = next((getattr(m, k) for k in ("num_heads", "heads", "n_heads", "num_attention_heads") if isinstance(getattr(m, k, None), int)), None)
        heads = 1 if type(m).__name__ in SINGLE else heads
        kind = type(m).__name__
        if not heads or any(name.startswith(f[0] + ".") for f in found) or not (re.search("att|xca|shsa|shma|gpsa|mhsa|lsa|dssa|lambda|pool2d|patchmerger", kind, re.I) or kind in BLOCKS):
            continue
        # BoTNet's and HaloNet's attentions leave the projection to the block, behind a norm.
        block = dict(model.named_modules())[name.rpartition(".")[0]]
        out = first_child(m, OUT) or first_child(block, ["conv3_1x1"]) or m
        if attention_width(m, out)[0]:
            found.append((name, m, heads, out))
    return found


def features(module):
    """Channels that a projection takes, and the axis that they lie on."""
    from torch import nn
    for m in module.modules():
        if isinstance(m, nn.Linear):
            return m.in_features, -1
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            return m.in_channels, 1
    return None, None


def attention_width(module, out):
    """Channels that heads make, and their axis."""
    if type(module).__name__ in BLOCKS and getattr(module, "out_proj", None) is not None:
        return module.in_split[-1], -1  # the projection takes the FFN's neurons behind them
    if type(module).__name__ == "SHSA":
        return module.pdim, 1  # other channels pass it by and meet its own in the projection
    if type(module).__name__ == "PatchMerger":
        return module.queries.shape[-1], -1
    if out is not module:
        return features(out)
    if type(getattr(module, "to_out", None)).__name__ == "Identity":
        return module.to_qkv.out_features // 3, -1  # T2T-ViT's own add what they attend to as it is
    width = getattr(module, "dim_out", None) or getattr(module, "dim_out_v", None)
    return width or getattr(module, "num_heads", 1) * getattr(module, "dim_head", 0), 1


def is_plain_ffn(model, module):
    """True for a sequence that vit-pytorch and open_clip use as an FFN: from the stream to neurons and back, and no gate of channels."""
    from torch import nn
    if type(model).__module__.split(".")[0] not in ("vit_pytorch", "open_clip") or type(module) is not nn.Sequential:
        return False
    matrices = [c for c in module if isinstance(c, nn.Linear) or isinstance(c, nn.Conv2d) and c.kernel_size == (1, 1)]
    if len(matrices) != 2 or any(isinstance(c, nn.Sigmoid) for c in module):
        return False
    width = lambda m: (m.in_features, m.out_features) if isinstance(m, nn.Linear) else (m.in_channels, m.out_channels)
    return width(matrices[0])[0] == width(matrices[1])[1]


def ffns(model):
    """(name, module, last matrix, hidden width, where it begins among the matrix's inputs) of FFNs."""
    from torch import nn
    found = []
    for name, m in model.named_modules():
        kind = type(m).__name__
        if kind in BLOCKS:
            down = first_child(m, ["mlp_out_proj", "out_proj"])
            found.append((name, m, down, m.in_split[0], features(down)[0] - m.in_split[0]))
            continue
        if kind == "TransformerEncoderLayer":  # CCT's, whose attention is a module and whose FFN is none
            found.append((name, m, m.linear2, m.linear2.in_features, 0))
            continue
        # LowFormer's and CPUBone's, a plain sequence of two matrices.
        matrices = [c for c in m if isinstance(c, (nn.Linear, nn.Conv2d))] if name.endswith(".main") and type(m) is nn.Sequential else []
        branch = len(matrices) == 2 and all(isinstance(c, nn.Linear) or c.kernel_size == (1, 1) for c in matrices)
        branch = branch or is_plain_ffn(model, m)
        if not (branch or re.search(r"Mlp|SwiGLU|FFN|FeedForward|GatedMlp|UniversalInvertedResidual", kind, re.I)) or any(name.startswith(f[0] + ".") for f in found):
            continue
        down = first_child(m, DOWN)
        if down is None and (branch or kind in ("FFN", "FeedForward", "Sequential")):
            down = [c for c in m.modules() if isinstance(c, (nn.Linear, nn.Conv2d))][-1]
        if down is not None and features(down)[0]:
            found.append((name, m, down, features(down)[0], 0))
    return found


def truth(model, x):
    """What the model says of itself, in order of execution, and outputs with parts at zero."""
    import torch
    from torch import nn

    order, hooks = [], []
    heads_of, ffn_of = {a[0]: a for a in attentions(model)}, {f[0]: f for f in ffns(model)}
    for name, m in model.named_modules():
        if name in heads_of or name in ffn_of:
            # An FFN that runs at several resolutions (CoaT) is one for each, and so is an attention to two streams (RegionViT).
            hooks.append(m.register_forward_hook(lambda _m, _i, _o, name=name: order.append(name)))
    with torch.no_grad():
        base = model(x)
    for h in hooks:
        h.remove()
    layers, others = [], []
    for i, name in enumerate(order):
        if name not in heads_of:
            continue
        _, m, heads, out = heads_of[name]
        entry = {"name": name, "class": type(m).__name__, "heads": heads, "keeps": type(m).__name__ in KEEPS and getattr(m, "use_global", True), "width": attention_width(m, out)[0], "ffn": None}
        # Attentions that stand side by side have their FFNs side by side; elsewhere an attention has the next FFN.
        before = next((i - j for j in range(i, -1, -1) if j == 0 or order[j - 1] not in heads_of), 0)
        after = next((j - i for j in range(i, len(order)) if order[j] not in heads_of), None)
        parallel = ".attns." in name or ".fns." in name or name.startswith("parallel_blocks")
        if name in ffn_of:
            entry["ffn"], entry["ffn_name"] = ffn_of[name][3], name
        elif after is not None and (after == 1 or parallel):
            follow = i + after + (before if parallel else 0)
            if follow < len(order) and order[follow] in ffn_of:
                entry["ffn"], entry["ffn_name"] = ffn_of[order[follow]][3], order[follow]
        (others if OTHERS.search(f"{name} {within(model, name)}") else layers).append(entry)
    dims_first = type(model).__module__ in DIMS_FIRST

    def with_zeros(kind):
        hooks, columns = [], []
        for i, l in enumerate(layers):
            if kind == "ffn":
                if not l["ffn"]:
                    continue
                _, _, module, width, start = ffn_of[l["ffn_name"]]
                keep, axis, whole = range(max(2, (width + 1) // 2)), features(module)[1], False
            else:
                _, m, heads, module = heads_of[l["name"]]
                if l["keeps"]:
                    continue
                (width, axis), start = attention_width(m, module), 0
                kept = 1 if kind == "one" else max(1, heads // 2)
                channels = np.arange(width).reshape((width // heads, heads) if dims_first else (heads, width // heads))
                keep, whole = (channels[:, :kept] if dims_first else channels[:kept]).ravel().tolist(), module is m
            drop = [start + c for c in range(width) if c not in set(keep)]

            # A module that is called several times is one block, which loses them in all of its uses.
            def zero(x, drop=drop, axis=axis):
                x = x.clone()
                x.movedim(axis, 0)[drop] = 0
                return x
            if kind != "ffn" and isinstance(m, nn.MultiheadAttention):
                # It takes its projection's weight without calling the module.
                weight = module.weight.detach()
                columns.append((weight, drop, weight[:, drop].clone()))
                weight[:, drop] = 0
            elif whole:
                hooks.append(module.register_forward_hook(lambda _m, _i, y, zero=zero: zero(y)))
            else:
                hooks.append(module.register_forward_pre_hook(lambda _m, args, zero=zero: (zero(args[0]), *args[1:])))
        with torch.no_grad():
            out = model(x)
        for h in hooks:
            h.remove()
        for weight, drop, own in columns:
            weight[:, drop] = own
        return out

    outputs = {"base": base}
    for kind in ["half", "one", "ffn"]:
        outputs[kind] = with_zeros(kind)
    return {"layers": layers, "others": others}, outputs


def scramble(model, seed, x):
    """Random weights. Models with BatchNorm keep their libraries' matrices and get the statistics of a batch, so that a deep stack of
    convolutions neither dies out nor explodes."""
    import graphs
    import torch
    from torch import nn

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    generator = torch.Generator().manual_seed(seed + 5)
    noise = lambda p: torch.randn(p.shape, generator=generator)
    if not norms:
        try:
            graphs.scramble(model, seed)
        except AssertionError:
            pass
        return
    scales = {id(m.weight) for m in model.modules() if "norm" in type(m).__name__.lower() and getattr(m, "weight", None) is not None}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if id(p) in scales or re.search(r"gamma|lambda|scale", name.rsplit(".", 1)[-1]):
                p.copy_((1 + 0.2 * noise(p)).clamp(0.5, 1.5))
            elif p.ndim < 2:
                p.copy_(0.1 * noise(p))
            elif re.search("pos_embed|token|relative_position|rel_", name):
                p.copy_(0.3 * noise(p))
            elif p.std() < 0.03:
                p.copy_(noise(p) / p[0].numel() ** 0.5)
        for m in norms:
            m.momentum = 1.0
            m.train()
        model(x)
        model.eval()


def first(outputs):
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs


def own_gradients(model, x, dtype):
    """The loss, and PyTorch's gradient of every parameter, from a copy of its own: LeViT and others keep tables that they looked up."""
    import torch
    copied = copy.deepcopy(model).to(dtype).train().eval()
    loss = torch.nn.functional.cross_entropy(first(copied(x.to(dtype))), torch.tensor([1, 4]))
    loss.backward()
    return loss.item(), {n: p.grad for n, p in copied.named_parameters() if p.grad is not None}


def export(cache, k, exporter):
    import warnings

    import torch
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("lib", "fixtures")]
    import onnx
    import onnxruntime
    from timm.layers import set_fused_attn

    family, name, options = MODELS[k]
    seed = zlib.crc32(name.encode())
    set_fused_attn(exporter == "dynamo")
    torch.manual_seed(seed)
    model, size = build(name, options)
    model.eval()
    x = torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(seed + 1))
    scramble(model, seed, torch.randn((8 if size < 128 else 4, 3, size, size), generator=torch.Generator().manual_seed(seed + 3)))
    for p in model.parameters():
        p.requires_grad_(True)
    path = cache / f"{name}-{exporter}.onnx"
    opset = EXPORTERS[exporter]
    if not (cache / f"{name}.json").exists():
        facts, outputs = truth(model, x)
        facts |= {"family": family, "name": name, "size": size, "parameters": sum(p.numel() for p in model.parameters())}
        gradients = {}
        try:
            loss, double = own_gradients(model, x, torch.float64)
            facts["loss"] = loss
            # What single precision does to PyTorch's own gradient, and what a change of the images by a millionth does to it: a maximum or
            # a clipped value may fall on its other side.
            single = own_gradients(model, x, torch.float32)[1]
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 7), dtype=torch.float64)
            moved = own_gradients(model, x.double() * (1 + 1e-6 * noise), torch.float64)[1]
            length = lambda values: sum((g.double() ** 2).sum() for g in values) ** 0.5
            apart = lambda other: [g - other[n] for n, g in double.items()]
            facts["rounding"] = float(length(apart(single)) / length(double.values()))
            facts["roundings"] = {n: float((g - single[n]).norm() / g.norm().clamp(min=1e-30)) for n, g in double.items()}
            facts["sensitivity"] = float(length(apart(moved)) / length(double.values()))
            parameters = dict(model.named_parameters())
            for n, g in double.items():
                gradients["w:" + n] = parameters[n].detach().numpy().astype(np.float32)
                gradients["g:" + n] = g.numpy().astype(np.float32)
        except Exception as error:
            facts["no_gradient"] = f"{type(error).__name__}: {str(error)[:120]}"
        np.savez(cache / f"{name}.npz", x=x.numpy(), **{k: first(v).numpy() for k, v in outputs.items()}, **gradients)
        (cache / f"{name}.json").write_text(json.dumps(facts))
    if exporter == "ts":
        torch.onnx.export(model, (x,), str(path) + ".part", dynamo=False, opset_version=opset, input_names=["input"], output_names=["logits"],
                          dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}})
    else:
        try:
            torch.onnx.export(model, (x,), str(path) + ".part", dynamo=True, opset_version=opset, input_names=["input"], output_names=["logits"],
                              dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},), external_data=False, verbose=False)
        except Exception:
            # The exporter has no decomposition of attention over five axes: attention as products.
            for m in model.modules():
                if hasattr(m, "fused_attn"):
                    m.fused_attn = False
            torch.onnx.export(model, (x,), str(path) + ".part", dynamo=True, opset_version=opset, input_names=["input"], output_names=["logits"],
                              external_data=False, verbose=False)
            (cache / f"{name}-{exporter}.fixed").write_text("")
    out = run(str(path) + ".part", x.numpy())
    truth_out = np.load(cache / f"{name}.npz")["base"]
    facts = {"error": float(np.abs(out - truth_out).max() / np.abs(truth_out).max())}
    os.replace(str(path) + ".part", path)
    (cache / f"{name}-{exporter}.export.json").write_text(json.dumps(facts))


# ------------------------------------------------------------------------------------------------ what the product makes of it


def session(path):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path if isinstance(path, bytes) else str(path), options, providers=["CPUExecutionProvider"])


def run(path, x):
    s = session(path)
    return s.run(None, {s.get_inputs()[0].name: x})[0]


def error(a, b):
    return float(np.abs(a - b).max() / max(1e-6, np.abs(b).max())) if a.shape == b.shape else float("inf")


class Check:
    def __init__(self, args, k, exporter):
        self.args, self.cache = args, args.cache
        self.family, self.name, _ = MODELS[k]
        self.exporter = exporter
        self.graph = self.cache / f"{self.name}-{exporter}.onnx"
        self.inexact, self.warnings = False, []
        self.row = {"family": self.family, "model": self.name, "exporter": exporter, "gaps": {}} | ({} if args.only else {"build": args.build})

    def offshoot(self, *arguments):
        done = subprocess.run([str(self.args.binary), *map(str, arguments)], capture_output=True, text=True, timeout=240)
        if done.returncode:
            lines = [l for l in done.stderr.splitlines() if l.startswith("error:")]
            raise RuntimeError((lines or ["no message"])[0].removeprefix("error: ")[:260])
        self.warnings = [l for l in done.stderr.splitlines() if l.startswith("warning:")]
        return done.stdout

    def gap(self, what, reason):
        self.row[what] = "gap"
        self.row["gaps"][what] = str(reason).replace(str(self.cache) + "/", "")

    def grow(self, what, truth, *arguments):
        child = self.cache / f"{self.graph.stem}.child.onnx"
        try:
            self.offshoot("grow", self.graph, "-o", child, "--force", *arguments)
            e = error(run(child, self.truth["x"]), truth)
            return None if e <= max(TOLERANCE, 10 * self.base_error) else f"{what}: relative error {e:.1e}"
        except Exception as problem:
            return f"{what}: {problem}"
        finally:
            self.inexact |= any(said in w for said in INEXACT for w in getattr(self, "warnings", []))
            child.unlink(missing_ok=True)

    def all(self):
        exported = self.cache / f"{self.graph.stem}.export.json"
        if not self.graph.exists():
            reason = self.cache / f"{self.graph.stem}.failed"
            self.row["export"] = "gap"
            self.row["gaps"]["export"] = reason.read_text() if reason.exists() else "not exported yet"
            return self.row
        self.row["export"] = "ok"
        self.facts = json.loads((self.cache / f"{self.name}.json").read_text())
        self.truth = np.load(self.cache / f"{self.name}.npz")
        self.base_error = json.loads(exported.read_text())["error"]
        for what in [self.anatomy, self.surgery, self.density, self.gradient]:
            if self.args.only and what.__name__ not in self.args.only and what.__name__ != "anatomy":
                continue
            try:
                what()
            except Exception as problem:
                self.gap(what.__name__, problem if isinstance(problem, RuntimeError) else f"{type(problem).__name__}: {problem}")
            if self.row.get("anatomy") == "gap" and any(r in self.row["gaps"]["anatomy"] for r in ["no attention found", "control flow", "no typing rule"]):
                # No Softmax whose heads are summed over (linear and additive attention, convolutions), or an operator that is refused.
                self.row |= {w: "refused" for w in ["anatomy", "surgery", "density"]}
                return self.row
        return self.row

    def anatomy(self):
        self.found = json.loads(self.offshoot("inspect", self.graph, "--json"))
        mine = [(l["heads"], l["heads"] * l["head_dim"], l["ffn_width"]) for l in self.found["layers"]]
        truth = [(l["heads"], l["width"], l["ffn"]) for l in self.facts["layers"]]
        other = [l["heads"] for l in self.found["other_attentions"]]
        truth_other = [l["heads"] for l in self.facts["others"]]
        if mine != truth or other != truth_other:
            self.gap("anatomy", f"found {mine} and {other}, truth {truth} and {truth_other}")
        else:
            self.row["anatomy"] = "ok"

    def surgery(self):
        base, wrong = self.truth["base"], []
        heads = [l["heads"] for l in self.found["layers"]]
        wide = [l["ffn_width"] for l in self.found["layers"]]
        wrong.append(self.grow("as it is", base, "--no-images", "--verify"))
        wrong.append(self.grow("twice the heads", base, "--no-images", "--width", "0.5", "--verify"))
        finetune = ["--init", "pretrain-finetune", "--heads"]
        keeps = [l.get("keeps", False) for l in self.facts["layers"]] if self.row.get("anatomy") == "ok" else [False] * len(heads)
        fewer = lambda count: [h if k else count(h) for h, k in zip(heads, keeps)]
        text = lambda counts: ",".join(map(str, counts)) + ("," if len(counts) == 1 else "")
        if max(heads, default=1) > 1:
            wrong.append(self.grow("half the heads", self.truth["half"], *finetune, text(fewer(lambda h: max(1, h // 2)))))
            wrong.append(self.grow("one head", self.truth["one"], *finetune, text(fewer(lambda h: 1))))
        if any(wide):
            wrong.append(self.grow("half the FFN", self.truth["ffn"], *finetune[:2], "--ffn-width", "50%"))
        wrong = [w for w in wrong if w]
        if wrong and self.inexact and not any(w.startswith(("as it is", "twice")) for w in wrong):
            # A norm over heads or neurons, or mixed heads: what is removed changes the rest, and the product says so.
            self.row["surgery"] = "said"
            self.row["gaps"]["surgery"] = "inexact where heads or neurons are removed, and a warning says so: " + "; ".join(wrong)
        elif wrong:
            self.gap("surgery", "; ".join(wrong))
        elif any(keeps):
            self.row["surgery"] = "said"
            self.row["gaps"]["surgery"] = f"exact; layers {', '.join(str(l) for l, k in enumerate(keeps) if k)} keep their heads, and a warning says so"
        else:
            self.row["surgery"] = "ok"

    def images(self):
        path = self.cache / f"{self.graph.stem}.images.npz"
        np.savez(path, x=self.truth["x"], y=np.array([1, 4]))
        return path

    def density(self):
        images = self.images()
        try:
            found = json.loads(self.offshoot("density", self.graph, "--images", images, "--json"))
            rows = found["densities"]
            without = {w["layer"]: w["reason"] for w in found["without"]}
            heads = [0 if k in without else l["heads"] for k, l in enumerate(self.found["layers"])]
            if [len(r) for r in rows] == heads and all(np.isfinite(d) and d > 0 for r in rows for d in r):
                self.row["density"] = "said" if without else "ok"
                if without:
                    self.row["gaps"]["density"] = "of the others exact; " + "; ".join(f"layer {k} has none: {why}" for k, why in without.items())
            else:
                self.gap("density", f"densities {rows}")
        except Exception as problem:
            self.gap("density", problem)
            if "no layer has densities" in str(problem):
                self.row["density"] = "refused"
        finally:
            images.unlink(missing_ok=True)

    def gradient(self):
        if "no_gradient" in self.facts:
            self.row["gradient"] = "-"
            self.row["gaps"]["gradient"] = "PyTorch: " + self.facts["no_gradient"]
            return
        images, step = self.images(), self.cache / f"{self.graph.stem}.step.onnx"
        beside = [step, step.with_suffix(".json"), step.with_suffix(".safetensors")]
        try:
            self.offshoot("tune", self.graph, "--data", images, "--emit-step", step, "--force", "--batch-size", "2", "--val-split", "0", "--augment", "none",
                          "--no-shuffle", "--label-smoothing", "0", "--optimizer", "sgd", "--momentum", "0.9", "--weight-decay", "0", "--operators", "standard")
            problem, note = self.compare_gradients(step)
            if problem:
                self.gap("gradient", problem)
            else:
                self.row["gradient"] = "ok"
                self.row["gradient_note"] = note
        finally:
            for p in [images, *beside]:
                p.unlink(missing_ok=True)

    def step_gradients(self, step):
        """The loss of a step graph for the truth's images, and of each parameter its value and its gradient."""
        from safetensors.numpy import load_file
        description = json.loads(step.with_suffix(".json").read_text())
        initial = load_file(step.with_suffix(".safetensors"))
        feeds = {}
        for port in description["inputs"]:
            if port["name"] == "targets":
                feeds["targets"] = np.eye(self.truth["base"].shape[-1], dtype=np.float32)[[1, 4]][: port["shape"][0]]
            elif port["name"] == "learning_rate":
                feeds["learning_rate"] = np.array(1, np.float32)
            elif len(port["shape"]) == 4:
                feeds[port["name"]] = self.truth["x"]
            else:
                feeds[port["name"]] = np.ones(port["shape"], np.float32)
        for t in description["state"]:
            feeds[t["name"]] = initial[t["name"]] if t["initial"] is not None else np.zeros(t["shape"], np.float32)
        s = session(step)
        known = {i.name for i in s.get_inputs()}
        weights = [t for t in description["state"] if t["initial"] is not None]
        results = s.run(["loss"] + [t["next"] for t in weights], {k: v for k, v in feeds.items() if k in known})
        found = {t["name"]: (initial[t["name"]].astype(np.float64), initial[t["name"]] - n.astype(np.float64)) for t, n in zip(weights, results[1:])}
        return float(results[0]), found

    def compare_gradients(self, step):
        loss, found = self.step_gradients(step)
        if abs(loss - self.facts["loss"]) > 1e-4 * max(1, abs(self.facts["loss"])):
            return f"loss {loss}, PyTorch's {self.facts['loss']}", ""
        names = [k[2:] for k in self.truth.files if k.startswith("w:")]
        flat = np.concatenate([self.truth["w:" + n].ravel() for n in names])
        gradient = np.concatenate([self.truth["g:" + n].ravel() for n in names]).astype(np.float64)
        # What single precision does to PyTorch's own gradient of the parameter that each element is from.
        own_rounding = self.facts.get("roundings", {})
        roundings = np.concatenate([np.full(self.truth["w:" + n].size, own_rounding.get(n, 0)) for n in names])
        order = np.argsort(flat, kind="stable")
        ordered = flat[order]
        unique = np.ones(len(flat), bool)
        unique[1:] &= ordered[1:] != ordered[:-1]
        unique[:-1] &= ordered[1:] != ordered[:-1]
        scale, rounding = np.linalg.norm(gradient), max(self.facts["rounding"], self.facts.get("sensitivity", 0))
        owners, mapped = {}, {}
        count = np.zeros(len(flat), int)
        for name, (w, g) in found.items():
            at = np.clip(np.searchsorted(ordered, w.astype(np.float32).ravel()), 0, len(flat) - 1)
            hit = (ordered[at] == w.astype(np.float32).ravel()) & unique[at]
            if hit.mean() > 0.9:
                mapped[name] = (hit, order[at])
                np.add.at(count, order[at][hit], 1)
        compared, bad, of_weight = 0, [], {}
        for name, (w, g) in found.items():
            if name not in mapped or (count[mapped[name][1][mapped[name][0]]] != 1).any():
                continue
            hit, at = mapped[name]
            own, theirs = g.ravel()[hit], gradient[at[hit]]
            compared += w.size
            of_weight[name] = roundings[at[hit]].max(initial=0)
            # The subtraction of the update from the weight is rounded in single precision.
            allowed = max(1e-4, 10 * rounding, 20 * of_weight[name]) * np.linalg.norm(theirs) + max(1e-6, rounding) * scale + 2e-7 * np.linalg.norm(w)
            if not np.linalg.norm(own - theirs) <= allowed:
                bad.append((np.linalg.norm(own - theirs) / max(1e-12, np.linalg.norm(theirs)), name))
        if bad:
            worst = max(bad)
            return f"{len(bad)} of {len(found)} weights differ from PyTorch's, `{worst[1]}` by {worst[0]:.1e}", ""
        problem = self.graph_gradients(found, scale, rounding, of_weight)
        if problem:
            return problem, ""
        total = sum(w.size for w, _ in found.values())
        return None, f"all equal the graph's in PyTorch, {compared / total:.0%} the model's own"

    def graph_gradients(self, found, scale, rounding, of_weight):
        """All gradients against those of the exported graph itself, run by PyTorch in double precision. Weights that the exporter computed
        with are no parameters of the model, but they are the graph's. Those that are parameters may differ as far as PyTorch's own do in
        single precision."""
        import onnx
        import onnx_in_torch
        import torch
        from onnx import numpy_helper
        torch.set_num_threads(1)
        loss, gradients = onnx_in_torch.gradients(onnx.load(self.graph), self.truth["x"], [1, 4])
        if abs(loss - self.facts["loss"]) > 1e-4 * max(1, abs(self.facts["loss"])):
            return f"the graph's loss in double precision is {loss}, the model's {self.facts['loss']}"
        bad = []
        # The dynamo exporter writes a matrix once for each of its uses; the step trains one, with the sum of their gradients.
        arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load(self.graph).graph.initializer}
        copies = collections.defaultdict(list)
        for name in (gradients.keys() & arrays.keys()) - found.keys():
            copies[arrays[name].shape, arrays[name].tobytes()].append(gradients[name])
        # TorchScript's writes weights that are alike by accident once (biases that are zero); the step trains them apart, under names of their own.
        summed = {}
        for name, (w, g) in found.items():
            name = name if name in gradients else re.sub(r"_\d+$", "", name)
            summed[name] = (w, g + summed[name][1]) if name in summed else (w, g)
        for name, (w, g) in summed.items():
            theirs = gradients.get(name)
            if theirs is None:
                return f"`{name}` has no gradient in the exported graph"
            if name in arrays:
                theirs = sum(copies[arrays[name].shape, arrays[name].tobytes()], theirs)
            allowed = max(1e-4, 10 * rounding, 20 * of_weight.get(name, 0)) * np.linalg.norm(theirs) + max(1e-6, rounding) * scale + 2e-7 * np.linalg.norm(w)
            distance = np.linalg.norm(g - theirs.reshape(g.shape))
            if not distance <= allowed:
                bad.append((distance / max(1e-12, np.linalg.norm(theirs)), name))
        if bad:
            worst = max(bad)
            return f"{len(bad)} of {len(found)} weights differ from the graph's in PyTorch, `{worst[1]}` by {worst[0]:.1e}"


# ------------------------------------------------------------------------------------------------ commands


def chosen(names):
    return [k for k, m in enumerate(MODELS) if not names or any(n.lower() in m[1].lower() or n.lower() in m[0].lower() for n in names)]


def export_all(args):
    def one(job):
        k, exporter = job
        name = MODELS[k][1]
        path = args.cache / f"{name}-{exporter}"
        if Path(f"{path}.export.json").exists() and Path(f"{path}.onnx").exists() and not args.again:
            return
        start = time.time()
        try:
            done = subprocess.run([sys.executable, __file__, "--cache", str(args.cache), "one", str(k), exporter], capture_output=True, text=True, timeout=LIMIT)
            lines = [l for l in done.stderr.strip().splitlines() if l.strip()]
            failed = None if done.returncode == 0 else ([l for l in lines if re.search("Error|Exception", l)] or lines or [f"exit code {done.returncode}"])[-1][:250]
        except subprocess.TimeoutExpired:
            failed = f"the exporter took more than {LIMIT} s"
        Path(f"{path}.onnx.part").unlink(missing_ok=True)
        if failed:
            Path(f"{path}.failed").write_text(failed)
        else:
            Path(f"{path}.failed").unlink(missing_ok=True)
        print(f"{name:40} {exporter:7} {time.time() - start:5.0f} s {failed or ''}", flush=True)
    jobs = [(k, e) for k in chosen(args.names) for e in (args.exporter or EXPORTERS)]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, jobs))


def check_all(args):
    results, lock = args.cache / "results.json", threading.Lock()

    def keep(row):
        """A row is written as soon as it is known: a run that is stopped keeps what it has checked."""
        rows = {(r["model"], r["exporter"]): r for r in json.loads(results.read_text())} if results.exists() else {}
        old = rows.get((row["model"], row["exporter"]), {})
        if args.only:
            row = {**old, **row, "gaps": {**{k: v for k, v in old.get("gaps", {}).items() if k not in args.only + ["anatomy"]}, **row["gaps"]}}
        rows[(row["model"], row["exporter"])] = row
        results.write_text(json.dumps(list(rows.values()), indent=1))

    def one(job):
        row = Check(args, *job).all()
        states = " ".join(f"{w} {row.get(w, '-')}" for w in ["export", "anatomy", "surgery", "density", "gradient"])
        with lock:
            print(f"{row['model']:36} {row['exporter']:7} {states}", flush=True)
            for what, reason in row["gaps"].items():
                print(f"    {what}: {reason}", flush=True)
            keep(row)
        return row
    jobs = [(k, e) for k in chosen(args.names) for e in (args.exporter or EXPORTERS)]
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(one, jobs))
    for what in ["export", "anatomy", "surgery", "density", "gradient"]:
        states = [r.get(what) for r in rows if r.get(what)]
        print(f"{what}: {states.count('ok')} of {len(states)}")


MARKS = {"ok": "exact", "said": "said inexact", "refused": "refused", "gap": "**gap**"}


def write_table(args):
    """Writes the table between its marks in docs/dialects.md."""
    rows = json.loads((args.cache / "results.json").read_text())
    columns = ["anatomy", "surgery", "density", "gradient"]
    lines = ["| family | model | exporter | " + " | ".join(columns) + " |", "|---" * (3 + len(columns)) + "|"]
    reasons, order = [], [MODELS[k][1] for k in chosen(args.names)]
    rows = sorted((r for r in rows if r["model"] in order), key=lambda r: (order.index(r["model"]), r["exporter"] != "ts"))
    for r in rows:
        exporter = f"{r['exporter']} {EXPORTERS[r['exporter']]}"
        if r["export"] != "ok":
            cells = ["not exported"] + [""] * (len(columns) - 1)
        else:
            cells = ["in part" if (c, r.get(c)) == ("density", "said") else MARKS.get(r.get(c), "") for c in columns]
        lines.append(f"| {r['family']} | {r['model']} | {exporter} | " + " | ".join(cells) + " |")
        reasons += [f"- {r['model']}, {exporter}, {what}: {text}" for what, text in r["gaps"].items()]
    exported = [r for r in rows if r["export"] == "ok"]
    counts = []
    for c in columns:
        states = [r.get(c) for r in exported if r.get(c)]
        good = sum(s in ("ok", "said", "refused") for s in states)
        counts.append(f"{c} {states.count('ok')} exact" + (f", {good - states.count('ok')} refused or said to be inexact" if good > states.count("ok") else "") + f", of {len(states)}")
    builds = [r.get("build") for r in exported]
    latest = max((b for b in builds if b), key=builds.count, default=None)
    text = f"{len(exported)} exports, {builds.count(latest) if latest else 0} of them checked whole by one build: " + "; ".join(counts) + ".\n\n" + "\n".join(lines) + "\n\nReasons:\n\n" + "\n".join(reasons) + "\n"
    page = Path("docs/dialects.md")
    begin, end = f"<!-- {args.mark} -->", f"<!-- /{args.mark} -->"
    before, rest = page.read_text().split(begin)[0], page.read_text().split(end)[1]
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{rest}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/offshoot-coverage"))
    parser.add_argument("--binary", type=Path, default=Path("target/release/offshoot"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--exporter", action="append", choices=list(EXPORTERS))
    parser.add_argument("--only", action="append", help="check only this: surgery, density, gradient")
    parser.add_argument("--again", action="store_true", help="export anew what is there")
    parser.add_argument("--mark", default="coverage", help="the marks in docs/dialects.md that the table goes between")
    parser.add_argument("command", choices=["export", "check", "table", "one"])
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    args.build = hashlib.sha256(args.binary.read_bytes()).hexdigest()[:12] if args.command == "check" else None
    if args.command == "one":
        export(args.cache, int(args.names[0]), args.names[1])
    elif args.command == "export":
        export_all(args)
    elif args.command == "check":
        check_all(args)
    else:
        write_table(args)


if __name__ == "__main__":
    sys.exit(main())
