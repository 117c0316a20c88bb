#!/usr/bin/env bash
# Times `grow --no-images` on DeiT-B (330 MB, random weights) against a plain copy and against Python onnx, and measures memory.
#
#   python scripts/studies/export_deit.py base && cargo build --release && PYTHON=python scripts/bench/grow.sh
#
# Needs hyperfine, GNU time, and a Python with onnx.
set -euo pipefail
cd "$(dirname "$0")/../.."
model=${1:-.cache/deit-base.onnx}
python=${PYTHON:-python3}
out=$(mktemp -d -p "$(dirname "$model")")
trap 'rm -rf "$out"' EXIT

hyperfine --warmup 1 --runs 7 --export-markdown "$out/table.md" \
    -n "cp" "cp --reflink=never $model $out/copy.onnx" \
    -n "offshoot grow, identity" "target/release/offshoot grow $model --no-images -o $out/same.onnx --force" \
    -n "offshoot grow, 8 of 12 heads" "target/release/offshoot grow $model --no-images --heads 8 -o $out/child.onnx --force" \
    -n "offshoot grow, 6 of 12 layers" "target/release/offshoot grow $model --no-images --layers 6 -o $out/half.onnx --force" \
    -n "python onnx, load and save" "$python -c \"import onnx; onnx.save(onnx.load('$model'), '$out/python.onnx')\"" \
    -n "offshoot inspect" "target/release/offshoot inspect $model" >&2
cat "$out/table.md"
echo

# Peak of anonymous memory of a command, after what it is called here: pages of the mapped model are the page cache's.
anonymous() {
    local label=$1
    shift
    "$@" >/dev/null 2>&1 &
    local pid=$! peak=0 now
    while kill -0 "$pid" 2>/dev/null; do
        now=$(awk '/^RssAnon/ {print $2}' "/proc/$pid/status" 2>/dev/null || echo 0)
        [ "${now:-0}" -gt "$peak" ] && peak=$now
    done
    echo "- $((peak / 1024)) MB of anonymous memory: \`$label\`"
}
anonymous "offshoot inspect" target/release/offshoot inspect "$model"
anonymous "offshoot grow, identity" target/release/offshoot grow "$model" --no-images -o "$out/a.onnx"
anonymous "offshoot grow, 8 of 12 heads" target/release/offshoot grow "$model" --no-images --heads 8 -o "$out/b.onnx"
anonymous "python onnx, load and save" "$python" -c "import onnx; onnx.save(onnx.load('$model'), '$out/c.onnx')"
