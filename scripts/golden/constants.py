# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "onnx==1.23.2", "onnxscript==0.7.2", "timm==1.0.31", "torch==2.15.0"]
# ///
"""Makes fixtures/reports/constants: fresh models whose equal tensors are stored once, as exporters and slimmers write them, and
PyTorch's losses over nine updates of SGD.

    OMP_NUM_THREADS=1 python scripts/golden/constants.py        needs torch, timm and onnx

Norms are ones and zeros at the start, biases zeros: equal tensors of different layers, which were merged by value. `module-*` call one
block four times, `modules-*` two blocks twice each, so that these blocks share their norms and biases too; `table-*` shares no more
than a table of relative positions, which an exporter folds and which is therefore frozen here and there. Images and labels: 24 images of
the hash in scripts/golden/gradient.py with seed 77, labels 0 and 1 in turn; three batches of eight, three times.
"""

import json
import warnings
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("lib",)]

from hashed import values
import numpy as np
import onnx
import timm
import torch
from onnx import numpy_helper
from timm.models.vision_transformer_relpos import VisionTransformerRelPos

FOLDER = Path(__file__).resolve().parents[2] / "fixtures/reports/constants"
RATE, MOMENTUM, BATCH, UPDATES = 0.01, 0.9, 8, 9
SIZES = dict(num_classes=2, img_size=16, patch_size=4, embed_dim=24, num_heads=4)


def fresh(model):
    torch.manual_seed(0)
    for p in model.parameters():
        if p.ndim > 1:
            p.data.normal_(0, 0.15)
    # The dynamo exporter leaves a bias of zeros out where nothing else is stored with it.
    model.head.bias.data.normal_(0, 0.15)
    return model.eval()


def plain(depth):
    return fresh(timm.create_model("vit_tiny_patch16_224", depth=depth, **SIZES))


def repeated(blocks, order):
    model = plain(blocks)
    model.blocks = torch.nn.Sequential(*(model.blocks[i] for i in order))
    return model


def table():
    model = fresh(VisionTransformerRelPos(depth=2, rel_pos_type="bias", shared_rel_pos=True, class_token=False, global_pool="avg", fc_norm=False, **SIZES))
    for name, p in model.named_parameters():
        p.requires_grad_("rel_pos" not in name)
    return model


def merged(model):
    """Every tensor once, as onnxslim, onnxsim and some exporters store them."""
    seen, renamed, kept = {}, {}, []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key in seen:
            renamed[tensor.name] = seen[key]
        else:
            seen[key] = tensor.name
            kept.append(tensor)
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def export(model, path, dynamo):
    x = torch.rand(2, 3, 16, 16)
    names = dict(input_names=["x"], output_names=["y"])
    if dynamo:
        batch = torch.export.Dim("batch")
        torch.onnx.export(model, (x,), path, dynamo=True, external_data=False, dynamic_shapes=({0: batch},), **names)
    else:
        torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17, dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}}, **names)
    graph = merged(onnx.load(path))
    for node in graph.graph.node:  # what dynamo writes about where nodes come from is larger than the model
        del node.metadata_props[:]
        node.doc_string = ""
    del graph.graph.value_info[:]
    onnx.save(graph, path)
    return graph


def is_table(dims):
    """A bias for each head and each pair of tokens, which every layer adds to its scores."""
    return len(dims) >= 3 and dims[-1] == dims[-2] == 16 and SIZES["num_heads"] in dims


def losses(model):
    x = torch.from_numpy(values((24, 3, 16, 16), 77).astype(np.float32))
    y = torch.arange(24) % 2
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE, momentum=MOMENTUM)
    found = []
    for update in range(UPDATES):
        i = update % 3 * BATCH
        loss = torch.nn.functional.cross_entropy(model(x[i : i + BATCH]), y[i : i + BATCH])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(float(f"{loss.item():.8g}"))
    return found


def main():
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    builders = {
        "apart": lambda: plain(2),
        "module": lambda: repeated(1, [0, 0, 0, 0]),
        "modules": lambda: repeated(2, [0, 0, 1, 1]),
        "table": table,
    }
    entries = []
    for name, build in builders.items():
        for exporter in ("ts", "dynamo"):
            model = build()
            path = FOLDER / f"{name}-{exporter}.onnx"
            graph = export(model, path, exporter == "dynamo")
            frozen = [t.name for t in graph.graph.initializer if "rel_pos" in t.name or is_table(t.dims)]
            parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
            entries.append({"file": path.name, "freeze": frozen, "parameters": parameters, "losses": losses(model)})
            print(entries[-1], path.stat().st_size)
    text = ",\n".join(json.dumps(entry) for entry in entries)
    (FOLDER / "golden.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
