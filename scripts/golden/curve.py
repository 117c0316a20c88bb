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
"""Makes fixtures/training/curves.json: PyTorch's loss over 50 steps of AdamW on every fixture model and on the bundled ancestor.

    OMP_NUM_THREADS=1 python scripts/golden/curve.py [NAME ...]

Each fixture's model is rebuilt as scripts/golden/gradient.py does. Five fixed batches, made by its integer hash, come in turn.
Models with classes are trained by cross-entropy with label smoothing 0.1, others by the mean squared difference between their first
output and numbers from the hash. AdamW: betas 0.9 and 0.999, weight decay 0.05 on matrices and kernels (not on norms, biases, tokens
and position tables), learning rate 1e-3 after 5 steps of warm-up, then along half a cosine to 1e-5. Parameters that an exporter folded,
whole or in part (a bias table gathered into place, a position table whose first row was added to the class token), are frozen here and
there: `trained` lists the graph's initializers that the Rust side trains.
"""

import argparse
import json
import math
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("lib", "fixtures", "golden", "studies")]

import graphs
import gradient as gradients
import numpy as np
import onnx
import torch
import torch.nn.functional as F
import train_ancestor
import transformers
from onnx import numpy_helper

STEPS, BATCHES, BATCH, RATE, LAST, WARMUP, DECAY, SMOOTHING = 50, 5, 4, 1e-3, 1e-5, 5, 0.05, 0.1
INPUT, TARGET, LABEL = 1000, 2000, 3000  # seeds of the hash; batches count on from there


def rate(step):
    if step < WARMUP:
        return RATE * (step + 1) / WARMUP
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return LAST + (RATE - LAST) * (0.5 + 0.5 * math.cos(math.pi * progress))


def decays(name, parameter):
    table = any(k in name for k in ("token", "pos_embed", "position", "latent", "probe", "class_embedding"))
    return parameter.ndim > 1 and not table


def curve(model, image, batch, classes):
    groups = [{"params": [p], "weight_decay": DECAY if decays(n, p) else 0.0} for n, p in model.named_parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for step in range(STEPS):
        k = step % BATCHES
        x = torch.from_numpy(gradients.values((batch, *image), INPUT + k).astype(np.float32))
        output = gradients.outputs_of(model(x))[0]
        if classes:
            labels = torch.from_numpy((gradients.hashes(batch, LABEL + k) % classes).astype(np.int64))
            loss = F.cross_entropy(output, labels, label_smoothing=SMOOTHING)
        else:
            target = torch.from_numpy(gradients.values(tuple(output.shape), TARGET + k).astype(np.float32))
            loss = F.mse_loss(output, target)
        for group in optimiser.param_groups:
            group["lr"] = rate(step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(f"{loss.item():.8g}"))
    return losses


def fixture(file, options, builder, mapped):
    model, facts = gradients.rebuilt(file, options, builder)
    frozen = {f["parameter"] for f in mapped["folds"]} | {u["parameter"] for u in mapped["unmapped"]}
    for name, p in model.named_parameters():
        p.requires_grad_(name not in frozen)
    batch = options.get("batch") or BATCH
    folded = {part["name"] for f in mapped["folds"] for part in f["from"]}
    for name, p in model.named_parameters():
        if name in frozen:  # what is left of a parameter that was folded in part
            held = p.detach().numpy()
            graph = onnx.load(f"fixtures/graphs/{file}.onnx").graph
            folded |= {t.name for t in graph.initializer if t.data_type == 1 and t.dims and np.isin(numpy_helper.to_array(t), held).all()}
    losses = curve(model, facts["image"], batch, facts["classes"])
    trained = [e["name"] for e in mapped["initializers"] if e["name"] not in folded]
    return {"file": f"fixtures/graphs/{file}.onnx", "batch": batch, "image": facts["image"], "classes": facts["classes"], "trained": trained, "losses": losses}


def ancestor():
    """The bundled ancestor: its weights stand in the file under their PyTorch names, or transposed for MatMul."""
    path = Path("models/fashion-vit.onnx")
    graph = onnx.load(path).graph
    model = train_ancestor.ViT().eval()
    held = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    biases = {}  # the MatMul whose sum with a bias this is
    for node in graph.node:
        if node.op_type == "Add":
            for bias, product in (node.input, node.input[::-1]):
                maker = next((n for n in graph.node if product in n.output and n.op_type == "MatMul"), None)
                if bias in held and maker is not None:
                    biases[bias] = maker.input[1]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in held:
                value = held[name]
            else:
                value = held[biases[name.replace(".weight", ".bias")]].T
            assert value.shape == tuple(p.shape), name
            p.copy_(torch.from_numpy(value.copy()))
    trained = [t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 1]
    return {"file": str(path), "batch": BATCH, "image": [1, 28, 28], "classes": 10, "trained": trained, "losses": curve(model, (1, 28, 28), BATCH, 10)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only models whose file name contains one of these")
    parser.add_argument("--output", type=Path, default=Path("fixtures/training/curves.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    made = {e["file"]: e for e in json.loads(args.output.read_text())} if args.output.exists() else {}
    mapped = {e["file"]: e for e in json.loads(Path("fixtures/gradients/golden.json").read_text())}
    wanted = lambda file: not args.names or any(n in file for n in args.names)
    if wanted("fashion-vit"):
        entry = ancestor()
        made[entry["file"]] = entry
        print(entry["file"], entry["losses"][0], entry["losses"][-1], flush=True)
    for file, _, _, options, _, builder in graphs.FIXTURES:
        if not wanted(file) or f"{file}.onnx" not in mapped:
            continue
        if file.startswith("hf") and file.startswith("hf4") != transformers.__version__.startswith("4."):
            print(f"{file:45} left as it is: this is transformers {transformers.__version__}")
            continue
        entry = fixture(file, options, builder, mapped[f"{file}.onnx"])
        made[entry["file"]] = entry
        print(f"{file:45} {entry['losses'][0]} {entry['losses'][-1]}", flush=True)
    args.output.write_text("[\n" + ",\n".join(json.dumps(made[k], separators=(",", ":")) for k in sorted(made)) + "\n]\n")


if __name__ == "__main__":
    sys.exit(main())
