# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "onnx==1.23.2", "onnxruntime==1.32.0", "scipy==1.18.1"]
# ///
"""Computes distances of heads and clusters without Offshoot, for its tests to compare with.

Makes fixtures/density/similarities.json: for models/fashion-vit.onnx on the first 40 images of fixtures/fashion-images.idx3-ubyte the
distances of the heads of every layer (rows of the lower triangle): Jensen-Shannon divergence of mean attention maps in bits, one minus
the linear CKA of head outputs, and the share of the layer's output that is lost when one head is predicted from another; for the first
neurons of every FFN the relative squared difference of their outputs and the same share; and, for points drawn at random, the labels that SciPy's average linkage gives for every number of clusters, those of its single linkage at some
thresholds, and mean silhouettes.

    python scripts/golden/cluster.py

Attention and head outputs are read in ONNX Runtime as additional outputs and taken to 64 bits. CKA goes by the kernels of all rows, the
prediction by least squares over all rows, so that neither knows of covariances of features. Needs numpy, scipy, onnx and onnxruntime.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import jensenshannon, pdist, squareform

IMAGES = 40
NEURONS = 8
RIDGE = 1e-4


def taps(path, images):
    """Of every layer attention maps [images, heads, tokens, tokens], head outputs [rows, heads, dim] and the matrix behind them, outputs
    of the FFN's neurons [rows, neurons] and the matrix behind them."""
    model = onnx.load(path)
    nodes, weights = model.graph.node, {t.name: t for t in model.graph.initializer}
    maps, inputs, matrices, hidden, down = [], [], [], [], []
    for i, node in enumerate(nodes):
        if node.op_type == "Softmax":
            maps.append(node.output[0])
            projection = [n for n in nodes[i:] if n.op_type == "MatMul" and n.input[1] in weights][0]
            inputs.append(projection.input[0])
            matrices.append(onnx.numpy_helper.to_array(weights[projection.input[1]]).astype(np.float64))
            ffn = [n for n in nodes[i:] if n.op_type == "MatMul" and n.input[1] in weights][2]
            hidden.append(ffn.input[0])
            down.append(onnx.numpy_helper.to_array(weights[ffn.input[1]]).astype(np.float64))
    for name in maps + inputs + hidden:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(maps + inputs + hidden, {session.get_inputs()[0].name: images})
    found = [f.astype(np.float64) for f in found]
    layers = []
    parts = [found[i * len(maps) : (i + 1) * len(maps)] for i in range(3)]
    for attention, features, matrix, neurons, rows in zip(*parts[:2], matrices, parts[2], down):
        heads = attention.shape[1]
        features = features.reshape(-1, heads, features.shape[-1] // heads)
        layers.append((attention, features, matrix, neurons.reshape(-1, len(rows)), rows))
    return layers


def neuron_difference(x):
    of = lambda a, b: ((x[:, a] - x[:, b]) ** 2).sum() / ((x[:, a] ** 2).sum() + (x[:, b] ** 2).sum())
    return [[round(float(of(a, b)), 7) for b in range(a)] for a in range(1, NEURONS)]


def neuron_prediction(x, matrix):
    x = x - x.mean(0)
    whole = ((x @ matrix) ** 2).sum()

    def lost(j, c):
        fit = (x[:, j] @ x[:, c]) / (x[:, c] @ x[:, c] * (1 + RIDGE))
        return (np.outer(x[:, j] - fit * x[:, c], matrix[j]) ** 2).sum() / whole

    return [[float(f"{(lost(a, b) + lost(b, a)) / 2:.6g}") for b in range(a)] for a in range(1, NEURONS)]


def attention_distance(attention):
    mean = attention.mean(0)
    of = lambda a, b: np.mean([jensenshannon(p, q, base=2) ** 2 for p, q in zip(mean[a], mean[b])])
    return [[round(of(a, b), 7) for b in range(a)] for a in range(1, len(mean))]


def output_distance(features):
    kernels = []
    for h in range(features.shape[1]):
        x = features[:, h] - features[:, h].mean(0)
        k = x @ x.T
        kernels.append(k / np.linalg.norm(k))
    return [[round(1 - float((kernels[a] * kernels[b]).sum()), 7) for b in range(a)] for a in range(1, len(kernels))]


def prediction_distance(features, matrix):
    rows, heads, dim = features.shape
    centred = features - features.mean(0)
    parts = [centred[:, h] @ matrix[h * dim : (h + 1) * dim] for h in range(heads)]
    whole = (sum(parts) ** 2).sum()

    def lost(j, c):
        x = centred[:, c]
        ridge = np.sqrt(RIDGE * (x**2).sum() / dim) * np.eye(dim)
        fit = np.linalg.lstsq(np.vstack([x, ridge]), np.vstack([parts[j], np.zeros((dim, matrix.shape[1]))]), rcond=None)[0]
        return ((parts[j] - x @ fit) ** 2).sum() / whole

    return [[round((lost(a, b) + lost(b, a)) / 2, 7) for b in range(a)] for a in range(1, heads)]


def silhouette(distance, labels):
    scores = []
    for i in range(len(labels)):
        own = [j for j in range(len(labels)) if labels[j] == labels[i] and j != i]
        if not own:
            scores.append(0.0)
            continue
        inside = distance[i, own].mean()
        outside = min(distance[i, labels == l].mean() for l in set(labels) if l != labels[i])
        scores.append((outside - inside) / max(inside, outside))
    return float(np.mean(scores))


def in_order(labels):
    """Labels numbered as they appear."""
    seen = []
    return [(seen.append(l) or len(seen) - 1) if l not in seen else seen.index(l) for l in labels.tolist()]


def clusterings():
    cases = []
    for seed, heads in enumerate((5, 8, 12, 16)):
        points = np.random.default_rng(seed).normal(size=(heads, 2)).round(4)
        flat = pdist(points)
        distance = squareform(flat)
        average, single = linkage(flat, "average"), linkage(flat, "single")
        levels = []
        for count in range(1, heads + 1):
            labels = fcluster(average, count, "maxclust")
            score = silhouette(distance, labels) if 1 < count < heads else None
            levels.append({"labels": in_order(labels), "silhouette": score})
        thresholds = [0.3, 0.6, 0.9, 1.4]
        chains = [{"eps": t, "labels": in_order(fcluster(single, t, "distance"))} for t in thresholds]
        cases.append({"points": points.tolist(), "average": levels, "single": chains})
    return cases


def main():
    raw = Path("fixtures/fashion-images.idx3-ubyte").read_bytes()
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28)[:IMAGES]
    images = ((images / 255.0 - 0.2860) / 0.3530).astype(np.float32)
    layers = taps("models/fashion-vit.onnx", images)
    golden = {
        "model": "models/fashion-vit.onnx",
        "images": IMAGES,
        "attention": [attention_distance(l[0]) for l in layers],
        "output": [output_distance(l[1]) for l in layers],
        "prediction": [prediction_distance(l[1], l[2]) for l in layers],
        "neuron_output": [neuron_difference(l[3]) for l in layers],
        "neuron_prediction": [neuron_prediction(l[3], l[4]) for l in layers],
        "clusterings": clusterings(),
    }
    lines = [f'  "{k}": [\n' + ",\n".join("    " + json.dumps(r) for r in v) + "\n  ]" if isinstance(v, list) else f'  "{k}": {json.dumps(v)}' for k, v in golden.items()]
    path = Path("fixtures/density/similarities.json")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(path, path.stat().st_size, "bytes")


main()
