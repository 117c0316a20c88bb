# /// script
# requires-python = ">=3.12"
# dependencies = [
#     "numpy==2.5.5",
#     "onnx==1.23.2",
#     "onnxruntime==1.32.0",
#     "onnxscript==0.7.2",
#     "pillow",
#     "scipy",
#     "torch==2.15.0",
#     "torchvision==0.29.2",
#     "transformers==5.23.0",
# ]
# ///
"""Checks Offshoot on every encoder class of Hugging Face transformers that exports: small and random, exported in four ways.

    OMP_NUM_THREADS=1 python scripts/check/sweep_transformers.py export [NAME ...]     exports what sweep_transformers.csv lists
    OMP_NUM_THREADS=1 python scripts/check/sweep_transformers.py check [NAME ...]      checks the exports with the `offshoot` binary
    python scripts/check/sweep_transformers.py table [--write]                         counts; --write puts the table into docs/dialects.md
    python scripts/check/sweep_transformers.py faults                                  what is not right, by its words, with the commands

Options: --binary PATH (default target/release/offshoot), --cache FOLDER (default .cache/sweep), --exporter NAME, --again, --wrong,
--untried (rows that no machine has a result of).

A row is right when `inspect` gives the heads, the head dimension and the FFN widths that the module has, when `grow` at full size is
exact (ONNX Runtime against the export, batch 1, and 3 where it is open), and when half the heads, half the FFN, both, and a dropped layer
equal PyTorch's module with those rows at zero, or without that layer, to 2e-5 or to the module's own rounding. A result is kept until
the binary or a version changes. `table --write` puts results into sweep_transformers.csv too, with the build and the versions that gave
them: what another machine has seen stays until this one has seen it. Every export and every check is a process of its own with a time
limit. The oracle (`scripts/lib/tiny_transformers.py`) shares no code with Offshoot.
"""

import argparse
import collections
import contextlib
import csv
import functools
import hashlib
import importlib
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

ROWS = Path(__file__).with_suffix(".csv")
PAGE = Path("docs/dialects.md")
EXPORTERS = {
    "dynamo": ("dynamo", "default", "1"), "ts17": ("TorchScript", "17", "1"), "open": ("dynamo", "default", "open"),
    "dynamo23": ("dynamo", "23", "1"),
}
LIMIT = {"export": 150, "check": 240}  # seconds of processor time of each process; eight times as long by the clock
TOLERANCE = 2e-5
SAYS = re.compile("statistics change|what is left misses|heads are mixed")  # warnings that a child is not its ancestor with parts at zero
CHECKS = ["inspect", "full size", "half heads", "half FFN", "both", "last layer dropped", "first layer dropped"]
VERSIONS = {p: version(p) for p in ("torch", "transformers", "onnx", "onnxruntime", "onnxscript")}
BUILT_BY = " ".join(f"{p} {v}" for p, v in VERSIONS.items())


def apart(limit, work, *arguments):
    """Runs work in a process of its own, and gives what it returns, or why there is none."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1), os.dup2(silent, 2)
            result = {"result": work(*arguments)}
        except BaseException as problem:
            text = re.sub(r"\x1b\[\d+m", "", str(problem)).split("## Exception summary")[-1]  # of an exporter's report
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            words = re.sub(r"/\S*/", "", " ".join(lines))  # of files, their names
            result = {"failed": f"{type(problem).__name__}: {words[:300]}"}
        with os.fdopen(writing, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(writing)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(pid, signal.SIGKILL))
    signal.alarm(8 * limit)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    signal.alarm(0)
    os.waitpid(pid, 0)
    return json.loads(text) if text else {"failed": f"it took more than {limit} s or ended the process"}


# ------------------------------------------------------------------------------------------------ exports


def rows():
    with ROWS.open() as file:
        return list(csv.DictReader(file))


def fed_for(model, batch, overrides):
    import tiny_transformers
    return tiny_transformers.inputs_of(model, batch, overrides.get("__inputs__"))


def made(row):
    """The model of a row."""
    import tiny_transformers
    overrides = json.loads(row["overrides"] or "{}")
    cls = getattr(sys.modules[row["module"]], row["class"])
    return tiny_transformers.build(cls, {k: v for k, v in overrides.items() if k != "__inputs__"}), overrides


def export(row, path):
    import tiny_transformers
    import torch
    torch.set_num_threads(1)
    model, overrides = made(row)
    fed = fed_for(model, 2 if row["batch"] == "open" else 1, overrides)
    wrapped = tiny_transformers.Tensors(model.requires_grad_(False), list(fed)).eval()  # the exporter gives every part the mode of the whole
    options = {"input_names": list(fed)}
    if row["exporter"] == "dynamo":
        options |= {"dynamo": True, "external_data": False, "verbose": False}
        if row["batch"] == "open":
            batch = torch.export.Dim("batch")
            options["dynamic_shapes"] = {"values": tuple({0: batch} for _ in fed)}
    else:
        options["dynamo"] = False
    if row["opset"] != "default":
        options["opset_version"] = int(row["opset"])
    part = path.with_suffix(".part.onnx")
    part.unlink(missing_ok=True)
    torch.onnx.export(wrapped, tuple(fed.values()), str(part), **options)
    error = 0.0
    for size in (1, 3) if row["batch"] == "open" else (1,):
        values = fed_for(model, size, overrides)
        with torch.no_grad():
            expected = [t.numpy() for t in wrapped(*values.values())]
        try:
            error = max(error, distance(run(part, values), expected))
        except Exception as problem:
            raise RuntimeError(f"ONNX Runtime: {problem}") from None
    if not error < 1e-3:
        raise RuntimeError(f"the export is not the model: ONNX Runtime's outputs are {error:.1e} from PyTorch's")
    part.rename(path)
    return {"error": error}


def session(path):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path, fed):
    opened = session(path)
    values = {k: v.numpy() for k, v in fed.items()}
    return opened.run(None, {i.name: values[i.name] for i in opened.get_inputs()})


def distance(a, b):
    """The largest difference of two lists of outputs, relative to the largest value of the output."""
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b)):
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b):
        if x.size == 0 or not np.issubdtype(x.dtype, np.floating):
            continue
        whole = np.isfinite(y) & (np.abs(y) < 1e30)
        if not (np.isfinite(x) & (np.abs(x) < 1e30) == whole).all():
            return float("inf")
        worst = max(worst, float(np.abs(x - y)[whole].max(initial=0) / max(1e-3, np.abs(y)[whole].max(initial=0))))
    return worst


# ------------------------------------------------------------------------------------------------ checks


class Refused(Exception):
    pass


class Broken(Exception):
    pass


class Wrong(Exception):
    pass


class Check:
    """The checks of one export."""

    def __init__(self, args, row, path):
        import tiny_transformers
        self.args, self.row, self.path, self.tiny = args, row, path, tiny_transformers
        self.model, self.overrides = made(row)
        self.batches = [1, 3] if row["batch"] == "open" else [1]
        self.fed = {b: fed_for(self.model, b, self.overrides) for b in self.batches}
        self.attentions, self.ffns = tiny_transformers.anatomy(self.model, self.fed[1])
        self.warnings, self.verifies = [], False
        self.base = {b: run(path, f) for b, f in self.fed.items()}
        self.rounding = max(distance(self.base[b], self.outputs(b)) for b in self.batches)

    def outputs(self, batch):
        import torch
        with torch.no_grad():
            return [t.numpy() for t in self.tiny.Tensors(self.model, list(self.fed[batch]))(*self.fed[batch].values())]

    def unsure(self, outputs):
        """How far a module's outputs are from its own in float64: what float32 can be held to. 0 where it does not run in it."""
        import torch
        double = lambda t: t.double() if torch.is_tensor(t) and t.is_floating_point() else t
        try:
            self.model = self.model.double()
            with torch.no_grad():
                wide = {b: self.tiny.Tensors(self.model, list(f))(*map(double, f.values())) for b, f in self.fed.items()}
        except Exception:
            return 0
        return max(distance(outputs[b], [t.float().numpy() for t in wide[b]]) for b in self.batches)

    def offshoot(self, *arguments):
        command = [str(self.args.binary), *map(str, arguments)]
        self.command = "offshoot " + shlex.join(map(str, arguments))
        done = subprocess.run(command, capture_output=True, text=True)
        self.warnings = [line for line in done.stderr.splitlines() if line.startswith("warning:") and "no densities" not in line]
        if done.returncode == 2:
            lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
            raise Refused((lines or [done.stderr[:300]])[0].removeprefix("error: ").replace(f"`{self.path}`: ", "")[:400])
        if done.returncode:
            raise Broken(f"exit code {done.returncode}: {done.stderr.strip()[-400:]}")
        return done.stdout

    def grown(self, *arguments):
        """The outputs of a child, by batch, and what the child says of its layers."""
        import onnx
        child = self.args.cache / f"{self.path.stem}.{os.getpid()}.child.onnx"
        try:
            self.offshoot("grow", self.path, "-o", child, "--force", *arguments, *([] if self.verifies else ["--no-verify"]))
            self.command = self.command.replace(str(child), "/tmp/child.onnx")
            notes = {p.key: p.value for p in onnx.load(child, load_external_data=False).metadata_props}
            try:
                return {b: run(child, f) for b, f in self.fed.items()}, json.loads(notes["offshoot.descendant"])["layers"]
            except Exception as problem:
                raise Wrong(f"ONNX Runtime does not run the child: {str(problem)[:200]}") from None
        finally:
            child.unlink(missing_ok=True)

    def inspect(self):
        """Heads, head dimensions and FFN widths are those of the module."""
        found = json.loads(self.offshoot("inspect", self.path, "--json"))
        self.found = found
        listed = lambda layer: layer.get("attentions") or [layer]
        name = lambda a: (a["heads"], a["head_dim"])
        self.parts = [name(a) + (k,) for k, layer in enumerate(found["layers"]) for a in listed(layer)]
        others = [name(a) for a in found["other_attentions"]]
        truth = [name(a) for a in self.attentions]
        sized = lambda a: (a["heads"], a["head_dim"], a.get("queries"), a.get("keys"))
        self.place = assigned([name(a) + (*a["tokens"], a.get("again", False)) for a in self.attentions],
                              [sized(a) for layer in found["layers"] for a in listed(layer)], [sized(a) for a in found["other_attentions"]])
        own = sorted(w for layer in found["layers"] + found["other_attentions"] for w in self.widths(layer))
        theirs = sorted(f["width"] for f in self.ffns)
        # A layer that uses one FFN twice may list it once.
        once = collections.Counter(f["width"] for f in {(f["block"], f["weight"]): f for f in self.ffns}.values())
        wrong = []
        if self.place is None:
            mine = [p[:2] for p in self.parts]
            wrong.append(f"attentions (heads, head dimension) {mine} and others {others}, the module has {truth}")
        if collections.Counter(own) - collections.Counter(theirs) or once - collections.Counter(own):
            wrong.append(f"FFN widths {own}, the module has {theirs}")
        if wrong:
            raise Wrong("; ".join(wrong))

    def full(self):
        self.verifies = True
        found, _ = self.grown("--no-images")
        return {b: (found[b], self.base[b]) for b in self.batches}

    def zeroed(self, heads, ffn):
        """The child with half of the heads, of the neurons, or of both, and the module with the same rows at zero."""
        arguments = [*(["--heads", "50%"] if heads else []), *(["--ffn-width", "50%"] if ffn else [])]
        if ffn and not self.ffns:
            try:
                self.grown("--init", "pretrain-finetune", *arguments)
            except Refused:
                return {}
            raise Wrong("there is no FFN, and asking for half of it is no error")
        found, layers = self.grown("--init", "pretrain-finetune", *arguments)
        kept = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        if heads:
            for at, a in enumerate(self.attentions):
                layer = self.place[at] if self.place else 0
                if layer is None:
                    continue
                slots = layers[self.parts[layer][2]]["slots"] if self.place else range(max(1, a["heads"] // 2))
                wide = a["query_heads"] // a["heads"] * a["head_dim"]
                gone = [c for h in range(a["heads"]) if h not in set(slots) for c in range(h * wide, (h + 1) * wide)]
                self.tiny.zero_inputs(self.model, a["weight"], a["axis"], gone)
        if ffn:
            for f in (f for f in self.ffns if self.resized(f["block"])):
                self.tiny.zero_inputs(self.model, f["weight"], f["axis"], list(range((f["width"] + 1) // 2, f["width"])))
        expected = {b: self.outputs(b) for b in self.batches}
        self.model.load_state_dict(kept)
        return {b: (found[b], expected[b]) for b in self.batches}

    def resized(self, block):
        """Whether the FFN of a block is one of a layer: those of other attentions stay as they are."""
        of_block = [layer for a, layer in zip(self.attentions, self.place or []) if a["block"] == block]
        return not of_block or any(layer is not None and self.widths(self.found["layers"][self.parts[layer][2]]) for layer in of_block)

    @staticmethod
    def widths(layer):
        """FFN widths that `inspect` gives a layer."""
        if "ffns" in layer:
            return [f.get("ffn_width", f.get("width")) for f in layer["ffns"]]
        return [layer["ffn_width"]] if layer.get("ffn_width") else []

    def dropped(self, which):
        """The child without a layer, and the module whose list lacks it."""
        import torch
        from torch import nn
        counted = collections.Counter(a["block"].rpartition(".")[0] for a in {a["block"]: a for a in self.attentions}.values() if a["block"])
        modules = dict(self.model.named_modules())
        lists = [o for o, n in counted.items() if n > 1 and isinstance(modules[o], (nn.ModuleList, nn.Sequential))]
        repeated = len(self.attentions) > 1 and len({a["block"] for a in self.attentions}) == 1
        numbers = ("out_indices", "backbone_out_indices", "_out_indices", "intermediate_layers_indices")
        picks = any(getattr(self.model.config, n, None) for n in numbers)
        if any(f.get("alone") for f in self.ffns):
            return None  # a layer is no element of a list
        if not lists and not repeated or self.place is None or picks and which == "first":
            return None  # what picks layers by number picks others then
        if repeated:
            gone = {len(self.attentions) - 1 if which == "last" else 0}
        else:
            owner = max(lists, key=lambda o: counted[o])
            blocks = list(dict.fromkeys(a["block"] for a in self.attentions if a["block"].rpartition(".")[0] == owner))
            block = blocks[-1 if which == "last" else 0]
            holds = lambda b: {n for n, _ in modules[b].named_parameters()}
            if which == "first" and holds(block) - holds(blocks[-1]):
                return None  # it holds what the others use, as the first block of T5 its table of relative positions
            gone = {k for k, a in enumerate(self.attentions) if a["block"] == block or a["block"].startswith(block + ".")}
        layers = {self.parts[self.place[k]][2] for k in gone if self.place[k] is not None}
        left = [k for k in range(len(self.found["layers"])) if k not in layers]
        if not layers or not left:
            return None
        # The module is asked first: one that does not run without the layer has no truth.
        kept = self.model
        try:
            self.model = made(self.row)[0]
            if repeated:
                self.model.config.num_hidden_layers -= 1
            else:
                self.tiny.drop_block(self.model, block)
            expected = {b: self.outputs(b) for b in self.batches}
            if len(self.tiny.anatomy(self.model, self.fed[1])[0]) != len(self.attentions) - len(gone):
                return None
            self.doubt = self.unsure(expected)
        except Exception:
            return None
        finally:
            self.model = kept
        if any(len(x) != len(y) or any(p.shape != q.shape for p, q in zip(x, y)) for x, y in ((expected[b], self.base[b]) for b in self.batches)):
            return None
        found, _ = self.grown("--no-images", "--layers", ",".join(map(str, left)) + ",")
        return {b: (found[b], expected[b]) for b in self.batches}

    def all(self):
        made_of = {
            "inspect": self.inspect, "full size": self.full,
            "half heads": lambda: self.zeroed(True, False), "half FFN": lambda: self.zeroed(False, True), "both": lambda: self.zeroed(True, True),
            "last layer dropped": lambda: self.dropped("last"), "first layer dropped": lambda: self.dropped("first"),
        }
        many = any(a["heads"] > 1 for a in self.attentions)
        results, self.place, self.parts = {}, None, []
        for what in CHECKS:
            if what == "half heads" and not many or what == "half FFN" and not self.attentions or what == "both" and not (many and self.ffns):
                continue
            if what in self.overrides.get("__inputs__", {}).get("skip", []):
                continue  # the module counts its layers: one fewer means another thing there
            state = self.one(what, made_of[what])
            if state is None:
                continue
            if state[0] == "wrong" and what not in ("inspect", "full size"):
                # `grow` verifies its children: what it finds wrong itself is no wrong result.
                command, self.verifies = self.command, True
                verified = self.one(what, made_of[what])
                state = ("caught", f"{state[1]}; verification: {verified[1]}") if verified[0] == "refused" else state
                self.command = command
            self.verifies = False
            results[what] = {"state": state[0], "reason": state[1].replace(str(self.path), self.path.name), "command": self.command}
            if what == "inspect" and state[0] == "refused":
                break
        return {"results": results, "attentions": len(self.attentions), "ffns": len(self.ffns)}

    def one(self, what, make):
        """The state of one check and why; nothing where there is nothing to check."""
        self.command, self.doubt = "", 0
        try:
            pairs = make()
            if pairs is None and what != "inspect":
                return None
            errors = {b: distance(*pair) for b, pair in (pairs or {}).items()}
            worst = max(errors.values(), default=0)
            if worst <= max(TOLERANCE, 10 * self.rounding, 2 * self.doubt):
                return "right", ""
            said = next((w for w in self.warnings if SAYS.search(w)), None)
            return ("said", f"outputs {worst:.1e} off; {said[:300]}") if said else ("wrong", f"outputs {worst:.1e} off")
        except Wrong as problem:
            said = "are not read" if what == "inspect" else "it is run on batches of"
            unread = next((w for w in self.warnings if said in w), None)
            return ("said", f"{problem}; {unread[:300]}") if unread else ("wrong", str(problem))
        except Refused as problem:
            return "refused", str(problem)
        except Broken as problem:
            return "error", str(problem)


def assigned(truth, layers, others):
    """For each attention of the module the layer that it is, or `None` for another attention.

    Heads and head dimensions must be those of the module; both sides keep their order. Of equal ones those belong together whose queries and
    keys are as many. One head that the module does not call a head, as in an assignment of tokens to groups, may be another attention.
    """
    @functools.cache
    def go(k, i, j):
        if k == len(truth):
            rest = others[j:]
            return (0, ()) if i == len(layers) and all(o[0] == 1 for o in rest) else None
        ways = []
        for side, at, place, after in ((layers, i, i, (k + 1, i + 1, j)), (others, j, None, (k + 1, i, j + 1))):
            if at < len(side) and side[at][:2] == truth[k][:2] and (rest := go(*after)) is not None:
                ways.append((rest[0] + (side[at][2:] != truth[k][2:4]), (place, *rest[1])))
        if truth[k][4] and (rest := go(k + 1, i, j)) is not None:
            ways.append((rest[0], (None, *rest[1])))
        if j < len(others) and others[j][0] == 1 and (rest := go(k, i, j + 1)) is not None:
            ways.append(rest)
        return min(ways, key=lambda way: way[0], default=None)
    found = go(0, 0, 0)
    if found is None and sorted(t[:2] for t in truth) == sorted(t[:2] for t in layers + others) and len(set(t[:2] for t in truth)) == len(truth):
        return [next((i for i, x in enumerate(layers) if x[:2] == t[:2]), None) for t in truth]
    return found and list(found[1])


# ------------------------------------------------------------------------------------------------ commands


def verdict(results):
    states = [r["state"] for r in results.values()]
    return next((s for s in ("error", "wrong", "caught", "refused", "said") if s in states), "right")


def name_of(row):
    kind = next(k for k, v in EXPORTERS.items() if v == (row["exporter"], row["opset"], row["batch"]))
    return f"{row['class']}-{kind}"


def chosen(args):
    """The rows that are asked for: classes or exports by name, in the order of the names."""
    asked = {n: k for k, n in enumerate(args.names)}
    place = lambda row: asked.get(name_of(row), asked.get(row["class"]))
    found = [r for r in rows() if (not args.exporter or name_of(r).rpartition("-")[2] in args.exporter) and (not asked or place(r) is not None)]
    found = [r for r in found if not args.untried or r["versions"] != BUILT_BY]
    return sorted(found, key=place) if asked else found


def kept(path):
    return {r["name"]: r for r in map(json.loads, path.read_text().splitlines())} if path.exists() else {}


def keep(path, record):
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def today():
    return time.strftime("%Y-%m-%d", time.gmtime())


def start(modules, dynamo):
    """Imports what the processes of the rows share."""
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import tiny_transformers  # noqa: F401
    import torch
    import transformers
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for module in modules:
        importlib.import_module(module)
    if dynamo:
        # An export loads half of PyTorch and makes a table of operators: once for all that are forked from here.
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            torch.onnx.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),), f"{folder}/linear.onnx", dynamo=True, verbose=False)


def export_one(args, row, log, before):
    """Exports a row where that was not done."""
    name = name_of(row)
    path = args.cache / "exports" / f"{name}.onnx"
    same = {"versions": VERSIONS, "overrides": row["overrides"]}
    old = before.get(name)
    if old and not args.again and all(old[k] == v for k, v in same.items()) and ("failed" in old or path.exists()):
        return old
    path.unlink(missing_ok=True)
    began = time.time()
    record = {"name": name, **same, **apart(LIMIT["export"], export, row, path), "seconds": round(time.time() - began, 1), "seen": today()}
    path.with_suffix(".part.onnx").unlink(missing_ok=True)
    keep(log, record)
    before[name] = record
    print(f"{name:50} {record['seconds']:5.0f} s {record.get('failed', '')[:150]}", flush=True)
    return record


def check_one(args, row, log, before):
    name = name_of(row)
    path = args.cache / "exports" / f"{name}.onnx"
    same = {"versions": VERSIONS, "overrides": row["overrides"], "binary": args.sha}
    old = before.get(name)
    if old and not args.again and not (args.wrong and old["verdict"] != "right") and all(old[k] == v for k, v in same.items()):
        return
    began = time.time()
    done = apart(LIMIT["check"], lambda: Check(args, row, path).all())
    ended = {"results": {"run": {"state": "error", "reason": done.get("failed"), "command": ""}}}
    record = {"name": name, **same, **(done.get("result") or ended), "seconds": round(time.time() - began, 1), "seen": today()}
    record["verdict"] = verdict(record["results"])
    keep(log, record)
    before[name] = record
    bad = [f"{k}: {r['state']} {r['reason'][:110]}" for k, r in record["results"].items() if r["state"] != "right"]
    print(f"{name:50} {record['verdict']:8} {record['seconds']:4.0f} s  {' | '.join(bad)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, default=Path("target/release/offshoot"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/sweep"))
    parser.add_argument("--exporter", action="append", choices=list(EXPORTERS))
    parser.add_argument("--again", action="store_true", help="do anew what is there")
    parser.add_argument("--wrong", action="store_true", help="check anew what was not right")
    parser.add_argument("--untried", action="store_true", help="only rows that no machine has a result of")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("command", choices=["export", "check", "both", "table", "faults"])
    parser.add_argument("names", nargs="*")
    args = parser.parse_intermixed_args()
    (args.cache / "exports").mkdir(parents=True, exist_ok=True)
    exported, checked = args.cache / "exports.jsonl", args.cache / "checks.jsonl"
    if args.command in ("table", "faults"):
        return report(args, kept(exported), kept(checked))
    start({row["module"] for row in chosen(args)}, args.command != "check" and any(row["exporter"] == "dynamo" for row in chosen(args)))
    args.sha = hashlib.sha256(args.binary.read_bytes()).hexdigest() if args.command != "export" else None
    exports, checks = kept(exported), kept(checked)
    for row in chosen(args):
        if args.command != "check":
            export_one(args, row, exported, exports)
        if args.command != "export" and (args.cache / "exports" / f"{name_of(row)}.onnx").exists():
            check_one(args, row, checked, checks)


COLUMNS, TRACKED = "class module overrides exporter opset batch outcome".split(), "state why build versions seen".split()
STATES = ["right", "said", "refused", "caught", "wrong", "error"]
SAID = {
    "right": "right throughout", "said": "inexact, and a warning says so", "refused": "refused",
    "caught": "wrong, and refused by its own verification", "wrong": "wrong without a word", "error": "ended otherwise",
}


def latest(args, exports, checks):
    """The rows of the list with what is known of them: the state (`not tried`, `not exported`, `not checked`, or the verdict), why, and by what.

    What this machine has seen counts, unless the list holds what another one has seen on a later day.
    """
    found = []
    for row in rows():
        name = name_of(row)
        exported, checked = exports.get(name), checks.get(name)
        same = lambda record: record is not None and record["overrides"] == row["overrides"]
        results = {}
        if row["seen"] and not any(same(r) and r.get("seen", "") >= row["seen"] for r in (exported, checked)):
            state, why, by = row["state"] or "not exported", row["why"] or row["outcome"], {k: row[k] for k in TRACKED}
        elif not same(exported):
            state, why, by = "not tried", "", {}
        elif "failed" in exported:
            state, why, by = "not exported", exported["failed"], seen(exported)
        elif not same(checked):
            # The list's verdict stands while its export was only made again.
            state, why, by = (row["state"], row["why"], {k: row[k] for k in TRACKED}) if row["state"] else ("not checked", "", {})
        else:
            results = checked["results"]
            state, by = verdict(results), seen(checked)
            why = "; ".join(f"{k}: {r['reason']}" for k, r in results.items() if r["state"] == state and state != "right")
        found.append((row, name, state, why, by | {"results": results}))
    return found


def seen(record):
    """By which build and versions a record was made, and when."""
    versions = " ".join(f"{p} {v}" for p, v in record["versions"].items())
    return {"build": record.get("binary", "")[:12], "versions": versions, "seen": record.get("seen", "")}


def cause(reason):
    """A reason without the names and numbers of one model."""
    reason = re.sub(r"`[^`]*/[^`]*`|`[a-z_]*\d+[^`]*`", "`…`", reason)
    return re.sub(r"\d[\d.e+-]*", "N", re.sub(r"[\[(][\d, ()\[\]]+[\])]", "[…]", reason))[:160]


def faults(args, found):
    """What is not right, grouped by its words, with files and commands."""
    groups = collections.defaultdict(list)
    for _, name, state, _, by in found:
        for what, r in by["results"].items() if state in STATES else ():
            if r["state"] != "right":
                groups[(r["state"], what, cause(r["reason"]))].append((name, r))
    text = [f"# Faults\n\n{summary(found)}\n"]
    for state in reversed(STATES):
        of_state = sorted(((k, v) for k, v in groups.items() if k[0] == state), key=lambda kv: -len(kv[1]))
        if of_state:
            text.append(f"\n## {SAID[state]}\n")
        for (_, what, words), list_of in of_state:
            text.append(f"\n### {what}: {words} ({len(list_of)})\n")
            for name, r in list_of[:12]:
                text.append(f"- `{name}`: {r['reason'][:500]}\n  `{r['command']}`")
            if len(list_of) > 12:
                text.append(f"- and {', '.join(n for n, _ in list_of[12:])}")
    return "\n".join(text)


def summary(found):
    states = collections.Counter(state for _, _, state, _, _ in found)
    ran = sum(states[s] for s in STATES)
    counts = ", ".join(f"{states[s]} {SAID[s]}" for s in STATES if states[s])
    open_ones = f", {left} not yet tried" if (left := states["not tried"] + states["not checked"]) else ""
    builds = {by["build"] for _, _, state, _, by in found if state in STATES}
    by = f"by the build {', '.join(sorted(builds))}" if len(builds) < 3 else f"by {len(builds)} builds"
    return f"{len(found)} rows: {states['not exported']} do not export or do not run{open_ones}; of {ran} checked {by} {counts}."


def report(args, exports, checks):
    found = latest(args, exports, checks)
    if args.command == "faults":
        print(faults(args, found))
        return
    print(summary(found))
    if not args.write:
        return
    fill_outcomes(found)
    lines = ["| exporter | exports | " + " | ".join(SAID[s] for s in STATES) + " |", "|---" * (2 + len(STATES)) + "|"]
    for kind, (exporter, opset, batch) in EXPORTERS.items():
        states = collections.Counter(state for row, _, state, _, _ in found if (row["exporter"], row["opset"], row["batch"]) == EXPORTERS[kind])
        title = f"{exporter}, {'its own operator set' if opset == 'default' else 'operator set ' + opset}, batch {batch}"
        lines.append(f"| {title} | {sum(states[s] for s in STATES)} | " + " | ".join(str(states[s]) for s in STATES) + " |")
    cells = collections.defaultdict(dict)
    for row, name, state, why, _ in found:
        cells[row["class"]][name.rpartition("-")[2]] = (state, why)
    checked = {c: [s for s, _ in of.values() if s in STATES] for c, of in cells.items()}
    whole = [c for c, states in checked.items() if states and set(states) == {"right"}]
    lines += ["", f"Right throughout wherever they export, {len(whole)} classes: " + ", ".join(sorted(whole)) + ".", "", "The others:", ""]
    lines += ["| class | " + " | ".join(EXPORTERS) + " | why |", "|---" * (2 + len(EXPORTERS)) + "|"]
    for c, of in sorted(cells.items()):
        if c in whole or not checked[c]:
            continue
        why = next(w for s in reversed(STATES) for state, w in of.values() if state == s)
        lines.append(f"| {c} | " + " | ".join(of[k][0] if k in of else "" for k in EXPORTERS) + f" | {short(why)} |")
    text = f"{summary(found)} By {', '.join(f'{p} {v}' for p, v in VERSIONS.items())}.\n\n" + "\n".join(lines) + "\n"
    before, rest = PAGE.read_text().split("<!-- sweep -->")[0], PAGE.read_text().split("<!-- /sweep -->")[1]
    PAGE.write_text(f"{before}<!-- sweep -->\n\n{text}\n<!-- /sweep -->{rest}")


def short(why):
    """A reason that fits into a cell: whole words, an even number of backquotes."""
    text = why.replace("|", "/")[:160].rpartition(" ")[0] if len(why) > 160 else why.replace("|", "/")
    return text + "`" * (text.count("`") % 2)


def fill_outcomes(found):
    """Writes into the list what became of each row, and who saw it."""
    with ROWS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *TRACKED], lineterminator="\n")
        writer.writeheader()
        for row, _, state, why, by in found:
            why = re.sub(r"/\S*/", "", why)[:160]
            outcome = why if state == "not exported" else row["outcome"] if state == "not tried" else "runs"
            result = {"state": state, "why": why} if state in STATES else {"state": "", "why": ""}
            writer.writerow(row | {"outcome": outcome} | result | {k: by.get(k, "") for k in TRACKED[2:]})


if __name__ == "__main__":
    sys.exit(main())
