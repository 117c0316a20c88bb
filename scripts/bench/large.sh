#!/usr/bin/env bash
# Anonymous memory of `inspect` and `grow --no-images` on a model of more than 2 GB (ViT-H/14, random weights).
#
#   python scripts/studies/export_deit.py huge && cargo build --release && scripts/bench/large.sh [MODEL]
set -euo pipefail
cd "$(dirname "$0")/../.."
model=${1:-.cache/vit-huge.onnx}
offshoot=${OFFSHOOT:-target/release/offshoot}
out=$(mktemp -d -p "$(dirname "$model")")
trap 'rm -rf "$out"' EXIT

# Peak of anonymous memory: pages of mapped files are the page cache's.
anonymous() {
    "$@" >/dev/null 2>&1 &
    local pid=$! peak=0 now
    while kill -0 "$pid" 2>/dev/null; do
        now=$(awk '/^RssAnon/ {print $2}' "/proc/$pid/status" 2>/dev/null || echo 0)
        [ "${now:-0}" -gt "$peak" ] && peak=$now
        sleep 0.005
    done
    wait "$pid"
    local command="${*:2}"
    echo "| \`offshoot ${command//"$out/"/}\` | $((peak / 1024)) MB |"
}
echo "| command | anonymous memory |"
echo "|---|---:|"
anonymous "$offshoot" inspect "$model"
anonymous "$offshoot" grow "$model" --no-images -o "$out/same.onnx"
anonymous "$offshoot" grow "$model" --no-images --heads 8 --ffn-width 50% -o "$out/child.onnx"
