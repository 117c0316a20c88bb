# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "onnx==1.23.2", "onnxruntime==1.32.0", "pillow==13.0.0"]
# ///
"""Computes mean attention distances without Offshoot, for its tests to compare with.

Makes fixtures/density/fashion-vit.json (models/fashion-vit.onnx on the first 100 images of fixtures/fashion-images.idx3-ubyte) and
fixtures/density/dinov2-small.json (the DINOv2-small saliency model on 20 photographs; the tensors that it saw are left in
.cache/photographs-224.npz, array `images`).

    scripts/fetch/models.sh
    OMP_NUM_THREADS=1 python scripts/golden/density.py [fashion-vit] [dinov2-small]

The attention of every layer is read in ONNX Runtime from the Softmax operators as additional outputs and taken to 64 bits. The prefix
token is dropped as query and as key, rows are not renormalised. With T the distances between patch centres in pixels, a head's
density is the sum of attention x T over the key patches, averaged over the query patches, then over the images.
Needs numpy, pillow, onnx and onnxruntime.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from PIL import Image

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def probes(path):
    """A session that also gives the output of every Softmax, in the order of the graph, and the names of those outputs."""
    model = onnx.load(path)
    names = [n.output[0] for n in model.graph.node if n.op_type == "Softmax"]
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, names


def densities(path, images, grid, patch, prefix=1, batch=4):
    session, names = probes(path)
    feed = session.get_inputs()[0].name
    row, column = np.divmod(np.arange(grid * grid), grid)
    distance = patch * np.sqrt((row[:, None] - row) ** 2.0 + (column[:, None] - column) ** 2.0)
    total = [0.0] * len(names)
    for start in range(0, len(images), batch):
        for layer, attention in enumerate(session.run(names, {feed: images[start : start + batch]})):
            attention = attention.astype(np.float64)
            assert attention.ndim == 4 and attention.shape[2] == attention.shape[3] == prefix + grid * grid, attention.shape
            assert np.allclose(attention.sum(-1), 1, atol=1e-4)
            patches = attention[:, :, prefix:, prefix:]
            total[layer] = total[layer] + (patches * distance).sum(-1).mean(-1).sum(0)
    return [[round(float(d), 6) for d in t / len(images)] for t in total]


def fashion(args):
    raw = (args.fixtures / "fashion-images.idx3-ubyte").read_bytes()
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28)[:100]
    images = ((images / 255.0 - 0.2860) / 0.3530).astype(np.float32)
    return {
        "model": "models/fashion-vit.onnx",
        "images": "fixtures/fashion-images.idx3-ubyte, the first 100",
        "preprocess": "(x / 255 - 0.2860) / 0.3530",
        "densities": densities("models/fashion-vit.onnx", images, grid=7, patch=4, batch=20),
    }


def photograph(path):
    """torchvision's evaluation transform: short side to 256 = floor(224 / 0.875) with Pillow's bicubic filter, long side rounded
    down; centre crop of 224, half a pixel of offset rounded to even; ImageNet's norm."""
    image = Image.open(path).convert("RGB")
    w, h = image.size
    size = (256, 256 * h // w) if w <= h else (256 * w // h, 256)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float64)
    return ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)


def dinov2(args):
    paths = sorted((args.cache / "photographs").glob("imagenet_*.jpg"))
    assert len(paths) == 20, f"{len(paths)} photographs in {args.cache / 'photographs'}; scripts/fetch/models.sh fetches them"
    images = np.stack([photograph(p) for p in paths])
    np.savez_compressed(args.cache / "photographs-224.npz", images=images)
    return {
        "model": "dinov2-small-saliency.onnx",
        "images": [p.name for p in paths],
        "preprocess": "Pillow: short side 256, bicubic, long side rounded down; centre crop 224, half a pixel rounded to even; "
        "(x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]",
        "densities": densities(args.cache / "dinov2-small-saliency.onnx", images, grid=16, patch=14),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=["fashion-vit", "dinov2-small", []], help="default: both")
    parser.add_argument("--fixtures", type=Path, default=Path("fixtures"))
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    args = parser.parse_args()

    (args.fixtures / "density").mkdir(parents=True, exist_ok=True)
    for name, golden in (("fashion-vit", fashion), ("dinov2-small", dinov2)):
        if args.names and name not in args.names:
            continue
        result = golden(args)
        rows = ",\n".join("    " + json.dumps(row) for row in result.pop("densities"))
        head = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in result.items())
        path = args.fixtures / "density" / f"{name}.json"
        path.write_text("{\n" + head + ',\n  "densities": [\n' + rows + "\n  ]\n}\n")
        values = np.array(json.loads(path.read_text())["densities"])
        print(f"{path}: {values.shape[0]} layers x {values.shape[1]} heads, {values.min():.2f} to {values.max():.2f} px")


if __name__ == "__main__":
    main()
