"""Makes fixtures/graphs/*.onnx and fixtures/graphs/manifest.json: small Vision Transformers, exported in many ways.

Every model is built from its library's own code with random weights, scrambled so that no norm, bias, token or layer scale is zero
or one, then exported and compared with PyTorch in ONNX Runtime. The manifest says of each what the PyTorch model says of itself
(heads, head dimension, FFN width, prefix tokens and so on), never what the graph looks like.

    OMP_NUM_THREADS=1 python scripts/make_fixtures.py [NAME ...]

With names only those whose file name contains one of them are made anew; the manifest's other entries stay. Needs torch, torchvision,
timm, transformers, onnx, onnxscript and onnxruntime. Seen with torch 2.15, torchvision 0.29, timm 1.0.31, transformers 5.23.

The fixtures hf4-* are from transformers 4, which writes its models differently; a second run where that is installed makes them:

    python -m pip install --target /tmp/transformers4 --no-deps transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2
    python -m pip install --target /tmp/transformers4 requests
    PYTHONPATH=/tmp/transformers4 OMP_NUM_THREADS=1 python scripts/make_fixtures.py hf4
"""

import argparse
import contextlib
import functools
import json
import logging
import math
import os
import re
import sys
import time
import traceback
import warnings
import zlib
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import coverage
import numpy as np
import onnx
import onnxruntime
import timm
import torch
import torchvision
import transformers
from timm.layers import GluMlp, Mlp, RmsNorm, SwiGLU, set_fused_attn
from timm.models import (beit, cait, coat, convit, crossvit, davit, deit, edgenext, efficientvit_msra, eva, gcvit, hiera, levit, maxxvit, mvitv2, nest, pit, pvt_v2,
                         swin_transformer, swin_transformer_v2, tnt, twins, vision_transformer, vision_transformer_hybrid, vision_transformer_sam, xcit)
from torch import nn

FIXTURES = []  # (file name, exporter, opset, options, family, builder)
IMAGE, PATCH, DIM, HEADS, HIDDEN, DEPTH, CLASSES = 16, 4, 24, 4, 40, 2, 7
RATIO = HIDDEN / DIM


# ------------------------------------------------------------------------------------------------ what a model says of itself


def activation(module):
    name = type(module).__name__
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu-tanh"
    known = {"Hardswish": "hard-swish", "SquaredReLU": "relu", "GELUTanh": "gelu-tanh", "PytorchGELUTanh": "gelu-tanh", "GELUActivation": "gelu", "QuickGELUActivation": "quick-gelu",
             "QuickGELU": "quick-gelu", "SiLU": "silu", "SiLUActivation": "silu", "ReLU": "relu", "GELU": "gelu"}
    return known[name]


def ffn(mlp):
    if isinstance(mlp, SwiGLU):
        return {"ffn_kind": "gated", "activation": activation(mlp.act), "ffn_width": mlp.fc1_g.out_features}
    if isinstance(mlp, GluMlp):
        return {"ffn_kind": "gated", "activation": activation(mlp.act), "ffn_width": mlp.fc1.out_features // 2}
    assert isinstance(mlp, Mlp), type(mlp)
    return {"ffn_kind": "plain", "activation": activation(mlp.act), "ffn_width": mlp.fc1.out_features}


def timm_layer(attn, mlp):
    layer = {"heads": attn.num_heads, "head_dim": attn.proj.in_features // attn.num_heads, "embedding_dim": attn.proj.out_features}
    return layer | ffn(mlp)


def timm_facts(model):
    patch = model.patch_embed
    facts = {"library": f"timm {timm.__version__}", "image": [3, *patch.img_size], "patch_size": patch.patch_size[0],
             "grid": list(patch.grid_size), "prefix_tokens": getattr(model, "num_prefix_tokens", 0), "classes": model.num_classes,
             "other_attentions": []}
    if isinstance(model, swin_transformer.SwinTransformer):
        blocks = [b for stage in model.layers for b in stage.blocks]
        facts["layers"] = [timm_layer(b.attn, b.mlp) | {"window": b.window_size[0], "shift": max(b.shift_size)} for b in blocks]
    else:
        facts["layers"] = [timm_layer(b.attn, b.mlp) for b in model.blocks]
    if getattr(model, "attn_pool", None) is not None:
        facts["other_attentions"].append(timm_layer(model.attn_pool, model.attn_pool.mlp))
    return facts


def torchvision_facts(model):
    layers = []
    for b in model.encoder.layers:
        up = b.mlp[0]
        layers.append({"heads": b.self_attention.num_heads, "head_dim": b.self_attention.head_dim, "embedding_dim": b.self_attention.embed_dim,
                       "ffn_kind": "plain", "activation": activation(b.mlp[1]), "ffn_width": up.out_features})
    side = model.image_size // model.patch_size
    return {"library": f"torchvision {torchvision.__version__.split('+')[0]}", "image": [3, model.image_size, model.image_size],
            "patch_size": model.patch_size, "grid": [side, side], "prefix_tokens": 1, "classes": model.num_classes, "layers": layers,
            "other_attentions": []}


def hugging_face_facts(model, gate=None):
    c = model.config
    image = list(c.image_size) if isinstance(c.image_size, (list, tuple)) else [c.image_size, c.image_size]
    act = activation(transformers.activations.ACT2FN[c.hidden_act])
    if gate is not None:
        width = {"ffn_kind": "gated", "activation": "silu", "ffn_width": gate(model)}
    else:
        width = {"ffn_kind": "plain", "activation": act, "ffn_width": getattr(c, "intermediate_size", None) or int(c.hidden_size * c.mlp_ratio)}
    layer = {"heads": c.num_attention_heads, "head_dim": c.hidden_size // c.num_attention_heads, "embedding_dim": c.hidden_size} | width
    return {"library": f"transformers {transformers.__version__}", "image": [3, *image], "patch_size": c.patch_size,
            "grid": [s // c.patch_size for s in image], "prefix_tokens": 1,
            "classes": c.num_labels if isinstance(model, transformers.ViTForImageClassification) else None,
            "layers": [dict(layer) for _ in range(c.num_hidden_layers)], "other_attentions": []}


def family_facts(model, image, patch, grid, prefix=0, places=(), **more):
    """What a model of any family says of itself. Attentions and FFNs stand in the order in which the model runs them; `places` says for
    each layer the columns and the stride in pixels of its queries and of its keys within one window, and its tokens that are no patches
    where these are not the model's `prefix`."""
    modules = dict(model.named_modules())
    truth, _ = coverage.truth(model.eval(), torch.randn((2, *image), generator=torch.Generator().manual_seed(1)))

    def describe(entry):
        attention = modules[entry["name"]]
        out = coverage.first_child(attention, coverage.OUT)
        last = [m for m in out.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
        layer = {"heads": entry["heads"], "head_dim": entry["width"] // entry["heads"],
                 "embedding_dim": last.out_features if isinstance(last, nn.Linear) else last.out_channels}
        if not entry["ffn"]:
            return layer | {"ffn_kind": None, "activation": None, "ffn_width": None}
        mlp = modules[entry["ffn_name"]]
        acts = [m for m in mlp.modules() if type(m).__name__ in ("GELU", "Hardswish", "ReLU", "SiLU", "GELUTanh")]
        gated = type(mlp).__name__ in ("SwiGLU", "GluMlp")
        return layer | {"ffn_kind": "gated" if gated else "plain", "activation": activation(acts[0]), "ffn_width": entry["ffn"]}

    layers = [describe(e) for e in truth["layers"]]
    for layer, place in zip(layers, places, strict=bool(places)):
        if place:
            layer["place"] = list(place[:4])
            layer |= {"prefix": p for p in place[4:]}
    return {"library": f"timm {timm.__version__}", "image": list(image), "patch_size": patch, "grid": grid, "prefix_tokens": prefix, "classes": CLASSES,
            "layers": layers, "other_attentions": [describe(e) for e in truth["others"]], **more}


# ------------------------------------------------------------------------------------------------ the models


def fixture(name, exporter, opset, builder, family=None, **options):
    FIXTURES.append((f"{name}-{'ts' if exporter == 'torchscript' else 'dynamo'}{opset}", exporter, opset, options, family or name, builder))


def timm_model(cls, fused, **config):
    set_fused_attn(fused, experimental=fused)  # experimental: Swin's windows ask for it
    config = {"img_size": IMAGE, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": RATIO, "num_classes": CLASSES} | config
    model = cls(**config)
    return model, timm_facts(model)


def timm_vit(fused=True, cls=vision_transformer.VisionTransformer, **config):
    return functools.partial(timm_model, cls, fused, **config)


def timm_swin(fused):
    set_fused_attn(fused, experimental=fused)
    model = swin_transformer.SwinTransformer(img_size=32, patch_size=4, embed_dim=12, depths=(2, 1), num_heads=(2, 4), window_size=4, mlp_ratio=2.5, num_classes=CLASSES)
    return model, timm_facts(model)


def family(build, image, patch, grid, prefix=0, places=(), **more):
    def builder(fused):
        set_fused_attn(fused, experimental=False)
        model = build()
        return model, family_facts(model, (3, image, image), patch, grid, prefix, places, **more)
    return builder


def maxxvit_model(blocks, image, **config):
    cfg = maxxvit.MaxxVitCfg(embed_dim=(16,) * len(blocks), depths=(1,) * len(blocks), block_type=blocks, stem_width=8,
                             conv_cfg=maxxvit.MaxxVitConvCfg(expand_ratio=2.0),
                             transformer_cfg=maxxvit.MaxxVitTransformerCfg(dim_head=4, expand_ratio=2.0, **config))
    return maxxvit.MaxxVit(cfg, img_size=image, num_classes=CLASSES)


def mvit_model():
    cfg = mvitv2.MultiScaleVitCfg(depths=(1, 1), embed_dim=16, num_heads=2, mlp_ratio=2.0, stride_q=((1, 1), (2, 2)))
    return mvitv2.MultiScaleVit(cfg, img_size=(32, 32), num_classes=CLASSES)


def convolutional_stem():
    """A ViT whose patches come from convolutions."""
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
    stem.num_features = 16
    embed = functools.partial(vision_transformer_hybrid.HybridEmbed, backbone=stem, feature_size=(8, 8))
    return vision_transformer.VisionTransformer(img_size=32, patch_size=2, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, mlp_ratio=RATIO, num_classes=CLASSES,
                                                embed_layer=embed)


class Detector(nn.Module):
    """A ViT, and behind its patches learned queries that attend to them, and a segmentation head of transposed convolutions."""

    def __init__(self):
        super().__init__()
        self.encoder = vision_transformer.VisionTransformer(img_size=IMAGE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, mlp_ratio=RATIO,
                                                            class_token=False, global_pool="", num_classes=0)
        self.query_tokens = nn.Parameter(torch.zeros(1, 3, DIM))
        self.self_q, self.cross_q = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.self_kv, self.cross_kv = nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, 2 * DIM)
        self.self_proj, self.cross_proj = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(DIM), nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.fc1, self.fc2 = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)
        self.boxes = nn.Linear(DIM, 4)
        self.masks = nn.Sequential(nn.ConvTranspose2d(DIM, 8, 2, 2), nn.GELU(), nn.Conv2d(8, CLASSES, 1))

    def attend(self, q, kv, proj, x, memory):
        heads = lambda t: t.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = kv(memory).chunk(2, -1)
        return proj(nn.functional.scaled_dot_product_attention(heads(q(x)), heads(k), heads(v)).transpose(1, 2).flatten(2))

    def forward(self, x):
        memory = self.encoder.forward_features(x)
        side = IMAGE // PATCH
        masks = self.masks(memory.transpose(1, 2).unflatten(-1, (side, side)))
        t = self.query_tokens.expand(x.shape[0], -1, -1)
        t = t + self.attend(self.cross_q, self.cross_kv, self.cross_proj, self.norm1(t), memory)
        t = t + self.attend(self.self_q, self.self_kv, self.self_proj, self.norm2(t), self.norm2(t))
        t = t + self.fc2(nn.functional.gelu(self.fc1(self.norm3(t))))
        return self.boxes(t), masks


def detector(fused):
    set_fused_attn(fused)
    model = Detector()
    facts = timm_facts(model.encoder)
    attention = {"heads": HEADS, "head_dim": DIM // HEADS, "embedding_dim": DIM}
    nothing, ffn = {"ffn_kind": None, "activation": None, "ffn_width": None}, {"ffn_kind": "plain", "activation": "gelu", "ffn_width": HIDDEN}
    return model, facts | {"library": f"torch {torch.__version__.split('+')[0]}", "classes": None, "prefix_tokens": 0, "outputs": ["boxes", "masks"],
                           "other_attentions": [attention | nothing], "layers": facts["layers"] + [attention | ffn], "density": list(range(DEPTH))}


def torchvision_vit():
    torch.backends.mha.set_fastpath_enabled(False)
    model = torchvision.models.VisionTransformer(IMAGE, PATCH, DEPTH, HEADS, DIM, HIDDEN, num_classes=CLASSES)
    return model, torchvision_facts(model)


def hugging_face(kind, attention):
    sizes = dict(hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=IMAGE, patch_size=PATCH)
    gate = None
    if kind == "vit":
        cls, config = transformers.ViTForImageClassification, transformers.ViTConfig(**sizes, intermediate_size=HIDDEN, num_labels=CLASSES)
    elif kind == "clip":
        cls, config = transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**sizes, intermediate_size=HIDDEN, hidden_act="quick_gelu")
    elif kind == "dinov2":
        cls, config = transformers.Dinov2Model, transformers.Dinov2Config(**sizes, mlp_ratio=2)
    elif kind == "mae":
        cls, config = transformers.ViTMAEModel, transformers.ViTMAEConfig(**sizes, intermediate_size=HIDDEN, mask_ratio=0.0)
    else:
        cls, config = transformers.Dinov2Model, transformers.Dinov2Config(**sizes, mlp_ratio=3, use_swiglu_ffn=True)
        gate = lambda m: next(x for n, x in m.named_modules() if n.endswith(("down_proj", "weights_out"))).in_features
    model = cls._from_config(config, attn_implementation=attention)
    if kind == "mae":
        return Unmasked(model), hugging_face_facts(model) | {"outputs": ["last_hidden_state"], "density": False, "folded": True, "patch_size": None, "grid": None,
                                                               "prefix_tokens": 0}  # patches in a computed order
    return model, hugging_face_facts(model, gate)


def hf(kind, attention="sdpa"):
    return functools.partial(hugging_face, kind, attention)


TS, DYNAMO = "torchscript", "dynamo"
MATH = torch.nn.attention.SDPBackend.MATH
ALL_KERNELS = [torch.nn.attention.SDPBackend.MATH, torch.nn.attention.SDPBackend.FLASH_ATTENTION, torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION]

fixture("timm-vit-unfused", TS, 11, timm_vit(False), "timm-vit")
fixture("timm-vit-unfused", TS, 17, timm_vit(False), "timm-vit")
fixture("timm-vit-fused", TS, 17, timm_vit(), "timm-vit")
fixture("timm-vit-fused-batch1", TS, 17, timm_vit(), "timm-vit", batch=1)
fixture("timm-vit-unfused", DYNAMO, 18, timm_vit(False), "timm-vit")
fixture("timm-vit-fused-wide", DYNAMO, 18, timm_vit(img_size=(16, 24)), "timm-vit")
fixture("timm-vit-fused", DYNAMO, 23, timm_vit(), "timm-vit", metadata=True)
fixture("timm-vit-registers", TS, 17, timm_vit(reg_tokens=4, no_embed_class=True, init_values=0.1))
fixture("timm-vit-registers-average", TS, 13, timm_vit(False, reg_tokens=4, class_token=False, global_pool="avg"))
fixture("timm-vit-registers-average", DYNAMO, 23, timm_vit(reg_tokens=4, class_token=False, global_pool="avg"))
fixture("timm-deit-distilled", TS, 17, timm_vit(cls=deit.VisionTransformerDistilled))
fixture("timm-deit-distilled", DYNAMO, 18, timm_vit(cls=deit.VisionTransformerDistilled))
fixture("timm-vit-qknorm", TS, 17, timm_vit(False, qk_norm=True))
fixture("timm-vit-qknorm-batch1", DYNAMO, 23, timm_vit(qk_norm=True), "timm-vit-qknorm", batch=1)
fixture("timm-vit-map", TS, 17, timm_vit(False, class_token=False, global_pool="map", act_layer="gelu_tanh"))
fixture("timm-vit-map", DYNAMO, 23, timm_vit(class_token=False, global_pool="map", act_layer="gelu_tanh"))
fixture("timm-vit-swiglu-packed", TS, 17, timm_vit(mlp_layer=timm.layers.SwiGLUPacked, mlp_ratio=RATIO * 2, init_values=0.1))
fixture("timm-beit", TS, 13, timm_vit(False, beit.Beit, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1))
fixture("timm-beit-fused", TS, 17, timm_vit(True, beit.Beit, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1), "timm-beit")
fixture("timm-beit", DYNAMO, 18, timm_vit(False, beit.Beit, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1))
fixture("timm-beit-fused", DYNAMO, 23, timm_vit(True, beit.Beit, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1), "timm-beit")
fixture("timm-beit-fused-math", DYNAMO, 23, timm_vit(True, beit.Beit, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1), "timm-beit", kernel=MATH)
EVA = dict(num_heads=3, qkv_fused=False, swiglu_mlp=True, scale_mlp=True, use_rot_pos_emb=True, ref_feat_shape=(4, 4))
fixture("timm-eva02", DYNAMO, 18, timm_vit(False, eva.Eva, **EVA))
fixture("timm-eva02-fused", DYNAMO, 23, timm_vit(True, eva.Eva, **EVA), "timm-eva02")
fixture("timm-eva02", TS, 17, timm_vit(False, eva.Eva, **EVA))
fixture("timm-swin", TS, 17, functools.partial(timm_swin, False))
fixture("timm-swin", DYNAMO, 18, functools.partial(timm_swin, False))
fixture("timm-swin-fused", DYNAMO, 23, functools.partial(timm_swin, True), "timm-swin")
fixture("timm-swin-fused-math", DYNAMO, 23, functools.partial(timm_swin, True), "timm-swin", kernel=MATH)
fixture("torchvision-vit", TS, 13, torchvision_vit)
fixture("torchvision-vit", TS, 17, torchvision_vit)
fixture("torchvision-vit", DYNAMO, 23, torchvision_vit)
fixture("hf-vit", TS, 17, hf("vit"))
fixture("hf-vit-dynamic-size", TS, 17, hf("vit", "eager"), "hf-vit", dynamic_size=True)
fixture("hf-vit-dynamic-size", DYNAMO, 18, hf("vit", "eager"), "hf-vit", dynamic_size=True)
fixture("hf-clip-eager", TS, 11, hf("clip", "eager"), "hf-clip")
fixture("hf-clip", DYNAMO, 18, hf("clip"))
fixture("hf-dinov2", TS, 17, hf("dinov2"))
fixture("hf-dinov2", DYNAMO, 23, hf("dinov2"))
fixture("hf4-vit-eager", TS, 13, hf("vit", "eager"), "hf-vit")
fixture("hf4-dinov2-swiglu-eager", TS, 13, hf("dinov2-swiglu", "eager"), "hf-dinov2-swiglu")
fixture("hf-dinov2-swiglu", DYNAMO, 18, hf("dinov2-swiglu"))
fixture("hf-mae", TS, 17, hf("mae"))
fixture("hf-mae", DYNAMO, 18, hf("mae"))

create = lambda name, **config: functools.partial(timm.create_model, name, img_size=IMAGE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_classes=CLASSES,
                                                  **config)
vit = lambda block, **config: functools.partial(vision_transformer.VisionTransformer, img_size=IMAGE, patch_size=PATCH, embed_dim=DIM, num_heads=HEADS,
                                                mlp_ratio=RATIO, num_classes=CLASSES, block_fn=block, **config)
small = dict(img_size=IMAGE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, mlp_ratio=RATIO, num_classes=CLASSES)
GRID = [4, 4]
FAMILIES = {
    "cait": family(lambda: cait.Cait(**small, depth_token_only=1), 16, 4, GRID),
    "xcit": family(lambda: xcit.Xcit(**small | dict(img_size=32, patch_size=8), cls_attn_layers=1), 32, None, None, density=False, folded=True),
    "gcvit": family(lambda: gcvit.GlobalContextVit(img_size=64, window_size=(4, 4), embed_dim=16, depths=(2, 1), num_heads=(2, 4), mlp_ratio=2.0,
                                                   num_classes=CLASSES), 64, 4, [16, 16], places=[(4, 4, 4, 4)] * 2 + [(4, 8, 4, 8)], folded=True),
    "maxvit": family(lambda: maxxvit_model(("M",), 64, window_size=(4, 4), grid_size=(4, 4)), 64, 4, [16, 16], places=[(4, 4, 4, 4), (4, 16, 4, 16)], folded=True),
    "coatnet": family(lambda: maxxvit_model(("C", "T"), 32), 32, 8, GRID, places=[(4, 8, 4, 8)], folded=True),
    "hiera": family(lambda: hiera.Hiera(img_size=(64, 64), embed_dim=8, num_heads=1, stages=(1, 1), q_pool=1, mlp_ratio=2.0, mask_unit_attn=(True, True),
                                        num_classes=CLASSES), 64, 4, [16, 16], density="finite", folded=True),
    "mvitv2": family(mvit_model, 32, 4, [8, 8], places=[(8, 4, 2, 16), (4, 8, 4, 8)], folded=True),
    "pvt2": family(lambda: pvt_v2.PyramidVisionTransformerV2(depths=(1, 1), embed_dims=(16, 24), num_heads=(2, 4), sr_ratios=(2, 1), mlp_ratios=(2, 2),
                                                             num_classes=CLASSES), 64, 4, [16, 16], places=[(16, 4, 8, 8), (8, 8, 8, 8)]),
    "twins": family(lambda: twins.Twins(img_size=64, embed_dims=(16,), num_heads=(2,), mlp_ratios=(2,), depths=(2,), sr_ratios=(4,), wss=(4,),
                                        num_classes=CLASSES), 64, 4, [16, 16], places=[(4, 4, 4, 4), (16, 4, 4, 16)]),
    "nest": family(lambda: nest.Nest(img_size=32, patch_size=4, num_levels=2, embed_dims=(16, 24), num_heads=(2, 4), depths=(1, 1), mlp_ratio=2.0,
                                     num_classes=CLASSES), 32, 4, [8, 8], places=[(4, 4, 4, 4), (4, 8, 4, 8)], heads_first=True),
    "pit": family(lambda: pit.PoolingVisionTransformer(img_size=32, patch_size=8, stride=4, base_dims=(8, 8), depth=(1, 1), heads=(2, 4), mlp_ratio=2,
                                                       num_classes=CLASSES), 32, 4, [7, 7], 1, places=[(7, 4, 7, 4), (4, 8, 4, 8)]),
    "levit": family(lambda: levit.Levit(img_size=64, embed_dim=(16, 24), key_dim=8, depth=(1, 1), num_heads=(2, 3), num_classes=CLASSES), 64, 16, GRID,
                    places=[(4, 16, 4, 16), (2, 32, 4, 16), (2, 32, 2, 32)], folded=True),
    "crossvit": family(lambda: crossvit.CrossVit(img_size=32, patch_size=(8, 16), embed_dim=(16, 24), depth=((1, 1, 0),), num_heads=(2, 4),
                                                 mlp_ratio=(2.0, 2.0, 2.0), num_classes=CLASSES), 32, 8, GRID, 1, places=[(4, 8, 4, 8), (2, 16, 2, 16)]),
    "tnt": family(lambda: tnt.TNT(img_size=32, patch_size=16, embed_dim=DIM, inner_dim=8, depth=1, num_heads_inner=2, num_heads_outer=4, mlp_ratio=2.0,
                                  num_classes=CLASSES), 32, None, None, density=False),
    "swin2": family(lambda: swin_transformer_v2.SwinTransformerV2(img_size=32, embed_dim=12, depths=(2, 1), num_heads=(2, 4), window_size=4, mlp_ratio=2.5,
                                                                  num_classes=CLASSES), 32, 4, [8, 8], places=[(4, 4, 4, 4)] * 2 + [(4, 8, 4, 8)], folded=True),
    "davit": family(lambda: davit.DaVit(depths=(1,), embed_dims=(16,), num_heads=(2,), window_size=4, mlp_ratio=2, num_classes=CLASSES), 32, 4, [8, 8],
                    density=[0], places=[(4, 4, 4, 4), None]),
    "dinov3": family(create("vit_small_patch16_dinov3", num_heads=3), 16, 4, GRID, 5, folded=True),
    "aimv2": family(create("aimv2_large_patch14_224", num_heads=HEADS), 16, 4, GRID),
    "sam": family(lambda: vision_transformer_sam.VisionTransformerSAM(**small | dict(img_size=32), window_size=3, use_rel_pos=True, global_attn_indexes=(1,),
                                                                      neck_chans=16), 32, 4, [8, 8], places=[(3, 4, 3, 4), (8, 4, 8, 4)], folded=True),
    "parallel": family(vit(vision_transformer.ParallelThingsBlock, depth=1), 16, 4, GRID, 1),
    "differential": family(vit(vision_transformer.DiffParallelScalingBlock, depth=DEPTH, norm_layer=RmsNorm), 16, 4, GRID, 1, density="finite", folded=True),
    "hybrid": family(convolutional_stem, 32, 8, GRID, 1, folded=True),
    "convit": family(lambda: convit.ConVit(**small | dict(embed_dim=DIM // HEADS), local_up_to_layer=1), 16, 4, GRID, density="finite", coordinates=True),
    "edgenext": family(lambda: edgenext.EdgeNeXt(dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), heads=(2, 2, 2, 2), expand_ratio=2, num_classes=CLASSES), 64, None,
                       None, density=False, coordinates=True),
    "cascade": family(lambda: efficientvit_msra.EfficientVitMsra(img_size=64, embed_dim=(16,), key_dim=(4,), depth=(1,), num_heads=(2,), window_size=(4,),
                                                                 kernels=(3, 3), down_ops=(("", 1),), num_classes=CLASSES), 64, 16, GRID, folded=True, heads_stay=True),
    "coat": family(lambda: coat.CoaT(img_size=64, patch_size=4, embed_dims=(16,) * 4, serial_depths=(1, 0, 0, 1), parallel_depth=0, num_heads=2,
                                     mlp_ratios=(2,) * 4, crpe_window={3: 1, 5: 1}, num_classes=CLASSES), 64, None, None, density=False, folded=True, heads_stay=True),
    "detector": detector,
}
# Where a layer goes as a whole, with norms and convolutions behind attention and FFN, and where some layer cannot go.
DROPPING = {"whole": {"xcit", "levit", "swin2", "davit"}, "refused": {"coatnet", "cascade", "hiera", "mvitv2", "parallel", "edgenext"}}
for name in ["cait", "xcit", "gcvit", "maxvit", "coatnet", "hiera", "mvitv2", "pvt2", "twins", "nest", "pit", "levit", "crossvit", "tnt", "swin2", "davit",
             "dinov3", "sam", "parallel", "hybrid", "convit", "edgenext", "cascade", "coat", "detector"]:
    options = dict(runtimes=["onnxruntime"]) if name == "levit" else {}  # tract folds its HardSwish wrongly
    fixture(f"family-{name}", TS, 17, functools.partial(FAMILIES[name], False), **options)
for name, opset in [("cait", 18), ("swin2", 23), ("davit", 18), ("mvitv2", 18), ("pvt2", 23), ("dinov3", 23), ("aimv2", 18), ("aimv2", 23), ("parallel", 23),
                    ("differential", 18), ("detector", 23)]:
    fixture(f"family-{name}", DYNAMO, opset, functools.partial(FAMILIES[name], opset > 18))


# ------------------------------------------------------------------------------------------------ weights, export, check


def scramble(model, seed):
    """Random weights that a mistake cannot hide in. Sizes are such that attention is neither uniform nor saturated."""
    generator = torch.Generator().manual_seed(seed)
    noise = lambda p: torch.randn(p.shape, generator=generator)
    norms = {id(m.weight) for m in model.modules() if "norm" in type(m).__name__.lower() and getattr(m, "weight", None) is not None}
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            last = name.rsplit(".", 1)[-1]
            if id(p) in norms or re.search(r"gamma|lambda|scale", last):
                p.copy_((1 + 0.3 * noise(p)).clamp(0.3, 1.9))
            elif "relative_position" in name or "position" in name or "pos_embed" in name or "token" in name or "latent" in name or "class_embedding" in name:
                p.copy_(0.6 * noise(p))
            elif p.ndim >= 2:
                p.copy_(1.3 * noise(p) / math.sqrt(p[0].numel()))
            else:
                p.copy_(0.25 * noise(p))
            assert not torch.any((p == 0) | (p == 1)), name
        for m in model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.running_mean.copy_(0.2 * noise(m.running_mean))
                m.running_var.copy_((1 + 0.3 * noise(m.running_var)).clamp(0.5, 1.5))


class Unmasked(nn.Module):
    """Hugging Face's masked autoencoder without a mask. It sorts patches by noise, which here is their order."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer("noise", torch.linspace(0, 1, (IMAGE // PATCH) ** 2))

    def forward(self, pixel_values):
        noise = self.noise.expand(pixel_values.shape[0], -1)
        return self.model(pixel_values, noise=noise).last_hidden_state


class Resized(nn.Module):
    """Hugging Face's ViT with the interpolation of its position embedding switched on."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values, interpolate_pos_encoding=True)


@contextlib.contextmanager
def quiet():
    """The exporters print progress, and a whole graph where they fail, from C++ too."""
    sys.stdout.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            for i, copy in enumerate(kept):
                os.dup2(copy, i + 1)
                os.close(copy)


def run_torch(model, x):
    with torch.no_grad():
        out = model(x)
    out = out if isinstance(out, tuple) else tuple(out.values()) if isinstance(out, dict) else (out,)
    return [o.numpy() for o in out if o is not None]


def used_parameters(model, x):
    """Parameters that the outputs depend on (a mask token, for example, takes no part)."""
    model.zero_grad()
    out = model(x)
    out = out if isinstance(out, tuple) else tuple(out.values()) if isinstance(out, dict) else (out,)
    sum((o * torch.randn_like(o)).sum() for o in out if o is not None).backward()
    count = sum(p.numel() for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    return count


def export(model, x, path, exporter, opset, batch, dynamic_size, names, source, metadata):
    name = "pixel_values" if source.startswith("transformers") else "input"
    if exporter == "torchscript":
        axes = {} if batch else {n: {0: "batch"} for n in [name, *names]}
        if dynamic_size:
            axes[name] |= {2: "height", 3: "width"}
        torch.onnx.export(model, (x,), str(path), dynamo=False, opset_version=opset, input_names=[name], output_names=names, dynamic_axes=axes)
    else:
        dims = {} if batch else {0: torch.export.Dim("batch", min=1, max=4096)}
        if dynamic_size:
            dims |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        torch.onnx.export(model, (x,), str(path), dynamo=True, opset_version=opset, input_names=[name], output_names=names,
                          dynamic_shapes=(dims,) if dims else None, external_data=False, verbose=False)
    proto = onnx.load(path)
    held = [proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]
    for item in held:  # what the dynamo exporter notes down: half the file, and its stack traces name folders of this machine
        kept = [(m.key, m.value) for m in item.metadata_props if metadata and "stack_trace" not in m.key and "fx_node" not in m.key]
        del item.metadata_props[:]
        for key, value in kept:
            item.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.opset_import[0].version == opset, proto.opset_import
    onnx.save(proto, path)
    return proto


def relative_error(path, model, shapes, seed):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for shape in shapes:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for ours, theirs in zip(session.run(None, {session.get_inputs()[0].name: x.numpy()}), run_torch(model, x), strict=True):
            worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
    return worst


def make(folder, file, exporter, opset, options, family, builder):
    seed = zlib.crc32(file.encode())
    torch.manual_seed(seed)
    model, facts = builder()
    model.eval()
    scramble(model, seed)
    parameters = sum(p.numel() for p in model.parameters())
    batch, dynamic_size = options.get("batch"), options.get("dynamic_size", False)
    if dynamic_size:
        model = Resized(model)
    c, h, w = facts["image"]
    x = torch.randn((batch or 2, c, h, w), generator=torch.Generator().manual_seed(seed + 1))
    if dynamic_size:
        x = torch.randn((2, c, h + 8, w + 4), generator=torch.Generator().manual_seed(seed + 1))
    used = used_parameters(model, x)
    path = folder / f"{file}.onnx"
    part = folder / f"{file}.tmp"
    try:
        with quiet(), torch.nn.attention.sdpa_kernel(options.get("kernel", ALL_KERNELS)):
            names = facts.get("outputs") or {1: ["logits"], 2: ["last_hidden_state", "pooler_output"]}[len(run_torch(model, x))]
            proto = export(model, x, part, exporter, opset, batch, dynamic_size, names, facts["library"], options.get("metadata", False))
        shapes = [(batch, c, h, w)] if batch else [(1, c, h, w), (3, c, h, w)]
        if dynamic_size:
            shapes.append((2, c, h + 4, w + 12))
        error = relative_error(part, model, shapes, seed + 2)
        assert error < 1e-5, f"relative error {error:.1e} against PyTorch"
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    dims = lambda v: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
    operators = [n.op_type for n in proto.graph.node]
    return {
        "file": path.name, "family": family, "library": facts["library"], "exporter": exporter, "opset": opset, "image": facts["image"],
        "patch_size": facts["patch_size"], "grid": facts["grid"], "prefix_tokens": facts["prefix_tokens"],
        "embedding_dim": facts["layers"][0]["embedding_dim"], "parameters": parameters, "used_parameters": used, "classes": facts["classes"],
        "input": {"name": proto.graph.input[0].name, "shape": dims(proto.graph.input[0])},
        "outputs": [{"name": o.name, "shape": dims(o)} for o in proto.graph.output],
        "layers": facts["layers"], "other_attentions": facts["other_attentions"], "pre_norm": True,
        "attention_operators": operators.count("Attention"), "max_export_error": float(f"{error:.1e}"),
        **{k: facts[k] for k in ("density", "folded", "coordinates", "heads_first", "heads_stay") if k in facts},
        **{"dropping": word for word, families in DROPPING.items() if family.removeprefix("family-") in families}, **{k: options[k] for k in ("runtimes", "tolerance") if k in options},
    }


def reason(error):
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    line = next((l.strip() for l in text.splitlines() if l.strip()), type(error).__name__)
    cause = error.__cause__
    while cause is not None and cause.__cause__ is not None:
        cause = cause.__cause__
    if cause is not None and str(cause).strip():
        line = f"{line.split('.')[0]}: {str(cause).strip().splitlines()[0]}"
    return f"{type(error).__name__}: {re.sub(r'/[^ ]*/', '', line)[:300]}"


def line(entry):
    return json.dumps(entry, separators=(", ", ": "))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="make only files whose name contains one of these")
    parser.add_argument("--output", type=Path, default=Path("fixtures/graphs"))
    args = parser.parse_args()

    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    manifest = args.output / "manifest.json"
    made, failed = {}, {}
    if manifest.exists():
        old = json.loads(manifest.read_text())
        made = {e["file"]: e for e in old["fixtures"]}
        failed = {e["file"]: e for e in old["not_exported"]}
    wanted = {f"{f[0]}.onnx" for f in FIXTURES}
    for file, exporter, opset, options, family, builder in FIXTURES:
        if args.names and not any(n in file for n in args.names):
            continue
        if file.startswith("hf") and file.startswith("hf4") != transformers.__version__.startswith("4."):
            print(f"{file:45} left as it is: this is transformers {transformers.__version__}")
            continue
        start = time.time()
        made.pop(f"{file}.onnx", None)
        failed.pop(f"{file}.onnx", None)
        try:
            entry = made[f"{file}.onnx"] = make(args.output, file, exporter, opset, options, family, builder)
            size = (args.output / entry["file"]).stat().st_size
            print(f"{entry['file']:45} {size // 1024:4} KB, {entry['parameters']} parameters, error {entry['max_export_error']}, "
                  f"{entry['attention_operators']} Attention, {time.time() - start:.0f} s", flush=True)
        except Exception as error:
            if "--trace" in os.environ.get("FIXTURES_DEBUG", ""):
                traceback.print_exc()
            failed[f"{file}.onnx"] = {"file": f"{file}.onnx", "family": family, "exporter": exporter, "opset": opset, "reason": reason(error)}
            (args.output / f"{file}.onnx").unlink(missing_ok=True)
            print(f"{file:45} NOT EXPORTED: {failed[f'{file}.onnx']['reason']}", flush=True)
        ordered = lambda d: ",\n".join("    " + line(d[f"{f[0]}.onnx"]) for f in FIXTURES if f"{f[0]}.onnx" in d)
        manifest.write_text('{\n  "fixtures": [\n' + ordered(made) + '\n  ],\n  "not_exported": [\n' + ordered(failed) + "\n  ]\n}\n")
    if not args.names:
        for stale in args.output.glob("*.onnx"):
            if stale.name not in wanted:
                stale.unlink()
    kept = [n for n in made if n in wanted]
    total = sum((args.output / n).stat().st_size for n in kept)
    print(f"{len(kept)} fixtures, {total / 1e6:.2f} MB, {len(failed)} not exported")


if __name__ == "__main__":
    sys.exit(main())
