"""Makes fixtures/dialects/*.onnx, manifest.json and golden.json: one small Vision Transformer, written in every form that exporters use.

    OMP_NUM_THREADS=1 python scripts/make_dialect_fixtures.py [NAME ...]

Each graph is written node by node, in a form that some exporter, framework or optimiser writes: packed projections in every layout, Gemm,
Einsum, 1x1 convolutions, Softmax and LayerNorm taken apart, fused operators of ONNX Runtime and of newer operator sets, weights behind
Constant nodes, model-local functions, half precision. Its weights are those of a PyTorch model (`Vit` below), whose outputs it must equal
in ONNX Runtime and whose gradients the golden file holds, as scripts/make_gradient_golden.py says. Needs torch, onnx, onnxruntime.
"""

import argparse
import json
import math
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
import make_fixtures
import make_gradient_golden

IMAGE, PATCH, DIM, HEADS, HIDDEN, DEPTH, CLASSES = 16, 4, 24, 4, 40, 2, 7
SIDE = IMAGE // PATCH
WIDTH = DIM // HEADS
EPSILON = 1e-5


# ------------------------------------------------------------------------------------------------ the model


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": nn.GELU, "gelu-tanh": lambda: nn.GELU(approximate="tanh"), "quick-gelu": QuickGelu, "silu": nn.SiLU}


def turn(x, cos, sin):
    """Rotary embedding: halves of the features of [.., tokens, features] are turned by the angles of the tokens."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def angles(tokens, width):
    """cos and sin [tokens, width / 2]; the class token is not turned."""
    place = torch.arange(tokens).double()[:, None] * torch.tensor([0.9**i for i in range(width // 2)]).double()[None]
    return place.cos(), place.sin()


class Block(nn.Module):
    def __init__(self, key_heads, activation, norm, gated, rotary, talking):
        super().__init__()
        self.key_heads, self.rotary = key_heads, rotary
        self.norm1, self.norm2 = norm(), norm()
        self.q, self.k, self.v = nn.Linear(DIM, DIM), nn.Linear(DIM, key_heads * WIDTH), nn.Linear(DIM, key_heads * WIDTH)
        self.proj = nn.Linear(DIM, DIM)
        self.fc1, self.fc2 = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)
        self.gate = nn.Linear(DIM, HIDDEN) if gated else None
        self.act = ACTIVATIONS[activation]()
        self.before, self.after = (nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)) if talking else (None, None)

    def attention(self, x):
        n, tokens, _ = x.shape
        part = lambda y, heads: y.reshape(n, tokens, heads, WIDTH).transpose(1, 2)
        q, k, v = part(self.q(x), HEADS), part(self.k(x), self.key_heads), part(self.v(x), self.key_heads)
        if self.rotary:
            cos, sin = (t.to(x.dtype) for t in angles(tokens, WIDTH))
            q, k = turn(q, cos, sin), turn(k, cos, sin)
        k, v = (y.repeat_interleave(HEADS // self.key_heads, 1) for y in (k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(WIDTH)
        if self.before is not None:
            scores = self.before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        p = scores.softmax(-1)
        if self.after is not None:
            p = self.after(p.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.proj((p @ v).transpose(1, 2).reshape(n, tokens, DIM))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        hidden = self.act(self.fc1(y)) if self.gate is None else self.act(self.gate(y)) * self.fc1(y)
        return x + self.fc2(hidden)


class Vit(nn.Module):
    """A Vision Transformer with class token; without one the tokens are averaged."""

    def __init__(self, key_heads=HEADS, activation="gelu", rms=False, gated=False, rotary=False, talking=False, class_token=True):
        super().__init__()
        norm = (lambda: nn.RMSNorm(DIM, eps=EPSILON)) if rms else (lambda: nn.LayerNorm(DIM, eps=EPSILON))
        self.patch = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, DIM)) if class_token else None
        self.pos_embed = nn.Parameter(torch.zeros(1, SIDE * SIDE + class_token, DIM))
        self.blocks = nn.ModuleList(Block(key_heads, activation, norm, gated, rotary, talking) for _ in range(DEPTH))
        self.norm = norm()
        self.head = nn.Linear(DIM, CLASSES)
        self.facts = dict(key_heads=key_heads, activation=activation, gated=gated, class_token=class_token)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x.mean(1) if self.token is None else x[:, 0])


def facts(model):
    f = model.facts
    # Heads that have their own keys and values: where several heads of queries share them, those go together.
    heads = f["key_heads"] if f["key_heads"] > 1 else HEADS
    layer = {"heads": heads, "head_dim": DIM // heads, "embedding_dim": DIM, "ffn_kind": "gated" if f["gated"] else "plain",
             "activation": f["activation"], "ffn_width": HIDDEN}
    return {"library": "written by hand", "image": [3, IMAGE, IMAGE], "patch_size": PATCH, "grid": [SIDE, SIDE],
            "prefix_tokens": int(f["class_token"]), "classes": CLASSES, "layers": [dict(layer) for _ in range(DEPTH)], "other_attentions": []}


# ------------------------------------------------------------------------------------------------ the forms


class Form:
    """Writes the model's graph; a form overrides the part that it writes in another way."""

    opset, model, kind = 17, {}, np.float32
    runtimes, tolerance = ["onnxruntime", "tract"], 1e-5
    domains = ()

    def __init__(self, model):
        self.vit = model
        self.nodes, self.initializers, self.functions, self.count = [], [], [], 0
        self.tokens = model.pos_embed.shape[1]
        self.named = {id(p): n for n, p in model.named_parameters()}

    # ---- helpers

    def name(self, stem):
        self.count += 1
        return f"{stem}_{self.count}"

    def op(self, op, *inputs, outputs=1, domain="", **attributes):
        made = [self.name(op.lower()) for _ in range(outputs)] if isinstance(outputs, int) else outputs
        self.nodes.append(helper.make_node(op, [i or "" for i in inputs], made, name=self.name(f"node_{op}"), domain=domain, **attributes))
        return made[0] if len(made) == 1 else made

    def tensor(self, array, stem="weight"):
        name = self.name(stem)
        self.initializers.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def weight(self, array, stem="weight"):
        return self.tensor(np.asarray(array).astype(self.kind), stem)

    def scalar(self, value):
        return self.weight(np.array(value), "scalar")

    def ints(self, *values):
        return self.tensor(np.array(values, np.int64), "shape")

    @staticmethod
    def of(parameter):
        return parameter.detach().numpy()

    # ---- the parts

    def linear(self, x, layer):
        y = self.op("MatMul", x, self.weight(self.of(layer.weight).T))
        return self.op("Add", self.weight(self.of(layer.bias), "bias"), y)

    def norm(self, x, layer):
        return self.op("LayerNormalization", x, self.weight(self.of(layer.weight), "norm"), self.weight(self.of(layer.bias), "norm_bias"), axis=-1, epsilon=EPSILON)

    def act(self, x):
        erf = self.op("Erf", self.op("Div", x, self.scalar(math.sqrt(2))))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, self.scalar(1.0))), self.scalar(0.5))

    def split_heads(self, x, heads=HEADS):
        return self.op("Transpose", self.op("Reshape", x, self.ints(0, 0, heads, WIDTH)), perm=[0, 2, 1, 3])

    def merge_heads(self, x):
        return self.op("Reshape", self.op("Transpose", x, perm=[0, 2, 1, 3]), self.ints(0, 0, DIM))

    def softmax(self, x):
        return self.op("Softmax", x, axis=-1)

    def scores(self, q, k):
        return self.op("Mul", self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2])), self.scalar(1 / math.sqrt(WIDTH)))

    def qkv(self, x, block):
        return [self.split_heads(self.linear(x, l)) for l in (block.q, block.k, block.v)]

    def mix(self, q, k, v):
        return self.op("MatMul", self.softmax(self.scores(q, k)), v)

    def attention(self, x, block):
        return self.linear(self.merge_heads(self.mix(*self.qkv(x, block))), block.proj)

    def ffn(self, x, block):
        hidden = self.act(self.linear(x, block.fc1)) if block.gate is None else self.op("Mul", self.act(self.linear(x, block.gate)), self.linear(x, block.fc1))
        return self.linear(hidden, block.fc2)

    def block(self, x, block):
        x = self.op("Add", x, self.attention(self.norm(x, block.norm1), block))
        return self.op("Add", x, self.ffn(self.norm(x, block.norm2), block))

    def embed(self, x):
        patch = self.vit.patch
        x = self.op("Conv", x, self.weight(self.of(patch.weight)), self.weight(self.of(patch.bias)), kernel_shape=[PATCH] * 2, strides=[PATCH] * 2)
        x = self.op("Transpose", self.op("Reshape", x, self.ints(0, DIM, -1)), perm=[0, 2, 1])
        if self.vit.token is not None:
            batch = self.op("Slice", self.op("Shape", x), self.ints(0), self.ints(1), self.ints(0))
            token = self.op("Expand", self.weight(self.of(self.vit.token), "token"), self.op("Concat", batch, self.ints(1), self.ints(DIM), axis=0))
            x = self.op("Concat", token, x, axis=1)
        return self.op("Add", x, self.weight(self.of(self.vit.pos_embed), "pos_embed"))

    def head(self, x):
        if self.vit.token is None:
            x = self.op("ReduceMean", x, keepdims=0, axes=[1]) if self.opset < 18 else self.op("ReduceMean", x, self.ints(1), keepdims=0)
        else:
            x = self.op("Gather", x, self.tensor(np.array(0), "first"), axis=1)
        return self.linear(x, self.vit.head)

    def body(self, x):
        x = self.embed(x)
        for block in self.vit.blocks:
            x = self.block(x, block)
        return self.head(self.norm(x, self.vit.norm))

    def build(self):
        kind = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}[self.kind]
        y = self.body("input")
        self.op("Identity", y, outputs=["logits"])
        graph = helper.make_graph(self.nodes, "vit", [helper.make_tensor_value_info("input", kind, ["batch", 3, IMAGE, IMAGE])],
                                  [helper.make_tensor_value_info("logits", kind, ["batch", CLASSES])], self.initializers)
        imports = [helper.make_opsetid("", self.opset)] + [helper.make_opsetid(d, 1) for d in self.domains]
        model = helper.make_model(graph, opset_imports=imports, ir_version=13 if self.opset > 23 else 10, functions=self.functions, producer_name="offshoot fixtures")
        if not self.domains:
            onnx.checker.check_model(model, full_check=True)
        return model


class Separate(Form):
    """Separate projections, nothing fused."""


def interleaved(arrays, layout):
    """q, k, v [heads x dim, ..] packed in one of six orders of (3, heads, dim)."""
    packed = np.stack([a.reshape(HEADS, WIDTH, *a.shape[1:]) for a in arrays])
    axes = ["3hd".index(c) for c in layout]
    return packed.transpose(*axes, *range(3, packed.ndim)).reshape(3 * DIM, *arrays[0].shape[1:])


class Packed(Form):
    layout = "3hd"

    def qkv(self, x, block):
        layers = (block.q, block.k, block.v)
        w = interleaved([self.of(l.weight) for l in layers], self.layout)
        b = interleaved([self.of(l.bias) for l in layers], self.layout)
        y = self.op("Add", self.op("MatMul", x, self.weight(w.T)), self.weight(b, "bias"))
        size = {"3": 3, "h": HEADS, "d": WIDTH}
        y = self.op("Reshape", y, self.ints(0, self.tokens, *[size[c] for c in self.layout]))
        at = {c: 2 + i for i, c in enumerate(self.layout)}
        y = self.op("Transpose", y, perm=[at["3"], 0, at["h"], 1, at["d"]])
        return [self.op("Gather", y, self.tensor(np.array(i), "index"), axis=0) for i in range(3)]


class PackedHeadsFirst(Packed):
    """A packed projection [heads, 3, dim], taken apart by Split (GPT-NeoX, BLOOM)."""
    layout = "h3d"

    def qkv(self, x, block):
        layers = (block.q, block.k, block.v)
        w = interleaved([self.of(l.weight) for l in layers], self.layout)
        b = interleaved([self.of(l.bias) for l in layers], self.layout)
        y = self.op("Add", self.op("MatMul", x, self.weight(w.T)), self.weight(b, "bias"))
        y = self.op("Transpose", self.op("Reshape", y, self.ints(0, 0, HEADS, 3 * WIDTH)), perm=[0, 2, 1, 3])
        return self.op("Split", y, self.ints(WIDTH, WIDTH, WIDTH), outputs=3, axis=3)


class PackedDimsLast(Packed):
    """A packed projection [heads, dim, 3]."""
    layout = "hd3"


class PackedDimsFirst(Packed):
    """A packed projection [dim, heads, 3]: heads are not the outermost part of anything."""
    layout = "dh3"

    def merge_heads(self, x):
        return self.op("Reshape", self.op("Transpose", x, perm=[0, 2, 3, 1]), self.ints(0, 0, DIM))

    def attention(self, x, block):
        y = self.merge_heads(self.mix(*self.qkv(x, block)))
        w = self.of(block.proj.weight).reshape(DIM, HEADS, WIDTH).transpose(0, 2, 1).reshape(DIM, DIM)
        return self.op("Add", self.op("MatMul", y, self.weight(w.T)), self.weight(self.of(block.proj.bias), "bias"))


class PackedSlices(Packed):
    """A packed projection [3, heads, dim], taken apart by Slice on the last axis before heads are split."""

    def qkv(self, x, block):
        layers = (block.q, block.k, block.v)
        w, b = np.concatenate([self.of(l.weight) for l in layers]), np.concatenate([self.of(l.bias) for l in layers])
        y = self.op("Add", self.op("MatMul", x, self.weight(w.T)), self.weight(b, "bias"))
        return [self.split_heads(self.op("Slice", y, self.ints(i * DIM), self.ints((i + 1) * DIM), self.ints(2))) for i in range(3)]


class Gemm(Form):
    """Gemm over flattened tokens: transposed weights in the attention, plain ones in the FFN; heads merged by Flatten."""

    def linear(self, x, layer, transposed=True):
        rank3 = layer.in_features == DIM and layer is not self.vit.head or layer.in_features == HIDDEN
        flat = self.op("Reshape", x, self.ints(-1, layer.in_features)) if rank3 else x
        w = self.of(layer.weight)
        plain = layer.in_features == HIDDEN or layer.out_features == HIDDEN
        y = self.op("Gemm", flat, self.weight(w.T if plain else w), self.weight(self.of(layer.bias), "bias"), transB=0 if plain else 1)
        return self.op("Reshape", y, self.ints(-1, self.tokens, layer.out_features)) if rank3 else y


class Einsum(Form):
    """Einsum for every product, weights with an axis of heads (JAX, Keras)."""

    def qkv(self, x, block):
        out = []
        for l in (block.q, block.k, block.v):
            w = self.of(l.weight).reshape(HEADS, WIDTH, DIM).transpose(2, 0, 1)
            y = self.op("Einsum", x, self.weight(w), equation="bnc,chd->bnhd")
            out.append(self.op("Add", y, self.weight(self.of(l.bias).reshape(HEADS, WIDTH), "bias")))
        return out

    def mix(self, q, k, v):
        scores = self.op("Einsum", self.op("Mul", q, self.scalar(1 / math.sqrt(WIDTH))), k, equation="bqhd,bkhd->bhqk")
        return self.op("Einsum", self.softmax(scores), v, equation="bhqk,bkhd->bqhd")

    def attention(self, x, block):
        w = self.of(block.proj.weight).reshape(DIM, HEADS, WIDTH).transpose(1, 2, 0)
        y = self.op("Einsum", self.mix(*self.qkv(x, block)), self.weight(w), equation="bqhd,hdc->bqc")
        return self.op("Add", y, self.weight(self.of(block.proj.bias), "bias"))


class EinsumEllipsis(Form):
    """Einsum with an ellipsis (tract does not parse it)."""
    runtimes = ["onnxruntime"]

    def linear(self, x, layer):
        y = self.op("Einsum", x, self.weight(self.of(layer.weight).T), equation="...c,cd->...d")
        return self.op("Add", y, self.weight(self.of(layer.bias), "bias"))

    def mix(self, q, k, v):
        scores = self.op("Einsum", q, k, equation="...qd, ...kd -> ...qk")
        return self.op("Einsum", self.softmax(self.op("Mul", scores, self.scalar(1 / math.sqrt(WIDTH)))), v, equation="...qk,...kd->...qd")


class Convolutions(Form):
    """Channels first: every projection is a 1x1 convolution over the grid of tokens; the norm is taken apart over the channels."""
    model = dict(class_token=False)

    def linear(self, x, layer):
        if layer is self.vit.head:
            return super().linear(x, layer)
        w = self.of(layer.weight)[:, :, None, None]
        return self.op("Conv", x, self.weight(w), self.weight(self.of(layer.bias), "bias"), kernel_shape=[1, 1])

    def norm(self, x, layer):
        mean = self.op("ReduceMean", x, axes=[1], keepdims=1)
        centred = self.op("Sub", x, mean)
        variance = self.op("ReduceMean", self.op("Mul", centred, centred), axes=[1], keepdims=1)
        normal = self.op("Div", centred, self.op("Sqrt", self.op("Add", variance, self.scalar(EPSILON))))
        shape = (DIM, 1, 1)
        return self.op("Add", self.op("Mul", normal, self.weight(self.of(layer.weight).reshape(shape), "norm")), self.weight(self.of(layer.bias).reshape(shape), "norm_bias"))

    def attention(self, x, block):
        q, k, v = (self.op("Reshape", self.linear(x, l), self.ints(0, HEADS, WIDTH, -1)) for l in (block.q, block.k, block.v))
        scores = self.op("MatMul", self.op("Transpose", self.op("Mul", q, self.scalar(1 / math.sqrt(WIDTH))), perm=[0, 1, 3, 2]), k)
        y = self.op("MatMul", v, self.op("Transpose", self.softmax(scores), perm=[0, 1, 3, 2]))
        return self.linear(self.op("Reshape", y, self.ints(0, DIM, SIDE, SIDE)), block.proj)

    def embed(self, x):
        patch = self.vit.patch
        x = self.op("Conv", x, self.weight(self.of(patch.weight)), self.weight(self.of(patch.bias)), kernel_shape=[PATCH] * 2, strides=[PATCH] * 2)
        return self.op("Add", x, self.weight(self.of(self.vit.pos_embed)[0].T.reshape(1, DIM, SIDE, SIDE), "pos_embed"))

    def head(self, x):
        return self.linear(self.op("Flatten", self.op("GlobalAveragePool", x)), self.vit.head)


class ScaleSplit(Form):
    """The scale split over queries and keys (PyTorch's own decomposition), keys transposed on the way."""

    def scores(self, q, k):
        half = lambda: self.scalar(WIDTH**-0.25)
        return self.op("MatMul", self.op("Mul", q, half()), self.op("Mul", self.op("Transpose", k, perm=[0, 1, 3, 2]), half()))


class ScaleDivided(Form):
    """Scores divided by a scale that is computed from the queries' shape; a padding mask that is all ones, as BERT exports have."""

    def scores(self, q, k):
        width = self.op("Cast", self.op("Gather", self.op("Shape", q), self.tensor(np.array(3), "index"), axis=0), to=TensorProto.FLOAT)
        scores = self.op("Div", self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2])), self.op("Sqrt", width))
        return self.op("Add", scores, self.weight(np.zeros((1, 1, 1, self.tokens)), "mask"))


class Guarded(Form):
    """Scaled-dot-product attention as PyTorch's dynamo exporter writes it: a mask of true, and a guard against rows that are not a number."""

    def mix(self, q, k, v):
        mask = self.op("Expand", self.tensor(np.ones((1, 1, 1, 1), bool), "mask"), self.ints(1, 1, self.tokens, self.tokens))
        scores = self.op("Where", mask, self.scores(q, k), self.scalar(-1e30))
        p = self.softmax(scores)
        p = self.op("Where", self.op("IsNaN", p), self.scalar(0.0), p)
        return self.op("MatMul", p, v)


class TakenApart(Form):
    """Softmax, LayerNorm and GELU of elementary operators (old operator sets, TensorFlow, PaddlePaddle)."""
    opset = 13
    model = dict(activation="gelu-tanh")

    def softmax(self, x):
        e = self.op("Exp", self.op("Sub", x, self.op("ReduceMax", x, axes=[-1], keepdims=1)))
        return self.op("Div", e, self.op("ReduceSum", e, self.ints(-1), keepdims=1))

    def norm(self, x, layer):
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1], keepdims=1))
        variance = self.op("ReduceMean", self.op("Pow", centred, self.scalar(2.0)), axes=[-1], keepdims=1)
        normal = self.op("Div", centred, self.op("Sqrt", self.op("Add", variance, self.scalar(EPSILON))))
        return self.op("Add", self.op("Mul", normal, self.weight(self.of(layer.weight), "norm")), self.weight(self.of(layer.bias), "norm_bias"))

    def act(self, x):
        cubic = self.op("Mul", self.op("Pow", x, self.scalar(3.0)), self.scalar(0.044715))
        bent = self.op("Tanh", self.op("Mul", self.op("Add", x, cubic), self.scalar(math.sqrt(2 / math.pi))))
        return self.op("Mul", self.op("Mul", x, self.scalar(0.5)), self.op("Add", bent, self.scalar(1.0)))


class TakenApartOtherwise(TakenApart):
    """The same without subtraction of the largest score, with reciprocals, and a norm as TensorFlow writes it."""
    model = {}

    def softmax(self, x):
        e = self.op("Exp", x)
        return self.op("Mul", e, self.op("Reciprocal", self.op("ReduceSum", e, self.ints(-1), keepdims=1)))

    def norm(self, x, layer):
        mean = self.op("ReduceMean", x, axes=[-1], keepdims=1)
        centred = self.op("Sub", x, mean)
        variance = self.op("ReduceMean", self.op("Mul", centred, centred), axes=[-1], keepdims=1)
        inverse = self.op("Reciprocal", self.op("Sqrt", self.op("Add", variance, self.scalar(EPSILON))))
        scale = self.op("Mul", inverse, self.weight(self.of(layer.weight), "norm"))
        shift = self.op("Sub", self.weight(self.of(layer.bias), "norm_bias"), self.op("Mul", mean, scale))
        return self.op("Add", self.op("Mul", x, scale), shift)

    def act(self, x):
        return Form.act(self, x)


class Microsoft(Form):
    """What ONNX Runtime's transformer optimiser makes: Attention, SkipLayerNormalization, BiasGelu."""
    domains = ("com.microsoft",)
    runtimes = ["onnxruntime"]

    def fused(self, op, *inputs, **kw):
        return self.op(op, *inputs, domain="com.microsoft", **kw)

    def attention(self, x, block):
        layers = (block.q, block.k, block.v)
        w, b = np.concatenate([self.of(l.weight) for l in layers]), np.concatenate([self.of(l.bias) for l in layers])
        y = self.fused("Attention", x, self.weight(w.T), self.weight(b, "bias"), num_heads=HEADS, qkv_hidden_sizes=[DIM] * 3)
        return self.op("MatMul", y, self.weight(self.of(block.proj.weight).T))

    def act(self, x, bias):
        return self.fused("BiasGelu", x, bias)

    def hidden(self, x, block):
        return self.act(self.op("MatMul", x, self.weight(self.of(block.fc1.weight).T)), self.weight(self.of(block.fc1.bias), "bias"))

    def skip(self, x, branch, bias, norm):
        y, _, _, total = self.fused("SkipLayerNormalization", x, branch, self.weight(self.of(norm.weight), "norm"), self.weight(self.of(norm.bias), "norm_bias"),
                                    self.weight(self.of(bias), "bias"), outputs=[self.name("normed"), "", "", self.name("sum")], epsilon=EPSILON)
        return y, total

    def body(self, x):
        total = self.embed(x)
        blocks = list(self.vit.blocks)
        y = self.norm(total, blocks[0].norm1)
        for block, after in zip(blocks, [b.norm1 for b in blocks[1:]] + [self.vit.norm]):
            y, total = self.skip(total, self.attention(y, block), block.proj.bias, block.norm2)
            down = self.op("MatMul", self.hidden(y, block), self.weight(self.of(block.fc2.weight).T))
            y, total = self.skip(total, down, block.fc2.bias, after)
        return self.head(y)


class MicrosoftMultiHead(Microsoft):
    """MultiHeadAttention with its bias, and FastGelu."""
    model = dict(activation="gelu-tanh")

    def attention(self, x, block):
        layers = (block.q, block.k, block.v)
        q, k, v = (self.op("MatMul", x, self.weight(self.of(l.weight).T)) for l in layers)
        y = self.fused("MultiHeadAttention", q, k, v, self.weight(np.concatenate([self.of(l.bias) for l in layers]), "bias"), num_heads=HEADS)
        return self.op("MatMul", y, self.weight(self.of(block.proj.weight).T))

    def act(self, x, bias):
        return self.fused("FastGelu", x, bias)


class MicrosoftRms(Microsoft):
    """MultiHeadAttention whose keys and values have an axis of heads, SimplifiedLayerNormalization, SkipSimplifiedLayerNormalization and QuickGelu."""
    model = dict(activation="quick-gelu", rms=True)

    def norm(self, x, layer):
        return self.op("SimplifiedLayerNormalization", x, self.weight(self.of(layer.weight), "norm"), axis=-1, epsilon=EPSILON)

    def attention(self, x, block):
        q, k, v = self.linear(x, block.q), *(self.split_heads(self.linear(x, l)) for l in (block.k, block.v))
        return self.op("MatMul", self.fused("MultiHeadAttention", q, k, v, num_heads=HEADS), self.weight(self.of(block.proj.weight).T))

    def act(self, x, bias):
        return self.fused("QuickGelu", self.op("Add", x, bias), alpha=1.702)

    def skip(self, x, branch, bias, norm):
        y, _, _, total = self.fused("SkipSimplifiedLayerNormalization", x, branch, self.weight(self.of(norm.weight), "norm"), self.weight(self.of(bias), "bias"),
                                    outputs=[self.name("normed"), "", "", self.name("sum")], epsilon=EPSILON)
        return y, total


class Modern(Form):
    """Operator set 24: Attention with grouped-query heads, RotaryEmbedding, RMSNormalization, gated FFN of Swish."""
    opset = 24
    model = dict(key_heads=2, rms=True, gated=True, activation="silu", rotary=True)
    runtimes = ["onnxruntime"]

    def norm(self, x, layer):
        return self.op("RMSNormalization", x, self.weight(self.of(layer.weight), "norm"), axis=-1, epsilon=EPSILON)

    def act(self, x):
        return self.op("Swish", x)

    def attention(self, x, block):
        q, k, v = (self.linear(x, l) for l in (block.q, block.k, block.v))
        cos, sin = (t.float().numpy() for t in angles(self.tokens, WIDTH))
        positions = self.op("Expand", self.tensor(np.arange(self.tokens)[None], "positions"),
                            self.op("Concat", self.op("Slice", self.op("Shape", x), self.ints(0), self.ints(1)), self.ints(self.tokens), axis=0))
        table = lambda t: self.weight(t, "rotary")
        q = self.op("RotaryEmbedding", q, table(cos), table(sin), positions, num_heads=HEADS)
        k = self.op("RotaryEmbedding", k, table(cos), table(sin), positions, num_heads=block.key_heads)
        y = self.op("Attention", q, k, v, q_num_heads=HEADS, kv_num_heads=block.key_heads)
        return self.linear(y, block.proj)


class ModernRank4(Modern):
    """Operator set 23: Attention and RotaryEmbedding over [batch, heads, tokens, dim], grouped-query heads."""
    opset = 23
    model = dict(key_heads=2, rotary=True)

    def norm(self, x, layer):
        return Form.norm(self, x, layer)

    def act(self, x):
        return self.op("Gelu", x)

    def attention(self, x, block):
        q, k, v = (self.split_heads(self.linear(x, l), h) for l, h in ((block.q, HEADS), (block.k, block.key_heads), (block.v, block.key_heads)))
        cos, sin = (t.float().numpy()[None] for t in angles(self.tokens, WIDTH))
        batch = self.op("Slice", self.op("Shape", x), self.ints(0), self.ints(1))
        def turned(y):
            tables = [self.op("Expand", self.weight(t, "rotary"), self.op("Concat", batch, self.ints(self.tokens, WIDTH // 2), axis=0)) for t in (cos, sin)]
            return self.op("RotaryEmbedding", y, *tables)
        y = self.op("Attention", turned(q), turned(k), v, scale=1 / math.sqrt(WIDTH))
        return self.linear(self.merge_heads(y), block.proj)


class GroupedQueries(Form):
    """Grouped-query heads from one packed projection Q | K | V of unequal parts; keys and values repeated by Expand."""
    model = dict(key_heads=2)

    def qkv(self, x, block):
        layers = (block.q, block.k, block.v)
        w, b = np.concatenate([self.of(l.weight) for l in layers]), np.concatenate([self.of(l.bias) for l in layers])
        y = self.op("Add", self.op("MatMul", x, self.weight(w.T)), self.weight(b, "bias"))
        n = block.key_heads
        q, k, v = self.op("Split", y, self.ints(DIM, n * WIDTH, n * WIDTH), outputs=3, axis=2)
        return [self.split_heads(q), *(self.repeated(self.split_heads(y, n), n) for y in (k, v))]

    def repeated(self, y, n):
        y = self.op("Unsqueeze", y, self.ints(2))
        y = self.op("Expand", y, self.ints(1, n, HEADS // n, self.tokens, WIDTH))
        return self.op("Reshape", y, self.ints(0, HEADS, self.tokens, WIDTH))


class MultiQuery(GroupedQueries):
    """One head of keys and values for all heads of queries, by broadcasting."""
    model = dict(key_heads=1)

    def repeated(self, y, n):
        return y


class TalkingHeads(Form):
    """Talking heads (CaiT): heads are mixed before and after the Softmax."""
    model = dict(talking=True)

    def talk(self, x, layer):
        y = self.op("MatMul", self.op("Transpose", x, perm=[0, 2, 3, 1]), self.weight(self.of(layer.weight).T))
        return self.op("Transpose", self.op("Add", y, self.weight(self.of(layer.bias), "bias")), perm=[0, 3, 1, 2])

    def attention(self, x, block):
        q, k, v = self.qkv(x, block)
        p = self.talk(self.softmax(self.talk(self.scores(q, k), block.before)), block.after)
        return self.linear(self.merge_heads(self.op("MatMul", p, v)), block.proj)


class Constants(Packed):
    """Every weight a Constant node, reached through Transpose, Identity, Reshape or Cast; values without names that say anything."""

    def name(self, stem):
        self.count += 1
        return str(self.count)

    def constant(self, array):
        name = self.name("")
        self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(array, order="C"))))
        return name

    def tensor(self, array, stem="weight"):
        return self.constant(array)

    def weight(self, array, stem="weight"):
        array = np.asarray(array, np.float32)
        if array.ndim == 2:
            if array.shape[0] % 2:
                return self.op("Transpose", self.constant(array.T), perm=[1, 0])
            return self.op("Transpose", self.op("Identity", self.constant(array.T)), perm=[1, 0])
        if array.ndim == 1 and len(array) == 3 * DIM:
            return self.op("Reshape", self.constant(array.reshape(3, DIM)), self.ints(-1))
        if array.ndim == 1:
            return self.op("Cast", self.constant(array), to=TensorProto.FLOAT)
        return self.constant(array)


class Functions(Form):
    """Model-local functions: the norm, and the attention with its number of heads as an attribute; functions call functions."""
    domains = ("local",)
    opset = 18

    def norm(self, x, layer):
        return self.op("Norm", x, self.weight(self.of(layer.weight), "norm"), self.weight(self.of(layer.bias), "norm_bias"), domain="local")

    def mix(self, q, k, v):
        return self.op("Attend", q, k, v, domain="local", scale=1 / math.sqrt(WIDTH))

    def build(self):
        node, imports = helper.make_node, [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
        scale = node("Constant", [], ["s"])
        scale.attribute.add(name="value_float", ref_attr_name="scale", type=onnx.AttributeProto.FLOAT)
        self.functions = [
            helper.make_function("local", "Norm", ["x", "w", "b"], ["y"], [node("LayerNormalization", ["x", "w", "b"], ["y"], axis=-1, epsilon=EPSILON)], imports),
            helper.make_function("local", "Scores", ["q", "k"], ["y"], [node("Transpose", ["k"], ["t"], perm=[0, 1, 3, 2]), node("MatMul", ["q", "t"], ["y"])], imports),
            helper.make_function("local", "Attend", ["q", "k", "v"], ["y"], [
                scale, node("Scores", ["q", "k"], ["m"], domain="local"), node("Mul", ["m", "s"], ["z"]), node("Softmax", ["z"], ["p"], axis=-1),
                node("MatMul", ["p", "v"], ["y"])], imports, attributes=["scale"]),
        ]
        return super().build()


class Half(Form):
    """float16 throughout."""
    kind = np.float16
    runtimes, tolerance = ["onnxruntime"], 2e-2


class RuntimeExtended(TalkingHeads):
    """Talking heads after ONNX Runtime's extended optimisation: a Softmax over the axis before the last, SkipLayerNormalization, BiasGelu."""
    runtimes = ["onnxruntime"]

    def build(self):
        with tempfile.TemporaryDirectory() as folder:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.optimized_model_filepath = f"{folder}/optimised.onnx"
            options.log_severity_level = 4
            onnxruntime.InferenceSession(super().build().SerializeToString(), options, providers=["CPUExecutionProvider"])
            return onnx.load(options.optimized_model_filepath)


class TransformerOptimiser(Separate):
    """After ONNX Runtime's transformer optimiser: SkipLayerNormalization with the branch before the stream, and without the last sum."""
    runtimes = ["onnxruntime"]

    def build(self):
        from onnxruntime.transformers import optimizer
        with tempfile.TemporaryDirectory() as folder:
            onnx.save(super().build(), f"{folder}/plain.onnx")
            return optimizer.optimize_model(f"{folder}/plain.onnx", model_type="vit", num_heads=HEADS, hidden_size=DIM).model


FORMS = [("separate", Separate), ("packed", Packed), ("packed-heads-first", PackedHeadsFirst), ("packed-dims-last", PackedDimsLast), ("packed-dims-first", PackedDimsFirst),
         ("packed-slices", PackedSlices), ("gemm", Gemm), ("einsum", Einsum), ("einsum-ellipsis", EinsumEllipsis), ("convolutions", Convolutions),
         ("scale-split", ScaleSplit), ("scale-divided", ScaleDivided), ("guarded", Guarded), ("taken-apart", TakenApart),
         ("taken-apart-otherwise", TakenApartOtherwise), ("microsoft", Microsoft), ("microsoft-multi-head", MicrosoftMultiHead),
         ("microsoft-rms", MicrosoftRms), ("opset24-grouped", Modern), ("opset23-grouped", ModernRank4), ("grouped-queries", GroupedQueries),
         ("multi-query", MultiQuery), ("talking-heads", TalkingHeads), ("constants", Constants), ("functions", Functions), ("half", Half),
         ("runtime-extended", RuntimeExtended), ("transformer-optimiser", TransformerOptimiser)]


# ------------------------------------------------------------------------------------------------ files


def reference(form):
    model = Vit(**form.model)
    return model, facts(model)


def make(folder, name, form):
    seed = zlib.crc32(name.encode())
    model, said = reference(form)
    model.eval()
    make_fixtures.scramble(model, seed)
    if form.kind == np.float16:
        model = model.half().float()
    proto = form(model).build()
    path = folder / f"{name}.onnx"
    onnx.save(proto, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (1, 3):
        x = torch.randn((batch, 3, IMAGE, IMAGE), generator=torch.Generator().manual_seed(seed + 2))
        with torch.no_grad():
            theirs = model(x).numpy()
        ours = session.run(None, {"input": x.numpy().astype(form.kind)})[0].astype(np.float32)
        worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
    assert worst < form.tolerance, f"{name}: relative error {worst:.1e} against PyTorch"
    operators = [n.op_type for n in proto.graph.node]
    parameters = sum(p.numel() for p in model.parameters())
    return {"file": path.name, "family": name, "form": form.__doc__.strip() if form.__doc__ else "A packed projection [3, heads, dim].", "exporter": "hand", "opset": form.opset,
            **said, "embedding_dim": DIM, "parameters": parameters, "used_parameters": parameters,
            "input": {"name": "input", "shape": ["batch", 3, IMAGE, IMAGE]}, "outputs": [{"name": "logits", "shape": ["batch", CLASSES]}],
            "pre_norm": True, "attention_operators": sum(o in ("Attention", "MultiHeadAttention") for o in operators),
            "runtimes": form.runtimes, "tolerance": form.tolerance, "max_export_error": float(f"{worst:.1e}")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="make only forms whose name contains one of these")
    parser.add_argument("--output", type=Path, default=Path("fixtures/dialects"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    read = lambda file, key: {e["file"]: e for e in key(json.loads(file.read_text()))} if file.exists() else {}
    manifest, goldens = args.output / "manifest.json", args.output / "golden.json"
    made, golden = read(manifest, lambda d: d["fixtures"]), read(goldens, lambda d: d)
    for name, form in FORMS:
        if args.names and not any(n in name for n in args.names):
            continue
        entry = made[f"{name}.onnx"] = make(args.output, name, form)
        if form.kind == np.float32:
            golden[f"{name}.onnx"] = make_gradient_golden.golden(args.output, name, {}, lambda: reference(form))
        unmapped = [u["parameter"] for u in golden.get(f"{name}.onnx", {}).get("unmapped", [])]
        print(f"{name:24} {(args.output / entry['file']).stat().st_size // 1024:4} KB, error {entry['max_export_error']}, unmapped {unmapped}", flush=True)
    ordered = lambda d: [d[f"{n}.onnx"] for n, _ in FORMS if f"{n}.onnx" in d]
    manifest.write_text('{\n  "fixtures": [\n' + ",\n".join("    " + make_fixtures.line(e) for e in ordered(made)) + '\n  ],\n  "not_exported": []\n}\n')
    goldens.write_text("[\n" + ",\n".join(json.dumps(e, separators=(",", ":")) for e in ordered(golden)) + "\n]\n")
    print(f"{len(made)} fixtures, {sum((args.output / n).stat().st_size for n in made) / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(main())
