# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "onnx==1.23.2", "tokenizers==0.23.3"]
# ///
"""Times how texts become tokens here and in Python's tokenizers, in turn.

    cargo bench --bench data --no-run
    python scripts/bench/texts.py BINARY TOKENIZER TEXTS [--max-length 256] [--rounds 5]

BINARY is what cargo built, TOKENIZER a folder with tokenizer.json and what lies beside it, TEXTS a file of one text a line. Prints a Markdown table: the
fastest run of each in seconds, with one thread and with all. Offshoot's run reads both files and ends with arrays; Python's are
`encode_batch` and `encode_batch_fast` alone, without reading anything or making arrays.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer


def model(path, words):
    """A model of as many embeddings, of one number each."""
    ids, mask = (helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask"))
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", "tokens", 1])
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["w"]),
        helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["n"]),
        helper.make_node("Mul", ["w", "n"], ["out"]),
    ]
    weights = [numpy_helper.from_array(np.zeros((words, 1), np.float32), "words"), numpy_helper.from_array(np.array([2]), "last")]
    graph = helper.make_graph(nodes, "words", [ids, mask], [out], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def tokenizer(folder, length):
    found = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    found.no_padding()
    found.enable_truncation(length)
    return found


def python(options):
    """Seconds of each of the two calls, in a process of its own."""
    ours, lines = tokenizer(options.tokenizer, options.max_length), Path(options.texts).read_text(encoding="utf-8").splitlines()
    seconds, tokens = [], 0
    for call in (ours.encode_batch, ours.encode_batch_fast):
        start = time.perf_counter()
        found = call(lines)
        seconds.append(time.perf_counter() - start)
        tokens = sum(len(e.ids) for e in found)
    print(json.dumps({"seconds": seconds, "texts": len(lines), "tokens": tokens}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("tokenizer")
    parser.add_argument("texts")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.python:
        return python(options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model(path, tokenizer(options.tokenizer, options.max_length).get_vocab_size())
        print("| threads | offshoot, s | `encode_batch`, s | `encode_batch_fast`, s | ratio to the faster |\n|---:|---:|---:|---:|---:|")
        for threads in (1, os.cpu_count()):
            environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
            run = lambda *command: json.loads(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)
            ours, theirs = [], []
            for _ in range(options.rounds):
                ours.append(run(options.binary, "texts", str(path), options.tokenizer, options.texts))
                theirs.append(run(sys.executable, __file__, *sys.argv[1:], "--python"))
            assert ours[0]["texts"] == theirs[0]["texts"], (ours[0], theirs[0])
            own = min(o["seconds"] for o in ours)
            slow, fast = (min(t["seconds"][i] for t in theirs) for i in (0, 1))
            print(f"| {threads} | {own:.2f} | {slow:.2f} | {fast:.2f} | {own / min(slow, fast):.2f} |", flush=True)
        print(f"\n{theirs[0]['texts']} texts, {theirs[0]['tokens']} tokens")


if __name__ == "__main__":
    main()
