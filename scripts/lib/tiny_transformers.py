# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "numpy==2.5.5",
#     "torch==2.15.0",
#     "transformers==5.23.0",
# ]
# ///
"""Small random models of every class of Hugging Face transformers, and what PyTorch says of them: the oracle of
`scripts/check/sweep_transformers.py`. It shares no code with Offshoot.

A class is made small by the names of its configuration's fields (`TINY`) and by overrides where that is not enough. Every parameter is
drawn anew, biases, gains and position tables too, so that no fault hides behind zeros and ones.

The anatomy is what runs: a `TorchFunctionMode` sees every linear map, convolution, softmax and scaled dot product in order of execution,
together with the modules that they run in. An attention is a softmax inside a module that has a number of heads; its output projection is
the next linear map that takes what the heads made. An FFN is a linear map back from what another one made wider, in a block with an
attention.
"""

import importlib
import inspect
import itertools
import math
import json
import os
import re
import zlib

import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel

HIDDEN, HEADS, LAYERS, WIDE = 32, 4, 2, 40
IMAGE, PATCH, TOKENS, FRAMES, SAMPLES = 32, 8, 11, 24, 1600

# What makes a configuration small, by the name of a field; only numbers are put in the place of numbers.
TINY = {
    **dict.fromkeys("hidden_size d_model embed_dim n_embd dim width encoder_hidden_dim decoder_hidden_dim encoder_embed_dim".split(), HIDDEN),
    **dict.fromkeys("projection_dim embedding_size output_hidden_size mask_feature_size feature_size_fpn fpn_hidden_size text_hidden_size "
                    "vision_hidden_size neck_hidden_size reduction_hidden_size out_hidden_size conv_dim prompt_hidden_size".split(), HIDDEN),
    **dict.fromkeys("num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth encoder_num_layers layers "
                    "decoder_num_layers num_encoder_layers num_decoder_layers num_queries_layers".split(), LAYERS),
    **dict.fromkeys("num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
                    "encoder_num_attention_heads decoder_num_attention_heads decoder_num_heads".split(), HEADS),
    **dict.fromkeys("intermediate_size encoder_ffn_dim decoder_ffn_dim d_ff d_inner feed_forward_size mlp_dim ffn_dim d_ffn n_inner "
                    "dim_feedforward encoder_feedforward_dim decoder_intermediate_size encoder_intermediate_size".split(), WIDE),
    "num_key_value_heads": 2, "head_dim": HIDDEN // HEADS, "d_kv": HIDDEN // HEADS, "attention_head_size": HIDDEN // HEADS,
    "image_size": IMAGE, "patch_size": PATCH, "vocab_size": 99, "max_position_embeddings": 64, "max_2d_position_embeddings": 128,
    "num_mel_bins": 16, "num_queries": 7, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "num_labels": 5, "type_vocab_size": 2,
    "num_feat_extract_layers": 2, "conv_dim": [HIDDEN, HIDDEN], "conv_stride": [4, 4], "conv_kernel": [8, 8],
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "feat_extract_norm": "layer",
    "max_source_positions": FRAMES // 2, "num_experts": 2, "num_local_experts": 2, "num_frames": 4,
}
HEAD_NAMES = ("num_key_value_heads", "num_kv_heads", "num_heads", "num_attention_heads", "n_heads", "heads", "n_head", "h", "encoder_attention_heads")
# Attention whose scores weigh tokens that are added up has one head.
LINEAR = re.compile(r"LinearSelfAttention|AdditiveAttention")
# Modules with a softmax over something else than keys, and modules of convolutions that look like an FFN.
NO_FFN = re.compile(r"Convolution|ConvModule|ConvBlock|Pooler|Head$|Downsample|PatchMerging|Embeddings?$|Adapter$|ConvNextLayer|Mixer|PredictionHead")


def classes():
    """All model classes of the library: name -> (module, main input)."""
    found, root = {}, os.path.dirname(transformers.models.__file__)
    for folder in sorted(os.listdir(root)):
        path = os.path.join(root, folder)
        for file in sorted(os.listdir(path)) if os.path.isdir(path) else []:
            if not (file.startswith("modeling_") and file.endswith(".py")):
                continue
            try:
                module = importlib.import_module(f"transformers.models.{folder}.{file[:-3]}")
            except Exception:
                continue
            for name, c in vars(module).items():
                if inspect.isclass(c) and issubclass(c, PreTrainedModel) and c.__module__ == module.__name__ and c.config_class is not None:
                    found[name] = c
    return found


# ------------------------------------------------------------------------------------------------ configurations


def shrunk(default):
    """The fields of a configuration that `TINY` has smaller values for."""
    values = {}
    for key, value in default.to_dict().items():
        inner = vars(default).get(key)
        if isinstance(inner, PreTrainedConfig):
            values[key] = shrunk(inner) | {"model_type": inner.model_type}
        elif key in TINY and value is not None and type(value) in (int, list, tuple, str):
            tiny = TINY[key]
            if type(value) is int and type(tiny) is int:
                values[key] = tiny
            elif type(value) in (list, tuple) and type(tiny) is list:
                values[key] = tiny
            elif type(value) in (list, tuple) and key in ("image_size", "patch_size"):
                values[key] = [tiny] * len(value)
            elif type(value) is str and type(tiny) is str:
                values[key] = tiny
    if values.get("num_key_value_heads") and default.to_dict().get("num_key_value_heads") == default.to_dict().get("num_attention_heads"):
        values["num_key_value_heads"] = HEADS
    return values


def merged(a, b):
    if "model_type" in b and b["model_type"] != a.get("model_type"):
        return b  # a part of another kind
    return {**a, **{k: merged(a[k], v) if isinstance(v, dict) and isinstance(a.get(k), dict) else v for k, v in b.items()}}


def config_of(cls, overrides):
    kind = cls.config_class
    return kind(**merged(shrunk(kind()), overrides))


def build(cls, overrides):
    """A model of a class, small and scrambled."""
    torch.manual_seed(0)
    overrides = dict(overrides)
    arguments = overrides.pop("__init__", {})
    config = config_of(cls, overrides)
    model = cls(config, **arguments).eval()
    scramble(model, zlib.crc32(cls.__name__.encode()))
    return model


def scramble(model, seed):
    """Draws every parameter anew, and the statistics of batch norms."""
    generator = torch.Generator().manual_seed(seed)
    noise = lambda p: torch.randn(p.shape, generator=generator)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, p in model.named_parameters():
            last = name.rsplit(".", 1)[-1]
            if p.ndim == 0 or p.numel() == 0:
                continue
            if p.ndim == 1 or max(p.shape) == p.numel():
                bias = "bias" in last or re.search("token|pos|query", name)
                sign = -1 if p.mean() < 0 else 1
                p.copy_(0.3 * noise(p) if bias else sign * (1 + 0.2 * noise(p)).clamp(0.5, 1.5))
            elif id(p) in tables or re.search("embed|token|relative_position|rel_pos|position", name) and "proj" not in name:
                p.copy_(0.5 * noise(p))
            else:
                p.copy_(noise(p) * 1.2 / max(1, p[0].numel()) ** 0.5)
        for m in model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) or "FrozenBatchNorm" in type(m).__name__:
                m.running_mean.copy_(0.1 * noise(m.running_mean))
                m.running_var.copy_(1 + 0.3 * noise(m.running_var).clamp(-2, 2))


# ------------------------------------------------------------------------------------------------ inputs


def number(value, default):
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return value if isinstance(value, int) else default


def field(config, names, default):
    """The first of these fields, of the configuration or of one inside."""
    inner = [c for c in vars(config).values() if isinstance(c, PreTrainedConfig)]
    for c in [config, *inner]:
        for n in names:
            if isinstance(getattr(c, n, None), (int, list, tuple)):
                return number(getattr(c, n), default)
    return default


def inputs_of(model, batch, shapes=None):
    """What the model is fed with: its main input, its masks with padding, and what it asks for without a default."""
    config, shapes = model.config, shapes or {}
    generator = torch.Generator().manual_seed(7)
    noise = lambda *s: torch.randn(s, generator=generator)
    size = shapes.get("image") or field(config, ["image_size", "input_size"], IMAGE)
    channels = field(config, ["num_channels", "in_channels", "in_chans"], 3)
    mels = field(config, ["num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels"], 16)
    tokens, frames = shapes.get("tokens", TOKENS), shapes.get("frames", FRAMES)
    vocabulary = field(config, ["vocab_size"], 99)
    padded = lambda n: torch.ones(batch, n, dtype=torch.long).index_fill(1, torch.arange(n - 3, n), 0)
    signature = inspect.signature(model.forward).parameters
    main = shapes.get("main") or model.main_input_name
    main = main if isinstance(main, str) else main[0]
    made = {
        "pixel_values": lambda: noise(batch, *([shapes["video"]] if "video" in shapes else []), channels, size, size),
        "pixel_values_videos": lambda: noise(batch, shapes.get("video", 4), channels, size, size),
        "pixel_mask": lambda: torch.ones(batch, size, size, dtype=torch.long).index_fill(2, torch.arange(size - size // 4, size), 0),
        "input_ids": lambda: torch.randint(3, vocabulary, (batch, tokens), generator=generator),
        "decoder_input_ids": lambda: torch.randint(3, vocabulary, (batch, tokens - 3), generator=generator),
        "bbox": lambda: torch.cat([torch.randint(low, low + 50, (batch, tokens, 2), generator=generator) for low in (0, 50)], -1),
        "input_values": lambda: noise(batch, shapes.get("samples", SAMPLES)),
        "input_features": lambda: noise(batch, mels, frames) if shapes.get("features") == "mels first" else noise(batch, frames, mels),
        "hidden_states": lambda: noise(batch, tokens, HIDDEN),
        "inputs_embeds": lambda: noise(batch, tokens, HIDDEN),
    }
    fed = {}
    for name, p in signature.items():
        shape = shapes.get("inputs", {}).get(name)
        if shape is not None:
            kind, *shape = shape
            if kind in ("value", "fixed"):
                value = torch.tensor(shape[0])
                fed[name] = value if kind == "fixed" else value.repeat(batch, *[1] * (value.ndim - 1))
                continue
            shape = [batch if s == "B" else s for s in shape]
            if kind == "made":
                fed[name] = made[name]()
            elif kind == "float":
                fed[name] = noise(*shape)
            elif kind == "ones":
                fed[name] = torch.ones(shape, dtype=torch.long)
            elif kind == "padded":
                fed[name] = torch.ones(shape, dtype=torch.long).index_fill(len(shape) - 1, torch.arange(shape[-1] - shape[-1] // 4, shape[-1]), 0)
            elif kind == "false":
                fed[name] = torch.zeros(shape, dtype=torch.bool)
            elif isinstance(kind, int):
                fed[name] = torch.randint(0, kind, shape, generator=generator)
        elif name == main or p.default is inspect.Parameter.empty and name in made:
            fed[name] = made[name]()
        elif name == "pixel_mask" and name not in shapes.get("without", []):
            fed[name] = made[name]()
        elif name == "attention_mask" and name not in shapes.get("without", []):
            x = fed.get(main)
            if x is None or main == "pixel_values":
                continue
            fed[name] = padded(x.shape[1] if main != "input_values" or x.ndim == 2 else x.shape[1])
            if main == "input_values":
                fed[name][:, -x.shape[1] // 4:] = 0
            if shapes.get("features") == "mels first":
                fed[name] = padded(x.shape[2])
    return fed


class Tensors(nn.Module):
    """The model as a function from its inputs in order to its tensors."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values):
        named = "return_dict" in inspect.signature(self.model.forward).parameters
        return tuple(flat(self.model(**dict(zip(self.names, values)), **({"return_dict": True} if named else {}))))


def flat(out):
    if torch.is_tensor(out):
        return [out] if out.is_floating_point() else []
    values = list(out.values()) if isinstance(out, dict) else list(out) if isinstance(out, (list, tuple)) else []
    found = [t for v in values for t in flat(v)]
    return found[:12]


# ------------------------------------------------------------------------------------------------ anatomy


class Watch(TorchFunctionMode):
    """Every contraction with a weight, and every softmax, in order of execution, with the modules that it runs in."""

    def __init__(self, model):
        super().__init__()
        self.events, self.stack, self.hooks = [], [], []
        self.names = {id(p): n for n, p in model.named_parameters(remove_duplicate=False)}
        for name, m in model.named_modules():
            self.hooks.append(m.register_forward_pre_hook(lambda _m, _i, name=name: self.stack.append(name)))
            self.hooks.append(m.register_forward_hook(lambda _m, _i, _o: self.stack.pop() and None, always_call=True))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        kind, where = getattr(func, "__name__", ""), list(self.stack)
        if kind == "scaled_dot_product_attention":
            q, k, v = [*args, *[kwargs[n] for n in ("query", "key", "value") if n in kwargs]][:3]
            sums = tuple(float(x.double().sum()) for x in (q, k, v))
            self.events.append(("softmax", where, {"q": tuple(q.shape), "k": tuple(k.shape), "v": tuple(v.shape), "sums": sums}))
        elif kind == "multi_head_attention_forward":
            bound = inspect.signature(func).bind(*args, **kwargs).arguments
            heads, e = bound["num_heads"], bound["embed_dim_to_check"]
            self.events.append(("fused", where, {"heads": heads, "width": e, "weight": self.names.get(id(bound["out_proj_weight"])),
                                                  "tokens": [bound["query"].shape[0], bound["key"].shape[0]]}))
        out = func(*args, **kwargs)
        # A softmax over another axis than the last weighs something else than keys.
        along = kwargs.get("dim", args[1] if len(args) > 1 else -1)
        if kind in ("softmax", "_softmax") and torch.is_tensor(out) and along in (-1, out.ndim - 1):
            places = torch.linspace(0, 1, out.numel(), dtype=torch.float64)
            sums = (float((out.double().flatten() * places).sum()),)
            self.events.append(("softmax", where, {"p": tuple(out.shape), "sums": sums}))
        elif kind in ("linear", "conv1d", "conv2d", "_conv_forward", "addmm"):
            w = [*args, kwargs.get("weight")][2 if kind == "addmm" else 1]
            if not torch.is_tensor(w) or w.ndim < 2:
                return out
            groups = kwargs.get("groups", args[6] if len(args) > 6 else 1) if kind.startswith("conv") else 1
            outer, inner = (w.shape[1], w.shape[0]) if kind == "addmm" else (w.shape[0], w.shape[1] * groups)
            self.events.append(("map", where, {"weight": self.names.get(id(w)), "out": outer, "in": inner, "groups": groups,
                                               "axis": 0 if kind == "addmm" else 1}))
        elif kind == "einsum":
            self.einsum(args, where)
        return out

    def einsum(self, args, where):
        """A sum of products with a parameter (XLNet): the axes of the parameter that are summed over stand side by side."""
        equation, *operands = args
        terms, result = equation.replace(" ", "").split("->")[0].split(","), equation.replace(" ", "").split("->")[1]
        operands = operands[0] if isinstance(operands[0], (list, tuple)) else operands
        for term, w in zip(terms, operands):
            if id(w) not in self.names or w.ndim < 2:
                continue
            summed = [i for i, letter in enumerate(term) if letter not in result]
            if not summed or summed != list(range(summed[0], summed[-1] + 1)):
                continue
            inner = math.prod(w.shape[i] for i in summed)
            self.events.append(("map", where, {"weight": self.names[id(w)], "out": w.numel() // inner, "in": inner, "groups": 1,
                                               "axis": [summed[0], summed[-1]]}))

    def close(self):
        for h in self.hooks:
            h.remove()


def heads_of(module):
    """The number of heads that a module gives, by itself or by its configuration; heads of keys where it has fewer of them."""
    said = [getattr(module, n, None) for n in HEAD_NAMES]
    if LINEAR.search(type(module).__name__):
        return 1
    if "Attention" in type(module).__name__ and isinstance(getattr(module, "config", None), PreTrainedConfig):
        said += [getattr(module.config, n, None) for n in HEAD_NAMES[:4]]
    return next((n for n in said if isinstance(n, int) and n > 0), None)


def of_parts(modules):
    """Whether all elements of a list are of different classes: no list of layers, but the parts of one (T5)."""
    return len(modules) > 1 and len({type(m) for m in modules}) == len(modules)


def block_of(path, modules):
    """The innermost element of a ModuleList, or of a Sequential, that a module lies in."""
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        owner = modules.get(".".join(parts[:n - 1]))
        if parts[n - 1].isdigit() and isinstance(owner, (nn.ModuleList, nn.Sequential)) and not of_parts(owner):
            yield ".".join(parts[:n])


def watched(model, fed):
    watch = Watch(model)
    with torch.no_grad(), watch:
        model(**fed)
    watch.close()
    return watch.events


def anatomy(model, fed):
    """Attentions and FFNs in order of execution, each with the block that it lies in."""
    modules = dict(model.named_modules())
    events = watched(model, fed)
    attentions, projections = attentions_of(events, modules)
    # What depends on no input is a constant, and may be folded or read as one: the first attention of DETR's decoder.
    other = watched(model, {k: v.flip(-1) * 2 if v.is_floating_point() else v for k, v in fed.items()})
    for a in attentions:
        sums = events[a["at"]][2].get("sums")
        if sums and len(other) == len(events) and any(v.is_floating_point() for v in fed.values()) and other[a["at"]][2].get("sums") == sums:
            a["again"] = True
    for a in attentions:
        # A head that pools is no element of a list: its FFN is beside it.
        a["block"] = next(block_of(a["module"], modules), a["module"].rpartition(".")[0])
    blocks, inside = {a["block"] for a in attentions if a["block"]}, {a["module"] for a in attentions}
    ffns = feed_forwards(events, modules, projections, inside, blocks)
    if not ffns:
        # Some keep FFNs in elements of their own (LeViT), or in a list of their own (XLM).
        lists = {n for n, m in modules.items() if isinstance(m, nn.ModuleList)}
        ffns = feed_forwards(events, modules, projections, inside, {n for n in modules if n.rpartition(".")[0] in lists})
        for f in ffns:
            f["alone"] = True
            f["block"] = next((a["block"] for a in reversed(attentions) if a["at"] < f["at"]), f["block"])
    return attentions, ffns


def attentions_of(events, modules):
    """Every softmax in a module with heads, and the events that are output projections."""
    attentions, projections = [], set()
    for at, (kind, where, facts) in enumerate(events):
        if kind == "fused":
            attentions.append({"module": where[-1], "at": at, "axis": 1, "head_dim": facts["width"] // facts["heads"],
                               "query_heads": facts["heads"], **{k: facts[k] for k in ("heads", "tokens", "weight")}})
            continue
        owner = next((w for w in reversed(where) if heads_of(modules[w])), None) if kind == "softmax" else None
        if owner is None:
            continue
        # Several softmaxes before one projection are one attention, which may be listed as several.
        last = attentions[-1] if attentions else None
        # A module that runs for one chunk of the tokens after the other (Canine) takes the same maps again before its projection.
        own = taken_by(owner, events, at)
        again = last is not None and last["module"] == owner and not any(is_new(e, own) for e in events[last["at"]:at])
        said, (queries, keys) = heads_of(modules[owner]), heads_of_shapes(facts)
        queries = queries or said
        said = min(said, queries, keys or said)
        after = ((i, e[2]) for i, e in enumerate(events[at:], at) if is_new(e, own) and e[2]["groups"] == 1)
        place, projection = next((found for found in after if found[1]["in"] % queries == 0), (None, None))
        if projection is None:
            continue
        width, names = projection["in"], ("head_dim", "attention_head_size")
        dim = next((d for n in names if isinstance(d := getattr(modules[owner], n, None), int)), 0)
        attentions.append({
            # What samples an image at places (deformable attention) has no keys, and may be no attention.
            "module": owner, "at": at, "again": again or "scaledeformable" in type(modules[owner]).__name__.lower(), "heads": said, "query_heads": queries,
            # ConvBERT's projection takes as many channels from a convolution.
            "head_dim": dim if width == 2 * queries * dim else width // queries,
            "tokens": list(facts["p"][-2:] if "p" in facts else (facts["q"][-2], facts["k"][-2])),
            "weight": projection["weight"], "axis": projection["axis"],
        })
        projections.add(place)
    return attentions, projections


def taken_by(owner, events, at):
    """The weights of the maps that a module took just before an event, while nothing else ran."""
    before = itertools.takewhile(lambda e: owner in e[1], reversed(events[:at]))
    return {e[2]["weight"] for e in before if e[0] == "map"}


def is_new(event, own):
    return event[0] == "map" and event[2]["weight"] not in own


def feed_forwards(events, modules, projections, inside, blocks):
    """Pairs of linear maps in a block, the second of which goes back to as many channels as the first one takes."""
    ffns, pending = [], {}
    for at, (kind, where, facts) in enumerate(events):
        path = where[-1] if where else ""
        own = any(w in inside for w in where if w) and "mlp" not in path
        if kind != "map" or at in projections or "position" in path or own:
            continue
        block = max((b for b in blocks if path.startswith(b + ".")), key=len, default=None)
        if block is None or facts["groups"] > 1 or any(NO_FFN.search(type(modules[w]).__name__) for w in where if w.startswith(block + ".")):
            continue
        taken, given = facts["in"], facts["out"]
        # Square maps one after the other are projections more often than an FFN.
        named = taken != given or re.search("mlp|ffn|fc|feed", path)
        if named and pending.get("block") == block and given == pending["stream"] and pending["width"] in (taken, 2 * taken):
            # Two FFNs side by side may widen both before either goes back: what was made wider stays pending.
            ffns.append({"weight": facts["weight"], "axis": facts["axis"], "width": taken, "block": block, "at": at})
        else:
            pending = {"block": block, "stream": taken, "width": given}
    return ffns


def heads_of_shapes(facts):
    """Heads of queries and of keys by the shapes of a scaled dot product; of a written-out softmax there is no telling."""
    if "q" in facts and len(facts["q"]) == 4:
        return facts["q"][1], facts["k"][1]
    return None, None


# ------------------------------------------------------------------------------------------------ edits


def parameter(model, name):
    return dict(model.named_parameters(remove_duplicate=False))[name]


def zero_inputs(model, name, axis, places):
    """Puts what a linear map takes from these places to zero."""
    with torch.no_grad():
        p = parameter(model, name)
        if isinstance(axis, list):
            p, axis = p.view(*p.shape[:axis[0]], -1, *p.shape[axis[1] + 1:]), axis[0]
        p.index_fill_(axis, torch.tensor(places, dtype=torch.long), 0) if places else None


def drop_block(model, path):
    """Takes an element out of its ModuleList."""
    owner, _, at = path.rpartition(".")
    blocks = dict(model.named_modules())[owner]
    del blocks[int(at)]


if __name__ == "__main__":
    import sys
    found = classes()
    for name in sys.argv[1:]:
        model = build(found[name], {})
        fed = inputs_of(model, 1)
        print(name, {k: tuple(v.shape) for k, v in fed.items()})
        a, f = anatomy(model, fed)
        print(json.dumps(a, indent=0), json.dumps(f, indent=0))
