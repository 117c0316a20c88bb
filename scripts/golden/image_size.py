# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "numpy==2.5.5",
#     "onnx==1.23.2",
#     "onnxruntime==1.32.0",
#     "onnxscript==0.7.2",
#     "safetensors==0.8.0",
#     "timm==1.0.31",
#     "torch==2.15.0",
#     "torchvision==0.29.2",
#     "transformers==5.23.0",
# ]
# ///
"""Makes fixtures/image-size/golden.json and its graphs: what timm's models of another image size say, for tests of `grow --image-size`.

Every case is a small model of timm or transformers at one image size, whose export lies in fixtures/graphs or is made here, and
the same weights in a model of another size, resampled by timm's own functions (resample_abs_pos_embed, resize_rel_pos_bias_table).
The golden outputs are the second model's, on an input that is a formula: see `image`.

    OMP_NUM_THREADS=1 python scripts/golden/image_size.py

Needs what scripts/fixtures/graphs.py needs; seen with torch 2.15, timm 1.0.31, transformers 5.23.
"""

import json
import sys
import zlib
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("lib", "fixtures")]

import numpy as np
import torch
from graphs import CLASSES, FIXTURES, export, quiet, run_torch, scramble
from timm.layers import resample_abs_pos_embed, set_fused_attn
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from timm.models import swin_transformer

FOLDER = Path("fixtures/image-size")


def image(size):
    """Pixels of all channels in order: sin(0.7 i) + cos(0.013 i²), computed in double precision."""
    i = np.arange(3 * size[0] * size[1], dtype=np.float64)
    return torch.from_numpy((np.sin(0.7 * i) + np.cos(0.013 * i * i)).astype(np.float32).reshape(1, 3, *size))


def resampled(old, new, name, value):
    """The entry `name` of the old model's state, for the new model."""
    target = new.state_dict()[name]
    if name == "pos_embed":
        prefix = 0 if getattr(new, "no_embed_class", False) else new.num_prefix_tokens
        return resample_abs_pos_embed(value, new.patch_embed.grid_size, old.patch_embed.grid_size, prefix)
    if name.endswith("relative_position_bias_table") and value.shape != target.shape:
        attention = new.get_submodule(name.rsplit(".", 1)[0])
        before = old.get_submodule(name.rsplit(".", 1)[0])
        window = lambda m: getattr(m, "window_size")
        return resize_rel_pos_bias_table(value, window(attention), target.shape, old_window_size=window(before))
    return value


def timm_at(builder, size, old):
    """The builder's model for another size, with the old model's weights."""
    cls, config = builder.args[0], builder.keywords
    fused = builder.args[1]
    set_fused_attn(fused, experimental=fused)
    base = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "mlp_ratio": 40 / 24, "num_classes": CLASSES}
    new = cls(**(base | config | {"img_size": size})).eval()
    buffers = {n for n, _ in new.named_buffers()}
    state = {n: v if n in buffers else resampled(old, new, n, v) for n, v in old.state_dict().items()
             if n not in buffers or v.shape == new.state_dict()[n].shape}
    new.load_state_dict(state, strict=False)
    return new


def swin(size, window=4):
    set_fused_attn(False)
    return swin_transformer.SwinTransformer(img_size=size, patch_size=4, embed_dim=12, depths=(2, 1), num_heads=(2, 4), window_size=window,
                                            mlp_ratio=2.5, num_classes=CLASSES).eval()


def swin_at(size, old, window=4):
    """Windows keep their size; the second stage's window covers its whole grid before and after."""
    new = swin(size, window)
    stage = new.layers[1]
    grid = tuple(s // 8 for s in size)
    stage.set_input_size(tuple(s // 4 for s in size), grid)
    state = {n: resampled(old, new, n, v) for n, v in old.state_dict().items()}
    new.load_state_dict(state, strict=False)
    return new


def hugging_face_at(kind, size, old):
    """CLIP of another size: the table behind the class token is resampled as timm resamples it."""
    import transformers

    config = old.config.__class__(**(old.config.to_dict() | {"image_size": size[0]}))
    new = old.__class__._from_config(config, attn_implementation="eager").eval()
    state = old.state_dict()
    key = next(k for k in state if k.endswith("position_embedding.weight"))
    grid = [s // config.patch_size for s in size]
    state[key] = resample_abs_pos_embed(state[key][None], grid, None, 1)[0]
    state = {k: v for k, v in state.items() if not k.endswith("position_ids")}
    new.load_state_dict(state, strict=False)
    return new


def known(file):
    """A fixture's model, with the weights that scripts/fixtures/graphs.py gave it."""
    entry = next(f for f in FIXTURES if f[0] == file)
    seed = zlib.crc32(file.encode())
    torch.manual_seed(seed)
    model, _ = entry[5]()
    model.eval()
    scramble(model, seed)
    return entry[5], model


def main():
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    cases = []

    def case(graph, new, size):
        x = image(size)
        cases.append({"graph": graph, "size": list(size), "outputs": [{"shape": list(o.shape), "data": [float(f"{v:.9g}") for v in o.ravel()]}
                                                                     for o in run_torch(new, x)]})
        print(graph, size, cases[-1]["outputs"][0]["data"][:3], flush=True)

    for file, sizes in [
        ("timm-vit-unfused-ts11", [(24, 24), (12, 12), (20, 28)]),
        ("timm-vit-fused-dynamo23", [(24, 24)]),
        ("timm-vit-fused-wide-dynamo18", [(24, 16)]),
        ("timm-vit-registers-ts17", [(20, 20)]),
        ("timm-vit-registers-average-dynamo23", [(24, 20)]),
        ("timm-deit-distilled-ts17", [(24, 24)]),
        ("timm-vit-map-ts17", [(20, 20)]),
        ("timm-beit-ts13", [(24, 24), (12, 20)]),
        ("timm-beit-dynamo18", [(24, 24)]),
        ("timm-eva02-ts17", [(24, 24)]),
        ("timm-eva02-dynamo18", [(28, 20)]),
    ]:
        builder, old = known(file)
        for size in sizes:
            case(f"graphs/{file}.onnx", timm_at(builder, size, old), size)
    for file in ["timm-swin-ts17", "timm-swin-dynamo18"]:
        _, old = known(file)
        for size in [(64, 64), (32, 64)]:
            case(f"graphs/{file}.onnx", swin_at(size, old), size)
    # An odd window: no factor of the first stage's grid is one of the second's.
    torch.manual_seed(3)
    old = swin((24, 24), 3)
    scramble(old, 3)
    with quiet():
        export(old, torch.cat([image((24, 24))] * 2), FOLDER / "swin-odd.onnx", "dynamo", 18, None, False, 1, "timm", False)
    case("image-size/swin-odd.onnx", swin_at((48, 48), old, 3), (48, 48))
    for file in ["hf-clip-eager-ts11", "hf-clip-dynamo18"]:
        _, old = known(file)
        case(f"graphs/{file}.onnx", hugging_face_at("clip", (24, 24), old), (24, 24))

    # The table is looked up in the graph where the exporter folds nothing.
    builder, old = known("timm-beit-ts13")
    with quiet():
        torch.onnx.export(old, (image((16, 16)),), str(FOLDER / "beit-lookup.onnx"), dynamo=False, opset_version=17, do_constant_folding=False,
                          input_names=["input"], output_names=["logits"], dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}})
    for size in [(24, 24), (16, 28)]:
        case("image-size/beit-lookup.onnx", timm_at(builder, size, old), size)

    text = ",\n".join("    " + json.dumps(c, separators=(", ", ": ")) for c in cases)
    (FOLDER / "golden.json").write_text('{\n  "cases": [\n' + text + "\n  ]\n}\n")
    print((FOLDER / "golden.json").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
