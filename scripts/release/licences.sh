#!/usr/bin/env bash
# Lists every dependency with its licence in docs/licences.md, for all features and systems.
#
#   scripts/release/licences.sh [--check]
#
# With --check, nothing is written, and a list that is not current is an error.
set -euo pipefail
cd "$(dirname "$0")/../.."

list=docs/licences.md
new=$(mktemp)
trap 'rm -f "$new"' EXIT

{
    cat <<'TEXT'
# Licences of dependencies

Offshoot itself is under MIT or Apache-2.0, as you choose. A binary also holds what it is built from, whose licences are below; those that
are only used to build it, for other systems, or by optional features stand here, too. Their texts lie in the sources of each crate (`cargo
vendor` puts them in one folder). ONNX Runtime (MIT) is loaded at run time and not linked. `deny.toml` says which licences may appear here.

Made by `scripts/release/licences.sh`; do not edit.

| Crate | Licence |
|---|---|
TEXT
    # The fields are `name vVERSION`, marks in brackets, and the licence.
    cargo tree --locked --all-features --target all --edges normal,build,dev --prefix none --format '{p}|{l}' |
        sed -E 's/ \([^|]*\)\|/|/; s/ \(\*\)$//; s/^(.*)\|(.*)$/| \1 | \2 |/' | grep -v '^| offshoot v' | LC_ALL=C sort -u
} > "$new"

if [ "${1:-}" = --check ]; then
    diff -u "$list" "$new" || { echo "$list is not current: run scripts/release/licences.sh"; exit 1; }
else
    cp "$new" "$list"
fi
