"""Makes fixtures/reports/classifiers and fixtures/reports/batches: small Vision Transformers as people export them, and PyTorch's numbers.

    OMP_NUM_THREADS=1 python3 scripts/make_classifier_fixtures.py        needs torch, timm, onnx, onnxruntime, onnxscript

classifiers/  models that end in an activation, as one operator or written out; losses are taken from the logits before it
batches/      models whose file fixes a batch of one, and models that declare an open batch and hold a one all the same

images.npz holds the first twelve images of two classes of Fashion-MNIST in turn, normalised, and their labels. In each golden.json an entry
has what PyTorch says of a model: `outputs` of the first three images, each alone; `loss` and `top1` over all images; and `losses` of three
updates by plain gradient descent (rate 0.05, batches of eight images in order), before each update.
"""

import json
import pathlib
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
RATE, BATCH, STEPS, TEMPERATURE = 0.05, 8, 3, 2.0
warnings.filterwarnings("ignore")
torch.set_num_threads(1)


def images():
    """[24, 1, 28, 28] and labels: sneakers are 0, bags are 1."""
    pixels = np.frombuffer((FIXTURES / "fashion-images.idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    labels = np.frombuffer((FIXTURES / "fashion-labels.idx1-ubyte").read_bytes(), np.uint8, offset=8)
    chosen = np.stack([np.flatnonzero(labels == c)[:12] for c in (7, 8)], 1).reshape(-1)
    x = (pixels[chosen].astype(np.float32) / 255 - 0.286) / 0.353
    return x, (labels[chosen] == 8).astype(np.int64)


def drawn(model, seed=0):
    """The same weights for the same seed, no two of them alike: exporters store equal ones once."""
    torch.manual_seed(seed)
    for p in model.parameters():
        p.data.normal_(0, 0.3)
    for m in model.modules():
        if isinstance(m, nn.LayerNorm):
            m.weight.data.add_(1)
    return model.eval()


def vit(classes, seed=0):
    shape = dict(img_size=28, patch_size=7, in_chans=1, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=classes)
    return drawn(timm.create_model("vit_tiny_patch16_224", **shape), seed)


class Behind(nn.Module):
    def __init__(self, model, form):
        super().__init__()
        self.model, self.form = model, form

    def forward(self, x):
        y = self.model(x)
        if self.form == "softmax":
            return torch.softmax(y, -1)
        if self.form == "softmax-written":
            e = torch.exp(y - torch.amax(y, -1, keepdim=True))
            return e / torch.sum(e, -1, keepdim=True)
        if self.form == "log-softmax-written":
            return y - torch.log(torch.sum(torch.exp(y), -1, keepdim=True))
        return torch.sigmoid(y)


class Block(nn.Module):
    """Tokens come first, as torch's MultiheadAttention has them; shapes are numbers, as tracing sees them."""

    def __init__(self, mode, d=16, h=2):
        super().__init__()
        self.n1, self.n2, self.qkv, self.o = nn.LayerNorm(d), nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.f = nn.Sequential(nn.Linear(d, 32), nn.GELU(), nn.Linear(32, d))
        self.mode, self.h = mode, h

    def forward(self, x):
        (t, b, d), h = (int(n) for n in x.shape), self.h
        q, k, v = self.qkv(self.n1(x)).chunk(3, -1)
        q, k, v = (p.reshape(t if self.mode == "holds-one" else -1, b * h, d // h).transpose(0, 1) for p in (q, k, v))
        a = torch.softmax(q @ k.transpose(1, 2) * (d // h) ** -0.5, -1) @ v
        a = a.transpose(0, 1).reshape(t, b if self.mode == "holds-one" else -1, d)
        x = x + self.o(a)
        return x + self.f(self.n2(x))


class Encoder(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.p, self.c, self.e = nn.Conv2d(1, 16, 7, 7), nn.Parameter(torch.zeros(1, 1, 16)), nn.Parameter(torch.zeros(1, 17, 16))
        self.b, self.n, self.hd = nn.Sequential(Block(mode), Block(mode)), nn.LayerNorm(16), nn.Linear(16, 2)

    def forward(self, x):
        x = self.p(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.c.expand(x.shape[0], -1, -1), x], 1) + self.e
        return self.hd(self.n(self.b(x.transpose(0, 1)))[0])


class OverImages(nn.Module):
    """A layer that gets batch and tokens in the wrong order: every token attends to the same one of the other images."""

    def __init__(self, d=16, h=2):
        super().__init__()
        self.p, self.e = nn.Conv2d(1, d, 7, 7), nn.Parameter(torch.zeros(1, 16, d))
        self.n1, self.n2, self.qkv, self.o, self.hd = nn.LayerNorm(d), nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, 2)
        self.own, self.h = nn.Linear(d, 3 * d), h

    def attend(self, x, qkv, images):
        n, t, d = x.shape
        q, k, v = qkv(x).reshape(n, t, 3, self.h, d // self.h).unbind(2)
        axes = (1, 2, 0, 3) if images else (0, 2, 1, 3)
        q, k, v = (p.permute(axes) for p in (q, k, v))
        a = torch.softmax(q @ k.transpose(2, 3) * (d // self.h) ** -0.5, -1) @ v
        return a.permute((2, 0, 1, 3) if images else (0, 2, 1, 3)).reshape(n, t, d)

    def forward(self, x):
        x = self.p(x).flatten(2).transpose(1, 2) + self.e
        x = x + self.o(self.attend(self.n1(x), self.own, False))
        x = x + self.o(self.attend(self.n2(x), self.qkv, True))
        return self.hd(x.mean(1))


class Single(nn.Module):
    """One image is taken out of the batch, and a batch made of it again."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x[0].unsqueeze(0))


def export(model, path, batch, opens, dynamo=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    x = torch.rand(batch, 1, 28, 28)
    if dynamo:
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, external_data=False, input_names=["x"], output_names=["y"])
    else:
        axes = {"x": {0: "batch"}, "y": {0: "batch"}} if opens else None
        torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"], dynamic_axes=axes)
    onnx.checker.check_model(path, full_check=True)


def alone(model, x):
    """What a model says of each image without others."""
    return torch.cat([model(x[i : i + 1]) for i in range(len(x))])


def losses(model, loss, x, y):
    """Plain gradient descent, for which a batch is worked on image by image."""
    found, optimiser = [], torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    for step in range(STEPS):
        part = slice(step * BATCH, (step + 1) * BATCH)
        optimiser.zero_grad()
        value = loss(alone(model, x[part]), y[part], x[part])
        value.backward()
        optimiser.step()
        found.append(value.item())
    return found


def cross_entropy(z, y, _):
    return F.cross_entropy(z, y)


def binary(z, y, _):
    return F.binary_cross_entropy_with_logits(z[:, 0], y.to(z.dtype))


def each_class(z, y, _):
    return F.binary_cross_entropy_with_logits(z, F.one_hot(y, z.shape[1]).to(z.dtype))


def entry(file, model, behind, loss, x, y, **more):
    """`model` gives logits, `behind` what the file gives."""
    with torch.no_grad():
        z = alone(model, x)
        outputs = alone(behind, x[:3])
        said = (z[:, 0] > 0).long() if z.shape[1] == 1 else z.argmax(1)
    own = ort.InferenceSession(file).run(None, {"x": x[:1].numpy().astype(np.float32)})[0]
    assert np.abs(own - outputs[:1].numpy()).max() < 1e-5, (file, own, outputs[:1])
    return {
        "file": file.name,
        "outputs": outputs.tolist(),
        "loss": loss(z, y, x).item(),
        "top1": (said == y).double().mean().item(),
        "losses": losses(model, loss, x, y),
        **more,
    }


def classifiers(x, y):
    folder = FIXTURES / "reports/classifiers"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "images.npz", x=x.numpy().astype(np.float32), y=y.numpy())
    forms = [
        ("softmax", 2, cross_entropy, "softmax", []),
        ("softmax-written", 2, cross_entropy, "softmax", []),
        ("log-softmax-written", 2, cross_entropy, "log-softmax", []),
        ("sigmoid-one", 1, binary, "sigmoid", []),
        ("sigmoid-two", 2, each_class, "sigmoid", ["--loss", "bce"]),
    ]
    found = []
    for form, classes, loss, activation, flags in forms:
        model = vit(classes)
        path = folder / f"{form}.onnx"
        export(Behind(model, form), path, 2, True)
        model = model.double()
        found.append(entry(path, model, Behind(model, form), loss, x.double(), y, activation=activation, flags=flags))
    # A student of other weights learns from the model that ends in a Softmax.
    export(Behind(vit(2, 1), "softmax"), folder / "student.onnx", 2, True)
    student, teacher = vit(2, 1).double(), vit(2).double()

    def distillation(z, _, x):
        with torch.no_grad():
            t = teacher(x)
        p, q = (F.log_softmax(v / TEMPERATURE, 1) for v in (t, z))
        return (p.exp() * (p - q)).sum(1).mean() * TEMPERATURE**2

    distilled = losses(student, distillation, x.double(), y)
    golden = {"rate": RATE, "batch": BATCH, "models": found, "distilled": distilled}
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


def batches(x, y):
    folder = FIXTURES / "reports/batches"
    swin = dict(img_size=28, patch_size=2, in_chans=1, embed_dim=8, depths=(2,), num_heads=(2,), window_size=7, num_classes=2)
    models = [
        # name, model, images that are traced, declared open, exporter, what becomes of its batch in training
        ("dynamo-one", vit(2), 1, False, True, "opened"),
        ("traced-one", vit(2), 1, False, False, "opened"),
        ("tokens-first-one", drawn(Encoder("holds-one")), 1, False, False, "opened"),
        ("swin-one", drawn(timm.create_model("swin_tiny_patch4_window7_224", **swin)), 1, False, False, "opened"),
        ("traced-two", vit(2), 2, False, False, "opened"),
        ("single", Single(vit(2)), 1, False, False, "gathered"),
        ("holds-one", drawn(Encoder("holds-one")), 1, True, False, "opened"),
        ("mixes-tokens", drawn(Encoder("mixes")), 1, True, False, "opened"),
        ("attends-over-images", drawn(OverImages()), 2, True, False, "gathered"),
    ]
    found = []
    for name, model, traced, opens, dynamo, way in models:
        path = folder / f"{name}.onnx"
        export(model, path, traced, opens, dynamo)
        model = model.double()
        for p_name, p in model.named_parameters():
            p.requires_grad_("relative_position" not in p_name)
        if traced == 2 and not opens:
            with torch.no_grad():
                z = alone(model, x.double())
            own = ort.InferenceSession(path).run(None, {"x": x[:2].numpy().astype(np.float32)})[0]
            assert np.abs(own - z[:2].numpy()).max() < 1e-5
            more = {"outputs": z[:3].tolist(), "loss": F.cross_entropy(z, y).item(), "top1": (z.argmax(1) == y).double().mean().item()}
            found.append({"file": path.name, **more, "losses": losses(model, cross_entropy, x.double(), y)})
        else:
            found.append(entry(path, model, model, cross_entropy, x.double(), y))
        # The exporter folds tables of relative positions into a bias of every head, which is no parameter of the model.
        folded = [t.name for t in onnx.load(path).graph.initializer if t.data_type == 1 and list(t.dims)[-2:] == [49, 49]]
        flags = [f for t in folded for f in ("--freeze", t)]
        found[-1] |= {"declared": None if opens else traced, "way": way, "flags": flags}
    golden = {"rate": RATE, "batch": BATCH, "models": found}
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    x, y = images()
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    classifiers(x, y)
    batches(x, y)
