# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "open-clip-torch==3.3.0",
#     "timm==1.0.31",
#     "torch==2.15.0",
#     "vit-pytorch==1.26.14",
# ]
# ///
"""One small model for each family of Vision Transformers in timm, vit-pytorch and open_clip: what `coverage.py` checks."""

import importlib

CLASSES = 7
SMALL = dict(img_size=64, embed_dim=48, depth=2, num_heads=4)
SMALL14 = SMALL | dict(img_size=56)

# Family, the model that stands for it, and what makes it small.
TIMM = [
    ("ViT", "vit_tiny_patch16_224", SMALL),
    ("ViT, attention pooling (SigLIP)", "vit_base_patch16_siglip_224", SMALL),
    ("ViT, CLIP, quick GELU", "vit_base_patch16_clip_quickgelu_224", SMALL),
    ("ViT, registers, layer scale (DINOv2)", "vit_base_patch14_reg4_dinov2", SMALL14),
    ("ViT, packed SwiGLU (DINOv2 giant)", "vit_giant_patch14_dinov2", SMALL14),
    ("ViT, parallel blocks", "vit_small_patch16_18x2_224", SMALL),
    ("ViT, residual post-norm", "vit_base_patch16_rpn_224", SMALL),
    ("ViT, norm before blocks (XP)", "vit_base_patch16_xp_224", SMALL),
    ("ViT, RMS norm, gated (AIM v2)", "aimv2_large_patch14_224", SMALL14),
    ("ViT, averaged, registers", "vit_mediumd_patch16_reg4_gap_256", SMALL),
    ("ViT, SO150M", "vit_so150m_patch16_reg4_map_256", SMALL),
    ("ViT, differential attention", "vit_dpwee_patch16_reg1_gap_256", SMALL),
    ("ViT, InternViT", "vit_intern300m_patch14_448", SMALL14),
    ("ViT, relative position network", "vit_relpos_small_patch16_224", SMALL),
    ("ViT, shared relative position network", "vit_srelpos_small_patch16_224", SMALL),
    ("ViT, relative positions, residual post-norm", "vit_relpos_base_patch32_plus_rpn_256", SMALL),
    ("ViT, SAM", "samvit_base_patch16", dict(img_size=256, embed_dim=48, depth=3, num_heads=4, global_attn_indexes=(2,))),
    ("ViT, NaFlex", "naflexvit_base_patch16_gap", dict(embed_dim=48, depth=2, num_heads=4)),
    ("ViT behind ResNet", "vit_tiny_r_s16_p8_224", dict(depth=2)),
    ("ViT behind MobileCLIP stem", "vit_base_mci_224", dict(depth=1)),
    ("DeiT, distilled", "deit_tiny_distilled_patch16_224", SMALL),
    ("DeiT III", "deit3_small_patch16_224", SMALL),
    ("BEiT", "beit_base_patch16_224", SMALL),
    ("BEiT v2", "beitv2_base_patch16_224", SMALL),
    ("BEiT-3", "beit3_base_patch16_224", SMALL),
    ("EVA", "eva_giant_patch14_224", SMALL14),
    ("EVA-02", "eva02_tiny_patch14_224", SMALL14),
    ("EVA-02 CLIP, norm in the FFN", "eva02_base_patch16_clip_224", SMALL),
    ("ViT, rotary", "vit_medium_patch16_rope_reg1_gap_256", SMALL),
    ("ViT, rotary, mixed", "vit_small_patch16_rope_mixed_224", SMALL),
    ("DINOv3", "vit_small_patch16_dinov3", SMALL),
    ("DINOv3, SwiGLU", "vit_7b_patch16_dinov3", SMALL),
    ("Perception Encoder", "vit_pe_core_tiny_patch16_384", SMALL),
    ("DeepSeek ViT", "deepseek_vit_412m", SMALL14),
    ("Gemma 4 ViT", "gemma4_vit_167m", SMALL),
    ("Qwen 3 ViT", "qwen3_vit_88m", SMALL),
    ("CaiT", "cait_xxs24_224", SMALL | dict(depth=2)),
    ("CoaT", "coat_tiny", dict(serial_depths=[1, 1, 1, 1], parallel_depth=1, embed_dims=[48, 48, 48, 48])),
    ("CoaT-Lite", "coat_lite_tiny", dict(serial_depths=[1, 1, 1, 1])),
    ("ConViT", "convit_tiny", {}),
    ("CrossViT", "crossvit_tiny_240", dict(depth=([1, 1, 0],))),
    ("DaViT", "davit_tiny", dict(depths=(1, 1, 1, 1), embed_dims=(24, 48, 96, 192), num_heads=(2, 3, 6, 12))),
    ("EdgeNeXt", "edgenext_xx_small", dict(depths=(1, 1, 2, 1))),
    ("EfficientFormer", "efficientformer_l1", {}),
    ("EfficientFormer v2", "efficientformerv2_s0", {}),
    ("EfficientViT (MSRA)", "efficientvit_m0", {}),
    ("EfficientViT (MIT), linear attention", "efficientvit_b0", {}),
    ("FastViT", "fastvit_sa12", dict(layers=(1, 1, 1, 1))),
    ("GCViT", "gcvit.GlobalContextVit", dict(depths=(1, 1, 2, 1), num_heads=(2, 4, 8, 16), embed_dim=32)),
    ("Hiera", "hiera_tiny_224", dict(stages=(1, 1, 1, 1), embed_dim=32)),
    ("Hiera, SAM 2", "hieradet_small", dict(stages=(1, 1, 2, 1), global_att_blocks=(3,))),
    ("InceptionFormer", "iformer_t", {}),
    ("LeViT", "levit_128s", {}),
    ("LowFormer", "lowformer_b0", {}),
    ("CoAtNet", "coatnet_0_224", dict(depths=(1, 1, 1, 1), embed_dim=(32, 64, 64, 96))),
    ("CoAtNet, relative position network", "coatnet_rmlp_nano_rw_224", dict(depths=(1, 1, 1, 1), embed_dim=(32, 64, 64, 96))),
    ("CoAtNeXt", "coatnext_nano_rw_224", dict(depths=(1, 1, 1, 1))),
    ("MaxViT", "maxvit_tiny_tf_224", dict(depths=(1, 1, 1, 1), embed_dim=(32, 64, 64, 96))),
    ("MaxViT, relative position network", "maxvit_rmlp_pico_rw_256", dict(depths=(1, 1, 1, 1), embed_dim=(32, 64, 64, 96))),
    ("MaxxViT", "maxxvit_rmlp_nano_rw_256", dict(depths=(1, 1, 1, 1))),
    ("MaxxViT v2", "maxxvitv2_nano_rw_256", dict(depths=(1, 1, 1, 1))),
    ("CAFormer", "caformer_s18", "caformer"),
    ("MobileNet v4, hybrid", "mobilenetv4_hybrid_medium", {}),
    ("MobileViT", "mobilevit_xxs", {}),
    ("MobileViT v2, linear attention", "mobilevitv2_050", {}),
    ("MViT v2", "mvitv2_tiny", "mvitv2"),
    ("MViT v2, class token", "mvitv2_base_cls", "mvitv2_cls"),
    ("NesT", "nest.Nest", dict(depths=(1, 1, 1), embed_dims=(48, 96, 96), num_heads=(2, 4, 4))),
    ("Next-ViT", "nextvit_small", {}),
    ("PiT", "pit_ti_224", dict(depth=[1, 1, 1])),
    ("PiT, distilled", "pit_ti_distilled_224", dict(depth=[1, 1, 1])),
    ("PVT v2", "pvt_v2_b0", dict(depths=(1, 1, 1, 1))),
    ("PVT v2, linear", "pvt_v2_b2_li", dict(depths=(1, 1, 1, 1), embed_dims=(32, 64, 80, 128))),
    ("RepViT", "repvit_m0_9", {}),
    ("SHViT", "shvit_s1", {}),
    ("SwiftFormer, additive attention", "swiftformer_xs", {}),
    ("Swin", "swin_tiny_patch4_window7_224", dict(depths=(2, 1, 1, 1), embed_dim=24)),
    ("Swin v2", "swinv2_tiny_window8_256", dict(depths=(2, 1, 1, 1), embed_dim=24)),
    ("Swin v2 CR", "swinv2_cr_tiny_224", dict(depths=(2, 1, 1, 1), embed_dim=24)),
    ("TinyViT", "tiny_vit_5m_224", dict(depths=(1, 1, 1, 1))),
    ("TNT", "tnt_s_patch16_224", dict(depth=2, embed_dim=192)),
    ("TNT, legacy", "tnt_s_legacy_patch16_224", dict(depth=2, embed_dim=192)),
    ("Twins PCPVT", "twins_pcpvt_small", dict(depths=(1, 1, 1, 1), embed_dims=(32, 64, 80, 128))),
    ("Twins SVT", "twins_svt_small", dict(depths=(1, 1, 2, 1))),
    ("Visformer", "visformer_tiny", {}),
    ("ViTamin", "vitamin_small_224", {}),
    ("VOLO", "volo.VOLO", dict(layers=(1, 1, 1, 1), img_size=224, embed_dims=(48, 96, 96, 96), num_heads=(2, 4, 4, 4), mlp_ratio=3.0)),
    ("XCiT", "xcit_nano_12_p16_224", dict(depth=2)),
    ("XCiT, patch 8", "xcit_tiny_12_p8_224", dict(depth=2)),
    ("BoTNet", "botnet26t_256", {}),
    ("HaloNet", "halonet26t", {}),
    ("LambdaNet", "lambda_resnet26t", {}),
    ("ResNet, CLIP's attention pooling", "resnet50_clip", {}),
    ("CPUBone", "cpubone_b0_bfrobust", {}),
    ("CSATv2", "csatv2", {}),
]

TINY = dict(image_size=64, patch_size=16, num_classes=CLASSES, dim=48, depth=2, heads=4, mlp_dim=96, dim_head=12)
CLS = TINY | dict(depth=2, cls_depth=1)
PYRAMID = dict(num_classes=CLASSES, dim=(32, 48, 64, 64), depth=(1, 1, 2, 1))
CROSS = dict(sm_dim=48, lg_dim=64, sm_patch_size=8, lg_patch_size=16, sm_enc_depth=1, lg_enc_depth=1, depth=1, cross_attn_depth=1) | {
    f"{part}_{what}": size for part in ("sm_enc", "lg_enc") for what, size in dict(heads=4, mlp_dim=96, dim_head=12).items()
}
STAGES = {f"s{n}_{what}": size for n in (1, 2, 3) for what, size in dict(emb_dim=16 * (n + 1), heads=n + 1, depth=1).items()}
LOCAL = {f"s{n}_{what}": size for n in (1, 2, 3, 4) for what, size in dict(emb_dim=32, local_patch_size=7, global_k=7, depth=1).items()}

# Without nViT, which does not say how many heads it has, and LocalViT, which does not run in this version.
VIT_PYTORCH = [
    ("vit-pytorch, ViT", "vit.ViT", TINY),
    ("vit-pytorch, ViT, averaged", "vit.ViT", TINY | dict(pool="mean")),
    ("vit-pytorch, SimpleViT", "simple_vit.SimpleViT", TINY),
    ("vit-pytorch, SimpleViT, norms of queries and keys", "simple_vit_with_qk_norm.SimpleViT", TINY),
    ("vit-pytorch, SimpleViT, registers", "simple_vit_with_register_tokens.SimpleViT", TINY),
    ("vit-pytorch, SimpleViT, fused attention", "simple_flash_attn_vit.SimpleViT", TINY),
    ("vit-pytorch, SimpleViT, residual of values", "simple_vit_with_value_residual.SimpleViT", TINY),
    ("vit-pytorch, SimpleViT, hyper-connections", "simple_vit_with_hyper_connections.SimpleViT", TINY | dict(num_residual_streams=2)),
    ("vit-pytorch, SimpleUViT, skips", "simple_uvit.SimpleUViT", TINY),
    ("vit-pytorch, ViT, patch merger", "vit_with_patch_merger.ViT", TINY),
    ("vit-pytorch, ViT, Keel", "vit_with_keel_post_ln.ViT", TINY),
    ("vit-pytorch, ViT for small data sets", "vit_for_small_dataset.ViT", TINY),
    ("vit-pytorch, ViT of n axes, rotary", "vit_nd_rotary.ViTND", {k: v for k, v in TINY.items() if k != "image_size"} | dict(ndim=2, input_shape=(64, 64))),
    ("vit-pytorch, parallel branches", "parallel_vit.ViT", TINY),
    ("vit-pytorch, DeepViT", "deepvit.DeepViT", TINY),
    ("vit-pytorch, CaiT", "cait.CaiT", CLS),
    ("vit-pytorch, XCiT", "xcit.XCiT", CLS),
    ("vit-pytorch, T2T-ViT", "t2t.T2TViT", {k: v for k, v in TINY.items() if k != "patch_size"}),
    ("vit-pytorch, CCT", "cct.CCT", dict(img_size=64, embedding_dim=48, num_layers=2, num_heads=4, mlp_ratio=2, num_classes=CLASSES)),
    ("vit-pytorch, CrossViT", "cross_vit.CrossViT", dict(image_size=64, num_classes=CLASSES, cross_attn_heads=4, cross_attn_dim_head=12) | CROSS),
    ("vit-pytorch, PiT", "pit.PiT", TINY | dict(image_size=64, depth=(1, 1, 1))),
    ("vit-pytorch, LeViT", "levit.LeViT", dict(image_size=128, num_classes=CLASSES, dim=(32, 48, 64), depth=1, heads=(2, 4, 4), mlp_mult=2, dim_key=8, dim_value=16)),
    ("vit-pytorch, CvT", "cvt.CvT", dict(num_classes=CLASSES) | STAGES),
    ("vit-pytorch, Twins SVT", "twins_svt.TwinsSVT", dict(num_classes=CLASSES) | LOCAL),
    ("vit-pytorch, CrossFormer", "crossformer.CrossFormer", PYRAMID | dict(side=448, global_window_size=(8, 4, 2, 2))),
    ("vit-pytorch, RegionViT", "regionvit.RegionViT", PYRAMID | dict(side=448)),
    ("vit-pytorch, ScalableViT", "scalable_vit.ScalableViT", PYRAMID | dict(dim=32, heads=(2, 4, 4, 4), reduction_factor=(4, 2, 2, 1), window_size=(14, 14, None, None))),
    ("vit-pytorch, SepViT", "sep_vit.SepViT", PYRAMID | dict(dim=32, heads=(1, 2, 4, 4), depth=(1, 1, 2, 1))),
    ("vit-pytorch, MaxViT", "max_vit.MaxViT", dict(num_classes=CLASSES, dim=32, depth=(1, 1), dim_head=16, dim_conv_stem=32)),
    ("vit-pytorch, NesT", "nest.NesT", dict(image_size=64, patch_size=4, num_classes=CLASSES, dim=48, heads=4, num_hierarchies=2, block_repeats=(1, 1), dim_head=12)),
    ("vit-pytorch, MobileViT", "mobile_vit.MobileViT", dict(image_size=(128, 128), dims=[48, 48, 64], channels=[16, 16, 24, 24, 48, 48, 64, 64, 80, 80, 96], num_classes=CLASSES)),
    ("vit-pytorch, RvT, rotary", "rvt.RvT", TINY),
]
TOWER = dict(image_size=64, patch_size=16, width=48, layers=2, heads=4, mlp_ratio=2.0, output_dim=CLASSES)
POOLER = dict(attentional_pool=True, attn_pooler_queries=1, attn_pooler_heads=1)
OPEN_CLIP = [
    ("open_clip, CLIP's tower of pictures", "transformer.VisionTransformer", TOWER),
    ("open_clip, layer scale, no first norm, averaged", "transformer.VisionTransformer", TOWER | dict(ls_init_value=0.5, no_ln_pre=True, pool_type="avg", final_ln_after_pool=True)),
    ("open_clip, pooled by an attention (CoCa)", "transformer.VisionTransformer", TOWER | POOLER),
    ("open_clip, norms of queries and keys, scaled heads", "transformer.VisionTransformer", TOWER | dict(block_type="custom", qk_norm=True, scale_heads=True, scale_attn=True, scale_fc=True)),
]


def listed(library, models):
    """Models of a library: a second model of one class has its place in its name."""
    names = [name for _, name, _ in models]
    number = lambda k: f"-{names[:k].count(names[k]) + 1}" if names[k] in names[:k] else ""
    return [(family, f"{library}.{name}{number(k)}", options) for k, (family, name, options) in enumerate(models)]


MODELS = TIMM + listed("vit_pytorch", VIT_PYTORCH) + listed("open_clip", OPEN_CLIP)


def build(name, options):
    """The model of a row, with its libraries' random weights, and the side of the image that it takes."""
    library = name.split(".")[0]
    if library in ("vit_pytorch", "open_clip"):
        module, cls = name.split("-")[0].rsplit(".", 1)
        # Some take images of any size: `side` is the one that every stage has several windows of.
        size = next((options[k] for k in ("side", "image_size", "img_size", "input_shape") if k in options), 224)
        options = {k: v for k, v in options.items() if k != "side"}
        return getattr(importlib.import_module(module), cls)(**options), size if isinstance(size, int) else size[0]

    import timm
    import timm.models

    if options == "caformer":
        m = timm.models.metaformer
        return m.MetaFormer(depths=[1, 1, 1, 1], dims=[32, 64, 64, 96], token_mixers=[m.SepConv, m.SepConv, m.Attention, m.Attention],
                            norm_layers=[m.LayerNorm2dNoBias] * 2 + [m.LayerNormNoBias] * 2, num_classes=CLASSES), 224
    if options in ("mvitv2", "mvitv2_cls"):
        cfg = timm.models.mvitv2.MultiScaleVitCfg(depths=(1, 1, 1, 1), embed_dim=32, num_heads=1 if options == "mvitv2" else 2, use_cls_token=options == "mvitv2_cls")
        return timm.models.mvitv2.MultiScaleVit(cfg, img_size=(128, 128), num_classes=CLASSES), 128
    if "." in name:
        module, cls = name.split(".")
        model = getattr(getattr(timm.models, module), cls)(num_classes=CLASSES, **options)
        return model, 224
    model = timm.create_model(name, num_classes=CLASSES, **options)
    return model, options.get("img_size") or model.pretrained_cfg["input_size"][-1]
