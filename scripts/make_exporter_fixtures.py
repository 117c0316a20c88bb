"""Makes fixtures/exporters/*.onnx, manifest.json and golden.json: one small Vision Transformer in other frameworks than PyTorch.

    python scripts/make_exporter_fixtures.py weights               with torch, onnx and onnxruntime
    python scripts/make_exporter_fixtures.py export NAME ...       with the framework of these fixtures
    python scripts/make_exporter_fixtures.py finish                with torch, onnx and onnxruntime

Each model is written as its framework's users write one, with its own layers, and exported by its own exporter. Its weights are those of
the PyTorch model of scripts/make_dialect_fixtures.py (`weights` puts them into the cache folder), so that PyTorch's outputs and gradients
are the truth for all of them: `finish` compares the outputs in ONNX Runtime and writes the manifest and the gradients. A framework has an
environment of its own:

    keras, tensorflow          pip install keras tensorflow-cpu tf2onnx
    keras-jax, flax, equinox   pip install keras jax2onnx flax equinox       (keras-jax with KERAS_BACKEND=jax)
    paddle                     pip install paddlepaddle paddle2onnx
    optimum                    pip install optimum-onnx torch
"""

import argparse
import json
import sys
import zlib
from pathlib import Path

import numpy as np

IMAGE, PATCH, DIM, HEADS, HIDDEN, DEPTH, CLASSES = 16, 4, 24, 4, 40, 2, 7
SIDE = IMAGE // PATCH
WIDTH = DIM // HEADS
EPSILON = 1e-5


def heads_first(matrix):
    """[heads x width, features] as [features, heads, width]."""
    return matrix.T.reshape(-1, HEADS, WIDTH)


# ------------------------------------------------------------------------------------------------ Keras, TensorFlow


def keras_model(w, activation):
    """Keras 3 with MultiHeadAttention, channels last."""
    import keras
    from keras import layers

    class Tokens(layers.Layer):
        """Class token and positions."""

        def build(self, shape):
            self.token = self.add_weight(shape=(1, 1, DIM), name="token")
            self.positions = self.add_weight(shape=(1, SIDE * SIDE + 1, DIM), name="positions")

        def call(self, x):
            token = keras.ops.broadcast_to(self.token, (keras.ops.shape(x)[0], 1, DIM))
            return keras.ops.concatenate([token, x], axis=1) + self.positions

    norm = lambda name: layers.LayerNormalization(epsilon=EPSILON, name=name)
    inputs = layers.Input((IMAGE, IMAGE, 3), name="image")
    x = layers.Conv2D(DIM, PATCH, strides=PATCH, name="patch")(inputs)
    x = layers.Reshape((SIDE * SIDE, DIM))(x)
    x = Tokens(name="tokens")(x)
    for i in range(DEPTH):
        y = norm(f"norm1_{i}")(x)
        y = layers.MultiHeadAttention(HEADS, WIDTH, name=f"attention_{i}")(y, y)
        x = layers.Add()([x, y])
        y = norm(f"norm2_{i}")(x)
        y = layers.Dense(HIDDEN, activation=activation, name=f"fc1_{i}")(y)
        y = layers.Dense(DIM, name=f"fc2_{i}")(y)
        x = layers.Add()([x, y])
    x = norm("norm")(x)
    model = keras.Model(inputs, layers.Dense(CLASSES, name="head")(x[:, 0]))

    set_ = lambda name, *arrays: model.get_layer(name).set_weights(arrays)
    set_("patch", w["patch.weight"].transpose(2, 3, 1, 0), w["patch.bias"])
    set_("tokens", w["token"], w["pos_embed"])
    for i in range(DEPTH):
        part = lambda name: w[f"blocks.{i}.{name}"]
        for k in (1, 2):
            set_(f"norm{k}_{i}", part(f"norm{k}.weight"), part(f"norm{k}.bias"))
            set_(f"fc{k}_{i}", part(f"fc{k}.weight").T, part(f"fc{k}.bias"))
        projections = [a for p in "qkv" for a in (heads_first(part(f"{p}.weight")), part(f"{p}.bias").reshape(HEADS, WIDTH))]
        set_(f"attention_{i}", *projections, part("proj.weight").T.reshape(HEADS, WIDTH, DIM), part("proj.bias"))
    set_("norm", w["norm.weight"], w["norm.bias"])
    set_("head", w["head.weight"].T, w["head.bias"])
    return model


def keras_export(w, path, backend, activation):
    import keras
    assert keras.config.backend() == backend, f"set KERAS_BACKEND={backend}"
    model = keras_model(w, activation)
    model(np.zeros((1, IMAGE, IMAGE, 3), np.float32))
    model.export(str(path), format="onnx", verbose=False)
    return f"keras {keras.__version__} on {backend} {version('tensorflow-cpu' if backend == 'tensorflow' else backend)}"


def keras_tensorflow(w, path):
    """Keras 3 on TensorFlow, `model.export(format="onnx")`: channels last, MultiHeadAttention by Einsum. The GELU is the one with tanh:
    TensorFlow writes the other one with Erfc, which tf2onnx does not have."""
    import keras
    return keras_export(w, path, "tensorflow", lambda x: keras.activations.gelu(x, approximate=True))


def keras_jax(w, path):
    """Keras 3 on JAX, `model.export(format="onnx")` jax2onnx: channels last."""
    return keras_export(w, path, "jax", "gelu")


def tensorflow(w, path):
    """TensorFlow's own operators, tf2onnx: packed projection taken apart by unstack, channels last."""
    import tensorflow as tf
    import tf2onnx

    v = {k: tf.Variable(a, name=k.replace(".", "_")) for k, a in w.items() if not k.startswith("blocks")}
    variables = []

    def variable(array):
        variables.append(tf.Variable(np.array(array, order="C")))
        return variables[-1]

    def norm(x, scale, bias):
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, bias, scale, EPSILON)

    kernel = variable(w["patch.weight"].transpose(2, 3, 1, 0))
    blocks = []
    for i in range(DEPTH):
        part = lambda name: w[f"blocks.{i}.{name}"]
        blocks.append({
            "qkv": variable(np.concatenate([part(f"{p}.weight") for p in "qkv"]).T), "qkv_bias": variable(np.concatenate([part(f"{p}.bias") for p in "qkv"])),
            **{n: variable(part(f"{n}.weight").T) for n in ("proj", "fc1", "fc2", "norm1", "norm2")},
            **{f"{n}_bias": variable(part(f"{n}.bias")) for n in ("proj", "fc1", "fc2", "norm1", "norm2")}})
    head = variable(w["head.weight"].T)

    @tf.function(input_signature=[tf.TensorSpec([None, IMAGE, IMAGE, 3], tf.float32, name="image")])
    def forward(image):
        x = tf.nn.conv2d(image, kernel, PATCH, "VALID") + v["patch.bias"]
        batch = tf.shape(x)[0]
        x = tf.reshape(x, [batch, SIDE * SIDE, DIM])
        x = tf.concat([tf.tile(v["token"], [batch, 1, 1]), x], 1) + v["pos_embed"]
        for b in blocks:
            y = tf.tensordot(norm(x, b["norm1"], b["norm1_bias"]), b["qkv"], 1) + b["qkv_bias"]
            y = tf.transpose(tf.reshape(y, [batch, -1, 3, HEADS, WIDTH]), [2, 0, 3, 1, 4])
            q, k, value = tf.unstack(y, axis=0)
            p = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) * WIDTH**-0.5)
            y = tf.reshape(tf.transpose(tf.matmul(p, value), [0, 2, 1, 3]), [batch, -1, DIM])
            x = x + tf.tensordot(y, b["proj"], 1) + b["proj_bias"]
            y = tf.tensordot(norm(x, b["norm2"], b["norm2_bias"]), b["fc1"], 1) + b["fc1_bias"]
            y = 0.5 * y * (1.0 + tf.math.erf(y / np.float32(np.sqrt(2))))  # tf.nn.gelu asks for Erfc, which tf2onnx does not have
            x = x + tf.tensordot(y, b["fc2"], 1) + b["fc2_bias"]
        return tf.matmul(norm(x, v["norm.weight"], v["norm.bias"])[:, 0], head) + v["head.bias"]

    tf2onnx.convert.from_function(forward, input_signature=forward.input_signature, opset=17, output_path=str(path))
    return f"tensorflow {tf.__version__}, tf2onnx {tf2onnx.__version__}"


# ------------------------------------------------------------------------------------------------ JAX


def flax(w, path):
    """flax.nnx with MultiHeadAttention, jax2onnx: channels last."""
    import jax.numpy as jnp
    import jax2onnx
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm1, self.norm2 = (nnx.LayerNorm(DIM, epsilon=EPSILON, rngs=rngs) for _ in range(2))
            self.attention = nnx.MultiHeadAttention(HEADS, DIM, decode=False, rngs=rngs)
            self.fc1, self.fc2 = nnx.Linear(DIM, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, DIM, rngs=rngs)

        def __call__(self, x):
            x = x + self.attention(self.norm1(x))
            return x + self.fc2(nnx.gelu(self.fc1(self.norm2(x)), approximate=False))

    class Vit(nnx.Module):
        def __init__(self, rngs):
            self.patch = nnx.Conv(3, DIM, (PATCH, PATCH), strides=PATCH, padding="VALID", rngs=rngs)
            self.token, self.positions = nnx.Param(jnp.array(w["token"])), nnx.Param(jnp.array(w["pos_embed"]))
            self.blocks = nnx.List([Block(rngs) for _ in range(DEPTH)])
            self.norm = nnx.LayerNorm(DIM, epsilon=EPSILON, rngs=rngs)
            self.head = nnx.Linear(DIM, CLASSES, rngs=rngs)

        def __call__(self, image):
            x = self.patch(image)
            x = x.reshape(x.shape[0], -1, DIM)
            x = jnp.concatenate([jnp.broadcast_to(self.token[...], (x.shape[0], 1, DIM)), x], 1) + self.positions[...]
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x)[:, 0])

    model = Vit(nnx.Rngs(0))
    put = lambda p, array: p.set_value(jnp.array(array))

    def linear(layer, name):
        put(layer.kernel, w[f"{name}.weight"].T)
        put(layer.bias, w[f"{name}.bias"])

    def norm(layer, name):
        put(layer.scale, w[f"{name}.weight"])
        put(layer.bias, w[f"{name}.bias"])
    put(model.patch.kernel, w["patch.weight"].transpose(2, 3, 1, 0))
    put(model.patch.bias, w["patch.bias"])
    for i, block in enumerate(model.blocks):
        for n in ("fc1", "fc2"):
            linear(getattr(block, n), f"blocks.{i}.{n}")
        for n in ("norm1", "norm2"):
            norm(getattr(block, n), f"blocks.{i}.{n}")
        a = block.attention
        for layer, p in ((a.query, "q"), (a.key, "k"), (a.value, "v")):
            put(layer.kernel, heads_first(w[f"blocks.{i}.{p}.weight"]))
            put(layer.bias, w[f"blocks.{i}.{p}.bias"].reshape(HEADS, WIDTH))
        put(a.out.kernel, w[f"blocks.{i}.proj.weight"].T.reshape(HEADS, WIDTH, DIM))
        put(a.out.bias, w[f"blocks.{i}.proj.bias"])
    norm(model.norm, "norm")
    linear(model.head, "head")
    jax2onnx.to_onnx(model, [("B", IMAGE, IMAGE, 3)], return_mode="file", output_path=str(path))
    return f"flax.nnx, jax2onnx {version('jax2onnx')}"


def equinox(w, path):
    """Equinox with MultiheadAttention, one image under vmap, jax2onnx: channels first."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import jax2onnx

    class Block(eqx.Module):
        norm1: eqx.nn.LayerNorm
        norm2: eqx.nn.LayerNorm
        attention: eqx.nn.MultiheadAttention
        fc1: eqx.nn.Linear
        fc2: eqx.nn.Linear

        def __init__(self, key):
            keys = jax.random.split(key, 3)
            self.norm1, self.norm2 = eqx.nn.LayerNorm(DIM, eps=EPSILON), eqx.nn.LayerNorm(DIM, eps=EPSILON)
            self.attention = eqx.nn.MultiheadAttention(HEADS, DIM, use_query_bias=True, use_key_bias=True, use_value_bias=True, use_output_bias=True, key=keys[0])
            self.fc1, self.fc2 = eqx.nn.Linear(DIM, HIDDEN, key=keys[1]), eqx.nn.Linear(HIDDEN, DIM, key=keys[2])

        def __call__(self, x):
            y = jax.vmap(self.norm1)(x)
            x = x + self.attention(y, y, y)
            y = jax.vmap(self.fc1)(jax.vmap(self.norm2)(x))
            return x + jax.vmap(self.fc2)(jax.nn.gelu(y, approximate=False))

    class Vit(eqx.Module):
        patch: eqx.nn.Conv2d
        token: jax.Array
        positions: jax.Array
        blocks: list
        norm: eqx.nn.LayerNorm
        head: eqx.nn.Linear

        def __init__(self, key):
            keys = jax.random.split(key, DEPTH + 2)
            self.patch = eqx.nn.Conv2d(3, DIM, PATCH, PATCH, key=keys[0])
            self.token, self.positions = jnp.array(w["token"][0]), jnp.array(w["pos_embed"][0])
            self.blocks = [Block(k) for k in keys[2:]]
            self.norm = eqx.nn.LayerNorm(DIM, eps=EPSILON)
            self.head = eqx.nn.Linear(DIM, CLASSES, key=keys[1])

        def __call__(self, image):
            x = self.patch(image).reshape(DIM, -1).T
            x = jnp.concatenate([self.token, x]) + self.positions
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x[0]))

    model = Vit(jax.random.PRNGKey(0))
    attention = {"query_proj": "q", "key_proj": "k", "value_proj": "v", "output_proj": "proj"}
    places = [(lambda m: m.patch, "patch"), (lambda m: m.norm, "norm"), (lambda m: m.head, "head")]
    for i in range(DEPTH):
        places += [(lambda m, i=i, n=n: getattr(m.blocks[i], n), f"blocks.{i}.{n}") for n in ("norm1", "norm2", "fc1", "fc2")]
        places += [(lambda m, i=i, n=n: getattr(m.blocks[i].attention, n), f"blocks.{i}.{p}") for n, p in attention.items()]
    for place, name in places:
        for kind in ("weight", "bias"):
            shape = getattr(place(model), kind).shape
            model = eqx.tree_at(lambda m: getattr(place(m), kind), model, jnp.array(w[f"{name}.{kind}"]).reshape(shape))
    jax2onnx.to_onnx(jax.vmap(eqx.nn.inference_mode(model)), [("B", 3, IMAGE, IMAGE)], return_mode="file", output_path=str(path))
    return f"equinox {eqx.__version__}, jax2onnx {version('jax2onnx')}"


# ------------------------------------------------------------------------------------------------ PaddlePaddle


def paddle(w, path):
    """paddle.nn with TransformerEncoder, paddle2onnx: channels first."""
    import paddle as pd
    from paddle import nn

    class Vit(nn.Layer):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2D(3, DIM, PATCH, PATCH)
            self.token = self.create_parameter([1, 1, DIM])
            self.positions = self.create_parameter([1, SIDE * SIDE + 1, DIM])
            layer = nn.TransformerEncoderLayer(DIM, HEADS, HIDDEN, dropout=0.0, activation="gelu", normalize_before=True)
            self.encoder = nn.TransformerEncoder(layer, DEPTH, nn.LayerNorm(DIM, epsilon=EPSILON))
            self.head = nn.Linear(DIM, CLASSES)

        def forward(self, image):
            x = self.patch(image).flatten(2).transpose([0, 2, 1])
            x = pd.concat([self.token.expand([x.shape[0], -1, -1]), x], axis=1) + self.positions
            return self.head(self.encoder(x)[:, 0])

    model = Vit()
    model.eval()
    state = {"patch.weight": w["patch.weight"], "patch.bias": w["patch.bias"], "token": w["token"], "positions": w["pos_embed"],
             "encoder.norm.weight": w["norm.weight"], "encoder.norm.bias": w["norm.bias"], "head.weight": w["head.weight"].T, "head.bias": w["head.bias"]}
    names = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.out_proj": "proj", "linear1": "fc1", "linear2": "fc2",
             "norm1": "norm1", "norm2": "norm2"}
    for i in range(DEPTH):
        for theirs, ours in names.items():
            state[f"encoder.layers.{i}.{theirs}.weight"] = w[f"blocks.{i}.{ours}.weight"].T
            state[f"encoder.layers.{i}.{theirs}.bias"] = w[f"blocks.{i}.{ours}.bias"]
    missing = model.set_state_dict({k: pd.to_tensor(np.array(a, order="C")) for k, a in state.items()})
    assert not missing[0] and not missing[1], missing
    stem = path.with_suffix("")
    pd.onnx.export(model, str(stem), input_spec=[pd.static.InputSpec([None, 3, IMAGE, IMAGE], "float32", "image")], opset_version=13)
    return f"paddle {pd.__version__}, paddle2onnx {version('paddle2onnx')}"


# ------------------------------------------------------------------------------------------------ Hugging Face Optimum


def optimum(w, path):
    """Hugging Face Optimum's `main_export` of a ViT for classification (TorchScript, its own wrappers), optimised at level O2."""
    import tempfile

    import torch
    import transformers
    from optimum.exporters.onnx import main_export

    config = transformers.ViTConfig(hidden_size=DIM, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=HIDDEN, image_size=IMAGE, patch_size=PATCH,
                                    num_labels=CLASSES, layer_norm_eps=EPSILON)
    model = transformers.ViTForImageClassification(config)
    state = {"vit.embeddings.cls_token": w["token"], "vit.embeddings.position_embeddings": w["pos_embed"]}
    names = {"vit.embeddings.patch_embeddings.projection": "patch", "vit.layernorm": "norm", "classifier": "head"}
    parts = {"attention.attention.query": "q", "attention.attention.key": "k", "attention.attention.value": "v", "attention.output.dense": "proj",
             "intermediate.dense": "fc1", "output.dense": "fc2", "layernorm_before": "norm1", "layernorm_after": "norm2"}
    names |= {f"vit.encoder.layer.{i}.{theirs}": f"blocks.{i}.{ours}" for i in range(DEPTH) for theirs, ours in parts.items()}
    for theirs, ours in names.items():
        for kind in ("weight", "bias"):
            state[f"{theirs}.{kind}"] = w[f"{ours}.{kind}"]
    model.load_state_dict({k: torch.from_numpy(np.array(a)) for k, a in state.items()})
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/model")
        main_export(f"{folder}/model", f"{folder}/onnx", task="image-classification", opset=17)
        path.write_bytes(Path(f"{folder}/onnx/model.onnx").read_bytes())
    return f"transformers {transformers.__version__}, optimum-onnx {version('optimum-onnx')}"


# ------------------------------------------------------------------------------------------------ files


def version(package):
    import importlib.metadata
    return importlib.metadata.version(package)


FIXTURES = {"keras": keras_tensorflow, "keras-jax": keras_jax, "tensorflow": tensorflow, "flax": flax, "equinox": equinox, "paddle": paddle, "optimum": optimum}
TANH = ["keras"]  # fixtures whose GELU is the one with tanh


def rebuilt(name):
    """The PyTorch model of a fixture, as the script of the gradients builds it."""
    import make_dialect_fixtures
    model = make_dialect_fixtures.Vit(activation="gelu-tanh" if name in TANH else "gelu")
    return model, make_dialect_fixtures.facts(model)


def write_weights(args):
    import make_fixtures
    for name in FIXTURES:
        model, _ = rebuilt(name)
        make_fixtures.scramble(model, zlib.crc32(name.encode()))
        np.savez(args.cache / f"{name}.npz", **{k: p.detach().numpy() for k, p in model.named_parameters()})


def export(args):
    for name in args.names or FIXTURES:
        path = args.output / f"{name}.onnx"
        said = FIXTURES[name](dict(np.load(args.cache / f"{name}.npz")), path)
        (args.cache / f"{name}.said").write_text(said)
        print(f"{name:12} {path.stat().st_size // 1024} KB, {said}")


def finish(args):
    import make_dialect_fixtures
    import make_fixtures
    import make_gradient_golden
    import onnx
    import onnxruntime
    import torch

    torch.set_num_threads(1)
    entries, golden = [], []
    for name in FIXTURES:
        path = args.output / f"{name}.onnx"
        if not path.exists():
            continue
        model, facts = rebuilt(name)
        model.eval()
        make_fixtures.scramble(model, zlib.crc32(name.encode()))
        proto = onnx.load(path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0]
        last = given.shape[3] == 3
        worst = 0.0
        for batch in (1, 3):
            x = torch.randn((batch, 3, IMAGE, IMAGE), generator=torch.Generator().manual_seed(5))
            with torch.no_grad():
                theirs = model(x).numpy()
            ours = session.run(None, {given.name: x.permute(0, 2, 3, 1).numpy() if last else x.numpy()})[0]
            worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
        assert worst < 1e-5, f"{name}: relative error {worst:.1e} against PyTorch"
        parameters = sum(p.numel() for p in model.parameters())
        entries.append({
            "file": path.name, "family": name, "form": " ".join(FIXTURES[name].__doc__.split()), "exporter": "other", **facts, "library": (args.cache / f"{name}.said").read_text(),
            "opset": proto.opset_import[0].version, "channels_last": last, "embedding_dim": DIM, "parameters": parameters, "used_parameters": parameters,
            "input": {"name": given.name, "shape": given.shape}, "outputs": [{"name": o.name, "shape": o.shape} for o in session.get_outputs()],
            "pre_norm": True, "attention_operators": sum(n.op_type == "Attention" for n in proto.graph.node), "tolerance": 1e-5,
            "runtimes": RUNTIMES.get(name, ["onnxruntime", "tract"]), "max_export_error": float(f"{worst:.1e}")})
        entry = make_gradient_golden.golden(args.output, name, {"channels_last": last}, lambda: rebuilt(name))
        golden.append(entry)
        print(f"{path.name:20} {path.stat().st_size // 1024:4} KB, error {worst:.1e}, unmapped {[u['parameter'] for u in entry['unmapped']]}")
    lines = ",\n".join("    " + make_fixtures.line(e) for e in entries)
    (args.output / "manifest.json").write_text('{\n  "fixtures": [\n' + lines + '\n  ],\n  "not_exported": []\n}\n')
    (args.output / "golden.json").write_text("[\n" + ",\n".join(json.dumps(e, separators=(",", ":")) for e in golden) + "\n]\n")


RUNTIMES = {}  # fixtures that the embedded runtime does not run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("fixtures/exporters"))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/offshoot-exporters"))
    parser.add_argument("command", choices=["weights", "export", "finish"])
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    for folder in (args.output, args.cache):
        folder.mkdir(parents=True, exist_ok=True)
    {"weights": write_weights, "export": export, "finish": finish}[args.command](args)


if __name__ == "__main__":
    sys.exit(main())
