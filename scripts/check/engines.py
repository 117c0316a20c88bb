# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy", "onnx==1.23.2"]
# ///
"""Checks that a child runs wherever its ancestor runs, in every engine that people deploy to. Makes the table of docs/deployment.md.

    python scripts/lib/engines.py install && cargo build --release --bin offshoot --example outputs
    python scripts/check/engines.py [--engine NAME ...] [--family WORD ...] [--form NAME ...] [--jobs 2] [--write]

One fixture of each family and exporter under fixtures/graphs, as it is and in the forms of FORMS, goes through the engines of
scripts/lib/engines.py. Every run is a process of its own with a time limit, and its outputs are compared with ONNX Runtime's: 1e-3 of the largest,
1e-2 for float16. An engine that is not installed is an empty cell. One that answers differently for the ancestor in three processes is not repeatable
and proves nothing; nor does one that does not take the ancestor. Engines that want every axis fixed get a batch of one, fixed by ONNX's own
shape inference; the others two images, where the file leaves the batch open. Weights in int8 are to correlate to 0.999 with the float32 child.

The rule: a float32 child, untied, loads and agrees wherever its ancestor does. Exit code 1 where one does not, and where a tied, float16
or int8 child fails that is not among the EXCEPTIONS. Results are kept in --cache by the hash of the file and the version of the engine: what has a
result is not run again, so a run that was stopped goes on. `--write` puts the table into the page, of a run without --form; with --kept of what
several runs have left in the cache: nothing is run then, and what was not run counts nowhere.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts/lib")]

import engines
from engines import ENGINES

PAGE = ROOT / "docs/deployment.md"
TOLERANCE, HALF_TOLERANCE = 1e-3, 1e-2
GROW, HALF = ["grow", "--no-images", "--no-verify"], ["--heads", "50%"]
TIED = ["grow", "--images", "fixtures/fashion-png", "--no-verify", "--cluster", "agglomerative:1", "--tied"]
# What the page calls a form, and ways to make it of which the first that works is taken. None is the file itself.
FORMS = {
    "ancestor": [None],
    "heads halved": [[*GROW, *HALF]],
    "FFN halved": [[*GROW, "--ffn-width", "50%"]],
    "layers halved": [[*GROW, "--layers", "LAYERS"]],
    "shrunk": [["shrink", "--images", "fixtures/fashion-png", "--to", "75%", "--crops", "16", "--min-ffn", "2"]],
    "other size": [[*GROW, "--image-size", "SIZE"]],
    "folded": [[*GROW, *HALF, "--fold"]],
    # Heads of a layer are one, and the FFNs of two layers, where the model allows it.
    "tied": [[*TIED, "--ffn-clusters", "0-1"], TIED],
    "float16": [[*GROW, *HALF, "--dtype", "fp16"]],
    "int8": [[*GROW, *HALF, "--dtype", "int8"]],
    "int8 rows": [[*GROW, *HALF, "--dtype", "int8-rows"]],
}
# Forms that round numbers, each engine in its own way: their outputs are to correlate with those of the same child in float32.
ROUNDED, TWIN, CORRELATION = ("int8", "int8 rows"), "heads halved", 0.999
# Engines that refuse a form, or get it wrong: (engine, form) and the reason, for the version that ENGINES pins.
EXCEPTIONS = {
    ("opencv4", "tied"): "it refuses a Gather of weights, by which layers share heads",
    ("ncnn", "tied"): "of `hf-vit-dynamic-size-dynamo18` it differs by 1.4e-3, untied by 2.9e-4; ncnn is off by some 1e-4 throughout",
    ("ncnn", "float16"): "ncnn does not load what pnnx makes of float16",
    ("opencv4", "int8 rows"): "it has no products of bytes as ONNX writes them",
    ("opencv5", "int8 rows"): "it has no products of bytes as ONNX writes them",
    ("mnn", "int8 rows"): "it has no products of bytes as ONNX writes them",
    ("ncnn", "int8 rows"): "it has no products of bytes as ONNX writes them",
}
SEED = 7


class Why(str):
    """The reason why an engine says nothing."""


class NotRun(Exception):
    """There is no result, and none is to be made."""


class Runs:
    """What engines say of files, kept from run to run."""

    def __init__(self, args):
        self.args, self.cache = args, Path(args.cache)
        self.cache.mkdir(parents=True, exist_ok=True)
        self.versions = {name: engines.version(name, args.engines, args.offshoot) for name in ENGINES}
        self.truth = next(iter(ENGINES))
        self.chosen = [name for name in ENGINES if name != self.truth and name in (args.engine or ENGINES)]
        if self.versions[self.truth] is None:
            sys.exit("ONNX Runtime is what the others are compared with: python scripts/lib/engines.py install onnxruntime")

    def said(self, engine, file, x, again=0):
        """The outputs of a file in an engine, or the reason why there are none."""
        digest = hashlib.sha256(Path(file).read_bytes() + x.tobytes()).hexdigest()[:24]
        at = self.cache / f"{digest}-{engine}-{self.versions[engine]}-{again}"
        kept, failed = at.with_name(f"{at.name}.npz"), at.with_name(f"{at.name}.txt")
        if not kept.exists() and not failed.exists():
            if self.args.kept:
                raise NotRun
            with tempfile.TemporaryDirectory() as folder:
                why = self.run(engine, str(file), x, Path(folder))
                if why is None:
                    os.replace(Path(folder, "outputs.npz"), kept)
                else:
                    failed.write_text(why)
        if failed.exists():
            return Why(failed.read_text())
        with np.load(kept) as archive:
            return [archive[name] for name in archive.files]

    def run(self, engine, file, x, folder):
        """Runs a file once, in a process of its own, and says what went wrong."""
        given, outputs = f"{folder}/input.npy", f"{folder}/outputs.npz"
        np.save(given, x)
        if engine == "web":
            command = engines.web_command(self.args.engines, given, folder, [file])
        else:
            command = engines.command(engine, self.args.engines, given, outputs, [file], offshoot=self.args.offshoot)
        try:
            # `timeout` ends the whole group: converters have processes of their own.
            done = subprocess.run(["timeout", str(self.args.limit), *command], capture_output=True, text=True, errors="replace")
        except OSError as error:
            return str(error)
        if done.returncode == 124:
            return f"no answer in {self.args.limit} s"
        if done.returncode:
            lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
            lines = [line for line in lines if "rror" in line] or lines or [f"exit code {done.returncode}"]
            return lines[-1].strip()[:300]
        if engine == "web":
            line = json.loads(done.stdout.splitlines()[0])
            if "error" in line:
                return line["error"][:300]
            files = [(f"{folder}/0.{n}.bin", o) for n, o in enumerate(line["outputs"])]
            np.savez(outputs, *[np.fromfile(path, o["type"]).reshape(o["dims"]).astype(np.float32) for path, o in files])
        return None

    def agrees(self, engine, file, x, expected, tolerance, measure=None):
        """The reason why an engine's outputs are not those expected, or None. Engines order outputs in ways of their own."""
        measure = measure or distance
        said = self.said(engine, file, x)
        if isinstance(said, Why):
            return said
        if len(said) < len(expected):
            return f"{len(said)} outputs of {len(expected)}"
        worst = 0.0
        for wanted in expected:
            errors = [measure(found, wanted) for found in said if found.size == wanted.size]
            worst = max(worst, min(errors, default=np.inf))
        return None if worst <= tolerance else f"differs by {worst:.1e}"

    def repeats(self, engine, file, x):
        """Whether three processes say the same."""
        first, *others = (self.said(engine, file, x, again) for again in range(3))
        return all(len(first) == len(o) and all(distance(b, a) < TOLERANCE for a, b in zip(first, o)) for o in others)


def distance(found, wanted):
    """The largest difference as a share of the largest number; no number is far from any. A batch of one may be left out."""
    if found.size != wanted.size:
        return np.inf
    off = float(np.abs(found.ravel() - wanted.ravel()).max(initial=0) / max(np.abs(wanted).max(initial=0), 1e-9))
    return off if np.isfinite(off) else np.inf


def unlike(found, wanted):
    """How far the correlation of two outputs is below one."""
    off = 1 - float(np.corrcoef(found.ravel(), wanted.ravel())[0, 1]) if found.size == wanted.size > 2 else np.inf
    return off if np.isfinite(off) else np.inf


def fixtures(words):
    """One of each family and exporter in the manifest: the last with the newest operator set."""
    listed = json.loads((ROOT / "fixtures/graphs/manifest.json").read_text())["fixtures"]
    chosen = {(entry["family"], entry["exporter"]): entry for entry in sorted(listed, key=lambda entry: entry["opset"])}
    return [entry for entry in chosen.values() if not words or any(word in entry["file"] for word in words)]


def made(ways, ancestor, entry, child, offshoot):
    """A child in a form, or None where it cannot be had."""
    stands = {"SIZE": "x".join(str(2 * n) for n in entry["image"][1:]), "LAYERS": str(max(len(entry["layers"]) // 2, 1))}
    for way in ways:
        if way is None:
            return ancestor
        command, *flags = [stands.get(word, word) for word in way]
        done = subprocess.run([offshoot, command, ancestor, *flags, "-o", child], cwd=ROOT, capture_output=True)
        if done.returncode == 0:
            return child
    return None


def numbers(model, batch):
    """Noise for the image: of so many samples where the file leaves the batch open."""
    given = {tensor.name for tensor in model.graph.initializer}
    image = next(value for value in model.graph.input if value.name not in given)
    dims = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    shape = [dims[0] or batch, *(n or 32 for n in dims[1:])]
    return np.random.default_rng(SEED).uniform(-2, 2, shape).astype(np.float32)


def fixed(model, shape, path):
    """The model for one shape of its image, with what follows from it inferred anew."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    given = {tensor.name for tensor in model.graph.initializer}
    image = next(value for value in model.graph.input if value.name not in given)
    for dim, n in zip(image.type.tensor_type.shape.dim, shape):
        dim.dim_value = n
    del model.graph.value_info[:]
    for output in model.graph.output:
        for dim in output.type.tensor_type.shape.dim[:1]:
            dim.dim_value = dim.dim_value or shape[0]
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), path)
    return path


def of_fixture(runs, entry, folder):
    """What became of each form of a fixture in each engine: {(form, engine): reason or None}. Untried is left out."""
    args, found, twins = runs.args, {}, {}
    ancestor = f"fixtures/graphs/{entry['file']}"
    cases = []
    for at, (form, ways) in enumerate(FORMS.items()):
        wanted = form == "ancestor" or not args.form or form in args.form
        file = made(ways, ancestor, entry, f"{folder}/{at}.onnx", args.offshoot) if wanted else None
        if file is None:
            continue
        model = onnx.load(ROOT / file)
        few, many = numbers(model, 1), numbers(model, 2)
        if form in ROUNDED:
            twin = made(FORMS[TWIN], ancestor, entry, f"{folder}/{at}.twin.onnx", args.offshoot)
            closed = fixed(onnx.load(twin), few.shape, f"{folder}/{at}.twin.fixed.onnx")
            twins[form] = {True: twin, False: closed}
        closed = fixed(model, few.shape, f"{folder}/{at}.fixed.onnx")
        cases.append((form, {True: (ROOT / file, many), False: (closed, few)}))

    def verdict(form, engine, file, x):
        twin = twins.get(form, {}).get(ENGINES[engine].open)
        expected = runs.said(runs.truth, twin or file, x)
        if isinstance(expected, Why):
            return f"ONNX Runtime itself: {expected}"
        if twin:
            return runs.agrees(engine, file, x, expected, 1 - CORRELATION, unlike)
        why = runs.agrees(engine, file, x, expected, HALF_TOLERANCE if form == "float16" else TOLERANCE)
        repeats = form != "ancestor" or why or runs.repeats(engine, file, x)
        return why if repeats else "not repeatable"

    def of_engine(engine):
        for form, files in cases:
            with contextlib.suppress(NotRun):
                found[form, engine] = verdict(form, engine, *files[ENGINES[engine].open])
            if form == "ancestor" and found.get((form, engine), True):
                return

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(of_engine, [name for name in runs.chosen if runs.versions[name]]))
    return found


def table(runs, results):
    """Of how many ancestors that an engine takes it takes the children; of the ancestors, of how many there are."""
    rows = ["| engine | " + " | ".join(FORMS) + " |", "|---|" + "---:|" * len(FORMS)]
    for engine in runs.chosen:
        cells = []
        for form in FORMS:
            whys = [found[form, engine] for found in results.values() if (form, engine) in found]
            strange = sum(why == "not repeatable" for why in whys)
            cell = f"{sum(why is None for why in whys)} of {len(whys)}" if whys else ""
            cells.append(cell + (f", {strange} not repeatable" if strange else ""))
        version = "" if engine == "offshoot" else f" {runs.versions[engine] or ''}"
        rows.append(f"| {ENGINES[engine].title}{version} | " + " | ".join(cells) + " |")
    named = [(e, form, why) for (e, form), why in EXCEPTIONS.items() if runs.versions[e]]
    reasons = [f"- {ENGINES[e].title} {runs.versions[e]}, {form}: {why}." for e, form, why in named]
    intro = (
        f"{len(results)} of {len(fixtures([]))} models, one of each family and exporter, against ONNX Runtime {runs.versions[runs.truth]}: how many "
        "load and say the same, of the children those whose ancestor does. The first column says on how many ancestors an engine was run."
    )
    return "\n".join([intro, "", *rows, *(["", "Exceptions:", "", *reasons] if reasons else [])])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="append", choices=ENGINES)
    parser.add_argument("--family", action="append", help="a word in the name of the fixture")
    parser.add_argument("--form", action="append", choices=FORMS)
    parser.add_argument("--offshoot", default="target/release/offshoot")
    parser.add_argument("--engines", default=".cache/engines")
    parser.add_argument("--cache", default=".cache/engines/results")
    parser.add_argument("--limit", type=int, default=120, help="seconds of one run")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kept", action="store_true", help="run nothing: the table of what the cache has")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    args.offshoot, args.engines, args.cache = (str(Path(p).absolute()) for p in (args.offshoot, args.engines, args.cache))
    os.chdir(ROOT)
    os.environ.update(OMP_NUM_THREADS="1", RTEN_NUM_THREADS="1")
    runs, results, broken = Runs(args), {}, []
    for entry in fixtures(args.family):
        with tempfile.TemporaryDirectory() as folder:
            found = results[entry["file"]] = of_fixture(runs, entry, folder)
        wrong = [(form, engine, why) for (form, engine), why in found.items() if why]
        for form, engine, why in wrong:
            print(f"{entry['file']}, {form}, {ENGINES[engine].title} {runs.versions[engine]}: {why}", flush=True)
        broken += [one for one in wrong if one[0] != "ancestor" and (one[1], one[0]) not in EXCEPTIONS]
        print(f"{entry['file']}: {len(found) - len(wrong)} of {len(found)}", flush=True)
    text = table(runs, results)
    print(text, f"\n{len(broken)} children fail where their ancestor does not")
    if args.write:
        page = PAGE.read_text()
        PAGE.write_text(re.sub(r"(<!-- engines -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.S))
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
