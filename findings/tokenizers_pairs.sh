#!/usr/bin/env bash
# tokenizers 0.22.2, 0.23.2, 0.23.3: a pair of texts, both longer than half of the limit, cut by `longest_first` to an odd number of tokens.
# Most would expect: the same tokens from one release to the next; the text that is longer as a whole keeps the odd one, the second where they are
# equally long, as 0.22.2 has it.
# Output seen: 0.23.2 gives the odd one to the second text whenever both are longer than the limit: it stops reading a text there, and compares what it has
# read. 0.23.3 is as 0.22.2 again; the newest stable release of the Rust crate is 0.23.2, and gives a model of pairs other tokens than Python does.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/python"
for version in 0.22.2 0.23.2 0.23.3; do
    "$folder/python/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$folder/$version" "tokenizers==$version"
    PYTHONPATH="$folder/$version" "$folder/python/bin/python" - "$version" <<'PY'
import sys

import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers

assert tokenizers.__version__ == sys.argv[1], tokenizers.__version__
tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.enable_truncation(13)
seen = {}
for first, second in [(20, 17), (17, 20), (20, 20), (8, 7)]:
    ids = tokenizer.encode(" ".join("a" * first), " ".join("b" * second)).ids
    seen[first, second] = (ids.count(0), ids.count(1))
print(tokenizers.__version__, seen)
by_length = {(20, 17): (7, 6), (17, 20): (6, 7), (20, 20): (6, 7), (8, 7): (7, 6)}
assert seen == (by_length | {(20, 17): (6, 7)} if sys.argv[1] == "0.23.2" else by_length), seen
PY
done
