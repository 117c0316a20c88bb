#!/usr/bin/env bash
# Checks training on two GPUs of one machine, whose gradients are summed through NCCL, and prints its figures.
#
#   scripts/check/nccl.sh OFFSHOOT LIBRARIES
#
# OFFSHOOT was built with `--features mpi`; LIBRARIES is the folder that scripts/check/cuda.sh filled with ONNX Runtime's CUDA library.
# NCCL (libnccl.so) is looked for there, in the Python environment (the wheel nvidia-nccl-cu13, or torch, brings it), and where the
# system keeps it. Needs Open MPI's mpirun. Exit code 1 where the losses of one GPU and of two differ, or where NCCL was not used.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,9p' "$0"; exit 2; }
offshoot=$(realpath "$1") libraries=$(realpath "$2")
cd "$(dirname "$0")/../.."
gpus=$(nvidia-smi --list-gpus | wc -l)
[ "$gpus" -ge 2 ] || { echo "two GPUs are needed, and there are $gpus" >&2; exit 2; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
found=$(python3 - <<'PY'
import glob, os, site, sys
roots = {*site.getsitepackages(), site.getusersitepackages(), *sys.path}
print(":".join(sorted(d for r in roots for d in glob.glob(os.path.join(r, "nvidia", "*", "lib")))))
PY
)
export LD_LIBRARY_PATH="$libraries:$found:/usr/local/cuda/lib64:${LD_LIBRARY_PATH:-}"
# cudarc looks for libnccl.so, and the wheels bring libnccl.so.2.
nccl=$(IFS=:; for d in $LD_LIBRARY_PATH; do ls "$d"/libnccl.so.2 2>/dev/null || true; done | head -1)
[ -z "$nccl" ] || ln -s "$nccl" "$tmp/libnccl.so"
export LD_LIBRARY_PATH="$tmp:$LD_LIBRARY_PATH"
library=$(find "$libraries" -name 'libonnxruntime.so*' -print -quit)
[ -n "$library" ] || { echo "there is no libonnxruntime.so in $libraries" >&2; exit 2; }

# One training run: its name, its ranks, its batch size.
curve() {
    local launch=()
    [ "$2" = 1 ] || launch=(mpirun --allow-run-as-root -x LD_LIBRARY_PATH -n "$2")
    echo "== $1"
    "${launch[@]}" "$offshoot" tune models/fashion-vit.onnx --data fixtures/fashion-images.idx3-ubyte --batch-size "$3" --epochs 10 \
        --steps 50 --val-split 0 --augment none --lr 5e-4 --clip 1 --device cuda --onnxruntime "$library" -o "$tmp/$1.onnx" \
        --metrics "$tmp/$1.jsonl" 2>&1 | tee "$tmp/$1.log"
}

curve one-gpu 1 60
curve two-gpus 2 30
grep -q "through NCCL" "$tmp/two-gpus.log" || { echo "NCCL was NOT USED"; exit 1; }
python3 - "$tmp" <<'PY'
import json, statistics, sys

def lines(name):
    with open(f"{sys.argv[1]}/{name}.jsonl") as file:
        return [line for line in map(json.loads, file) if "loss" in line]

one, two = lines("one-gpu"), lines("two-gpus")
worst = max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(one, two, strict=True))
rate = lambda steps: statistics.median(s["images_per_second"] for s in steps[5:])
print(f"largest relative difference of {len(one)} losses: {worst:.1e}")
print(f"images a second: one GPU {rate(one):.0f}, two {rate(two):.0f}, efficiency {rate(two) / rate(one) / 2:.2f}")
sys.exit(worst > 1e-3)
PY
