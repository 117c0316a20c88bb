# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "numpy==2.5.5",
#     "onnx==1.23.2",
#     "onnxruntime==1.32.0",
#     "onnxsim==0.8.1",
#     "onnxslim==0.1.98",
#     "safetensors==0.8.0",
#     "timm==1.0.31",
#     "torch==2.15.0",
#     "torchvision==0.29.2",
#     "transformers==5.23.0",
# ]
# ///
"""Makes the table of optimisers in docs/dialects.md: exported graphs put through onnxsim, onnxslim and ONNX Runtime's optimisers.

    OMP_NUM_THREADS=1 python scripts/check/survey_optimisers.py optimise [NAME ...]     write the optimised graphs into the cache folder
    OMP_NUM_THREADS=1 python scripts/check/survey_optimisers.py check [NAME ...]        check what is there with the `offshoot` binary
    python scripts/check/survey_optimisers.py table                                     write the table

Options: --cache FOLDER (default /tmp/offshoot-optimisers), --exports FOLDER (graphs of scripts/lib/coverage.py, beside the fixtures),
--optimiser NAME (may be given more than once), --binary PATH, --jobs N.

The truth of an optimised graph is the graph that it was made from: the same attentions, heads and FFNs; the same outputs as it is and with
twice the heads; the same outputs after half the heads, one head, half the FFN or a layer less in both; the same densities; the same
gradients of the weights that both have, and differences of the loss for the others. Needs onnx, onnxruntime, onnxsim, onnxslim, safetensors.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("lib",)]

import coverage
from coverage import error, run, session

# Full exports of coverage.py beside the fixtures: one for each form of attention, position and FFN.
EXPORTS = ["vit_tiny_patch16_224-ts", "vit_tiny_patch16_224-dynamo", "vit_base_patch16_siglip_224-ts", "vit_base_patch16_clip_quickgelu_224-ts",
           "vit_base_patch14_reg4_dinov2-dynamo", "deit3_small_patch16_224-ts", "beit_base_patch16_224-ts", "eva02_tiny_patch14_224-ts",
           "vit_small_patch16_dinov3-dynamo", "cait_xxs24_224-ts", "crossvit_tiny_240-ts", "swin_tiny_patch4_window7_224-ts", "swinv2_tiny_window8_256-ts",
           "davit_tiny-ts", "maxvit_tiny_tf_224-ts", "pvt_v2_b0-ts", "mvitv2_tiny-ts", "vit_tiny_r_s16_p8_224-ts"]
FIXTURES = [Path("fixtures/graphs"), Path("fixtures/exporters")]
CHECKS = ["anatomy", "surgery", "density", "gradient"]


# ------------------------------------------------------------------------------------------------ optimisers


def onnxsim(source, target):
    import onnxsim
    simple, sound = onnxsim.simplify(onnx.load(source))
    assert sound, "onnxsim says that its result is not the same"
    onnx.save(simple, target)


def onnxslim(source, target):
    import onnxslim
    onnx.save(onnxslim.slim(onnx.load(source)), target)


def runtime(level):
    def optimise(source, target):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return optimise


def transformers(kind):
    def optimise(source, target):
        from onnxruntime.transformers import optimizer
        heads, width = size_of(source) if kind in ("vit", "bert") else (0, 0)
        optimizer.optimize_model(str(source), model_type=kind, num_heads=heads, hidden_size=width).save_model_to_file(str(target))
    return optimise


def size_of(source):
    """Heads and features of the first layer, which the transformer optimiser asks for."""
    beside = source.with_name(source.stem.rsplit("-", 1)[0] + ".json")
    if beside.exists():
        layer = json.loads(beside.read_text())["layers"][0]
        return layer["heads"], layer["width"]
    listed = json.loads(source.with_name("manifest.json").read_text())["fixtures"]
    layer = next(e for e in listed if e["file"] == source.name)["layers"][0]
    return layer["heads"], layer["heads"] * layer["head_dim"]


OPTIMISERS = {
    "onnxsim": onnxsim, "onnxslim": onnxslim,
    "runtime-basic": runtime("BASIC"), "runtime-extended": runtime("EXTENDED"), "runtime-all": runtime("ALL"),
    "transformers-vit": transformers("vit"), "transformers-clip": transformers("clip"), "transformers-swin": transformers("swin"),
    "transformers-bert": transformers("bert"),
}
SAID = {
    "onnxsim": "onnxsim", "onnxslim": "OnnxSlim", "runtime-basic": "ONNX Runtime, basic", "runtime-extended": "ONNX Runtime, extended",
    "runtime-all": "ONNX Runtime, all", "transformers-vit": "its transformer optimiser, vit", "transformers-clip": "clip", "transformers-swin": "swin",
    "transformers-bert": "bert",
}


def optimise_all(args):
    """Each in a process of its own, which has the libraries already: optimisers end the process, or hang, where they fail."""
    import onnxruntime.transformers.optimizer  # noqa: F401
    import onnxsim  # noqa: F401
    import onnxslim  # noqa: F401

    def work(source, name, target, note):
        try:
            OPTIMISERS[name](source, target)
        except BaseException as problem:
            note.write_text(f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:250])
        os._exit(0)

    def one(job):
        source, name = job
        target = args.cache / f"{source.stem}.{name}.onnx"
        note = target.with_suffix(".failed")
        if target.exists() and not args.again:
            return
        target.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        process = multiprocessing.get_context("fork").Process(target=work, args=(source, name, target, note))
        process.start()
        process.join(180)
        if process.is_alive():
            process.kill()
            note.write_text("the optimiser took more than 180 s")
        elif process.exitcode and not note.exists():
            note.write_text(f"the optimiser ended with exit code {process.exitcode}")
        if note.exists():
            target.unlink(missing_ok=True)
            print(f"{target.stem:60} {note.read_text()}", flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, [(s, o) for s in sources(args) for o in chosen(args)]))


# ------------------------------------------------------------------------------------------------ checks


class Arrays(dict):
    """A truth in memory that reads as an opened .npz."""
    files = property(lambda self: list(self))


class Check(coverage.Check):
    """Checks of one graph; its truth comes from the graph that it was made from."""

    def __init__(self, args, graph, x):
        self.args, self.cache, self.graph = args, args.cache, graph
        self.inexact, self.warnings, self.base_error = False, [], 0.0
        self.truth, self.facts = Arrays(x=x), {"rounding": 1e-6}
        self.row = {"gaps": {}}

    def images(self):
        path = self.cache / f"{self.graph.stem}.images.npz"
        x = self.truth["x"]
        np.savez(path, x=x.transpose(0, 3, 1, 2) if x.shape[3] == 3 else x, y=np.array([1, 4])[: len(self.truth["x"])])
        return path

    def parts(self):
        found = json.loads(self.offshoot("inspect", self.graph, "--json"))
        named = lambda a: (a["heads"], a["head_dim"], a["ffn_width"])
        return {"layers": [named(a) for a in found["layers"]], "others": [named(a)[:2] for a in found["other_attentions"]]}

    def child(self, *arguments):
        path = self.cache / f"{self.graph.stem}.child.onnx"
        try:
            self.offshoot("grow", self.graph, "-o", path, "--force", "--no-images", *arguments)
            return run(path, self.truth["x"])
        finally:
            path.unlink(missing_ok=True)

    def children(self, layers):
        """What surgery makes of the outputs: the same in both graphs."""
        made = {"half the heads": ("--heads", ",".join(str(max(1, l[0] // 2)) for l in layers) + "," * (len(layers) == 1)), "one head": ("--heads", "1")}
        if any(l[2] for l in layers):
            made["half the FFN"] = ("--ffn-width", "50%")
        if len(layers) > 1 and len({l[0] * l[1] for l in layers}) == 1:
            made["a layer less"] = ("--layers", ",".join(map(str, range(1, len(layers)))) + "," * (len(layers) == 2))
        return {what: ("--init", "pretrain-finetune", *arguments) for what, arguments in made.items()}

    def densities(self):
        images = self.images()
        try:
            return json.loads(self.offshoot("density", self.graph, "--images", images, "--json"))["densities"]
        finally:
            images.unlink(missing_ok=True)

    def gradients(self):
        images, step = self.images(), self.cache / f"{self.graph.stem}.step.onnx"
        try:
            self.offshoot("tune", self.graph, "--data", images, "--emit-step", step, "--force", "--batch-size", len(self.truth["x"]), "--val-split", "0",
                          "--augment", "none", "--no-shuffle", "--label-smoothing", "0", "--optimizer", "sgd", "--momentum", "0.9", "--weight-decay", "0",
                          "--operators", "standard")
            return self.step_gradients(step)
        finally:
            for p in [images, step, step.with_suffix(".json"), step.with_suffix(".safetensors")]:
                p.unlink(missing_ok=True)

    def graph_gradients(self, found, scale, rounding, of_weight):
        """PyTorch has no gradient of what optimisers make: weights that both graphs have were compared, the others are by differences."""
        rest = [name for name in found if name not in of_weight]
        return self.differences(found, rest, scale) if rest else None

    def differences(self, found, rest, scale):
        """The slope of the loss as all weights that the optimiser made go along their gradient, each element in proportion to its size:
        some are frequencies and coordinates, of sizes that differ a thousandfold."""
        model = onnx.load(self.graph)
        if np.sqrt(sum((found[n][1] ** 2).sum() for n in rest)) < 1e-5 * scale:
            return None
        places = {t.name: t for t in model.graph.initializer}
        for n in model.graph.node:
            if n.op_type == "Constant" and n.output[0] in rest:
                places[n.output[0]] = n.attribute[0].t
        if any(n not in places for n in rest):
            return f"`{next(n for n in rest if n not in places)}` is no initializer of the exported graph"
        square = lambda w: w**2 + 1e-6  # what is zero moves by a thousandth of what is one
        largest = max((square(w) ** 0.5 * np.abs(g)).max() for w, g in (found[n] for n in rest))
        way = {n: square(found[n][0]) * found[n][1] / largest for n in rest}
        expected = sum((way[n] * found[n][1]).sum() for n in rest)

        def loss(step):
            for n in rest:
                places[n].CopyFrom(numpy_helper.from_array((found[n][0] + step * way[n]).astype(np.float32), n))
            z = run(model.SerializeToString(), self.truth["x"]).astype(np.float64)
            z = z - z.max(1, keepdims=True)
            return float(np.mean(np.log(np.exp(z).sum(1)) - z[[0, 1][: len(z)], [1, 4][: len(z)]]))
        best = np.inf
        for h in [0.1, 0.03, 0.01, 0.003, 0.001]:
            slope = lambda h: (loss(h) - loss(-h)) / (2 * h)
            best = min(best, abs((4 * slope(h / 2) - slope(h)) / 3 - expected) / expected)
            if best < 0.02:
                return None
        return f"the slope of the loss along the gradient of {len(rest)} weights differs by {best:.1e}"


def attempt(what):
    """A value, or what the product says."""
    try:
        return what()
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"


def truth_of(args, source):
    """What the product makes of the graph before the optimiser; kept in the cache."""
    kept = args.cache / f"{source.stem}.truth"
    if kept.exists():
        return pickle.loads(kept.read_bytes())
    shape = [d if isinstance(d, int) else None for d in session(source).get_inputs()[0].shape]
    size = [shape[1] or 3, shape[2] or 16, shape[3] or 16]
    x = np.random.default_rng(3).normal(size=(shape[0] or 2, *size)).astype(np.float32)
    plain = Check(args, source, x)
    truth = {"x": x, "base": run(source, x), "parts": plain.parts(), "densities": attempt(plain.densities), "gradients": attempt(plain.gradients)}
    truth["children"] = {what: attempt(lambda: plain.child(*a)) for what, a in plain.children(truth["parts"]["layers"]).items()}
    kept.write_bytes(pickle.dumps(truth))
    return truth


def check(args, source, name):
    graph = args.cache / f"{source.stem}.{name}.onnx"
    row = {"graph": source.stem, "optimiser": name, "gaps": {}}
    if not graph.exists():
        note = graph.with_suffix(".failed")
        return row | {"optimised": note.read_text() if note.exists() else "not optimised yet"}
    truth = truth_of(args, source)
    self = Check(args, graph, truth["x"])
    self.row = row
    try:
        self.base_error = error(run(graph, truth["x"]), truth["base"])
    except Exception as problem:
        return row | {"optimised": f"ONNX Runtime does not run it: {str(problem)[:200]}"}
    tolerance = max(1e-5, 10 * self.base_error)
    self.facts["rounding"] = max(1e-6, self.base_error)  # some optimisers put one GELU for the other

    def anatomy():
        found = self.parts()
        # Branches that do not depend on each other have no order.
        for what in found:
            assert sorted(found[what], key=str) == sorted(truth["parts"][what], key=str), f"found {found}, truth {truth['parts']}"

    def surgery():
        wrong = []
        expected = {"as it is": (("--verify",), truth["base"]), "twice the heads": (("--width", "0.5", "--verify"), truth["base"])}
        expected |= {what: (a, truth["children"][what]) for what, a in self.children(truth["parts"]["layers"]).items()}
        for what, (arguments, outputs) in expected.items():
            found = attempt(lambda: self.child(*arguments))
            if isinstance(outputs, str):
                if not isinstance(found, str):
                    wrong.append(f"{what}: before: {outputs}")
            elif isinstance(found, str):
                wrong.append(f"{what}: {found}")
            elif error(found, outputs) > tolerance:
                wrong.append(f"{what}: relative error {error(found, outputs):.1e}")
        assert not wrong, "; ".join(wrong)

    def density():
        if isinstance(truth["densities"], str):
            return "-"
        found = self.densities()
        rows = zip(sorted(found), sorted(truth["densities"]), strict=True)
        worst = max(abs(a - b) / b for r, s in rows for a, b in zip(r, s, strict=True))
        assert worst < max(1e-4, tolerance), f"relative error {worst:.1e}"

    def gradient():
        if isinstance(truth["gradients"], str):
            return "-"
        self.facts["loss"], before = truth["gradients"]
        for n, (w, g) in before.items():
            self.truth["w:" + n], self.truth["g:" + n] = w.astype(np.float32), g
        images, step = self.images(), self.cache / f"{graph.stem}.step.onnx"
        loss, found = self.gradients()
        self.step_gradients = lambda _: (loss, found)
        problem, row["note"] = self.compare_gradients(step)
        assert not problem, problem

    for test in [anatomy, surgery, density, gradient]:
        try:
            row[test.__name__] = test() or "ok"
        except Exception as problem:
            self.gap(test.__name__, problem)
            if test is anatomy:
                break
    return row


# ------------------------------------------------------------------------------------------------ commands


def sources(args):
    graphs = [g for folder in FIXTURES for g in sorted(folder.glob("*.onnx"))]
    if args.exports:
        graphs += [args.exports / f"{n}.onnx" for n in EXPORTS]
    return [g for g in graphs if g.exists() and (not args.names or any(n in g.stem for n in args.names))]


def chosen(args):
    return args.optimiser or list(OPTIMISERS)


def check_all(args):
    results, lock = args.cache / "results.json", threading.Lock()

    def one(source):
        for name in chosen(args):
            row = check(args, source, name)
            with lock:
                states = row.get("optimised") or " ".join(f"{w} {row.get(w, '')}" for w in CHECKS)
                print(f"{row['graph']:36} {name:18} {states}", flush=True)
                for what, reason in row["gaps"].items():
                    print(f"    {what}: {reason[:600]}", flush=True)
                rows = {(r["graph"], r["optimiser"]): r for r in json.loads(results.read_text())} if results.exists() else {}
                rows[(row["graph"], name)] = row
                results.write_text(json.dumps(list(rows.values()), indent=1))
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, sources(args)))
    write_table(args, Path("/dev/null"))


def write_table(args, page=Path("docs/dialects.md")):
    """Writes the table between its marks in docs/dialects.md."""
    rows = json.loads((args.cache / "results.json").read_text())
    lines = ["| optimiser | graphs | " + " | ".join(CHECKS) + " | new operators |", "|---" * (3 + len(CHECKS)) + "|"]
    reasons = []
    for name in OPTIMISERS:
        own = [r for r in rows if r["optimiser"] == name]
        done = [r for r in own if "optimised" not in r]
        cells = []
        for c in CHECKS:
            states = [r.get(c, "gap") for r in done if r.get(c) != "-"]
            cells.append("refused" if done and all(map(refused, done)) else f"{states.count('ok')} of {len(states)}")
        lines.append(f"| {SAID[name]} | {len(done)} | " + " | ".join(cells) + f" | {new_operators(args, done)} |")
        reasons += [f"- {r['graph']}, {SAID[name]}: {r['optimised']}" for r in own if "optimised" in r]
        reasons += [f"- {r['graph']}, {SAID[name]}, {what}: {reason}" for r in done if not refused(r) for what, reason in r["gaps"].items()]
    text = "\n".join(lines) + "\n\nWhat is missing:\n\n" + "\n".join(reasons) + "\n"
    if page == Path("/dev/null"):
        print("\n".join(lines))
        return
    before, rest = page.read_text().split("<!-- optimisers -->")[0], page.read_text().split("<!-- /optimisers -->")[1]
    page.write_text(f"{before}<!-- optimisers -->\n\n{text}\n<!-- /optimisers -->{rest}")


def refused(row):
    return "one kind of processor" in row["gaps"].get("anatomy", "")


def new_operators(args, rows):
    """Operators that the optimised graphs have and their sources do not."""
    found = set()
    kinds = lambda path: {(n.domain, n.op_type) for n in onnx.load(path, load_external_data=False).graph.node}
    for r in rows:
        source = next(s for s in [*FIXTURES, args.exports or Path(".")] if (s / f"{r['graph']}.onnx").exists())
        found |= kinds(args.cache / f"{r['graph']}.{r['optimiser']}.onnx") - kinds(source / f"{r['graph']}.onnx")
    return ", ".join(sorted(f"`{op}`" for domain, op in found if domain))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/offshoot-optimisers"))
    parser.add_argument("--exports", type=Path)
    parser.add_argument("--binary", type=Path, default=Path("target/release/offshoot"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--optimiser", action="append", choices=list(OPTIMISERS))
    parser.add_argument("--again", action="store_true", help="optimise anew what is there")
    parser.add_argument("command", choices=["optimise", "check", "table"])
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    if args.command == "optimise":
        optimise_all(args)
    elif args.command == "check":
        check_all(args)
    else:
        write_table(args)


if __name__ == "__main__":
    sys.exit(main())
