# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "onnx==1.23.2", "onnxruntime==1.32.0", "scipy==1.18.1", "torch==2.15.0", "transformers==5.23.0"]
# ///
"""Makes fixtures/reports/texts/learned-pairs.json: a small BERT that learns scores of pairs in PyTorch.

    OMP_NUM_THREADS=1 python scripts/golden/pairs.py

The model is that of scripts/fixtures/texts.py, the pairs are those of scripts/fixtures/rated.py, with scores from 0 to 5. The loss is that of
sentence-transformers' CosineSimilarityLoss: the mean squared difference of the cosine of both embeddings and the score, from 0 to 1. Every text is
embedded alone, without padding. The embedding is the mean over tokens (`sentence`) or the first one (`class-token`). For each: losses before and after
updates by gradient descent on all pairs at once, SciPy's Spearman correlation of cosines and scores at the same times, and gradients at the start of
weights that keep their names in both exporters' files.
"""

import json
import sys
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("lib", "fixtures")]

import rated
import texts
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from transformers import AutoTokenizer

UPDATES, RATE, MOST = 5, 0.2, 5
WEIGHTS = ("model.embeddings.word_embeddings.weight", "model.embeddings.position_embeddings.weight", "model.encoder.layer.1.output.LayerNorm.weight")


def embedded(model, tokenizer, text, pooling):
    tokens = tokenizer(text, truncation=True, max_length=rated.LENGTH, return_token_type_ids=True, return_tensors="pt")
    states, sentence = model(*(tokens[name] for name in texts.INPUTS))
    return sentence[0] if pooling == "sentence" else states[0, 0]


def learned(tokenizer, pooling):
    model = texts.Sentence("eager")
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    scores = torch.tensor([score / MOST for *_, score in rated.PAIRS])
    found = {"losses": [], "spearman": []}
    for update in range(UPDATES + 1):
        both = [[embedded(model, tokenizer, text, pooling) for text in pair[:2]] for pair in rated.PAIRS]
        cosines = torch.stack([F.cosine_similarity(a, b, dim=0) for a, b in both])
        loss = F.mse_loss(cosines, scores)
        found["losses"].append(float(f"{loss.item():.7g}"))
        found["spearman"].append(float(spearmanr(cosines.detach().numpy(), scores.numpy()).statistic))
        optimiser.zero_grad()
        loss.backward()
        if update == 0:
            named = dict(model.named_parameters())
            found["gradients"] = {name: [float(f"{v:.6g}") for v in named[name].grad.flatten().tolist()] for name in WEIGHTS}
        optimiser.step()
    return found


def main():
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(texts.FOLDER)
    golden = {pooling: learned(tokenizer, pooling) for pooling in ("sentence", "class-token")}
    (texts.FOLDER / "learned-pairs.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
