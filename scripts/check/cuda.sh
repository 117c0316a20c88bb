#!/usr/bin/env bash
# Checks training on an NVIDIA GPU and prints its figures.
#
#   scripts/check/cuda.sh parts DEST [MB [cuda]]  on a machine with pip: ONNX Runtime's CUDA library in parts of at most MB (60)
#   scripts/check/cuda.sh join PARTS DEST         puts the parts together again
#   scripts/check/cuda.sh check OFFSHOOT DEST     on a machine with a GPU: OFFSHOOT is the binary, DEST holds the library
#
# The CUDA 13 and cuDNN 9 libraries that ONNX Runtime loads are looked for in DEST, in the Python environment (torch and the nvidia-*
# wheels bring them), and in /usr/local/cuda. `parts DEST MB cuda` brings them too (about 2 GB), for a machine that has none.
#
# Paths are taken from the root of the repository. check prints: what `doctor` finds; loss curves on the CPU and on the GPU, in single and
# in half precision, and their largest relative difference; whether the bundled models and all fixtures give on the GPU what they give
# on the processor; and, where .cache/deit-small.onnx is there (scripts/studies/export_deit.py small), images a second and GPU memory beside
# PyTorch's. A run that fails is named, the others go on, and the exit code is 1.
set -euo pipefail
version=1.31.1
cd "$(dirname "$0")/../.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
failed=0

parts() {
    local dest=$1 megabytes=${2:-60}
    mkdir -p "$dest" "$tmp/wheels" "$tmp/libraries"
    local wheels=(--no-deps "onnxruntime-gpu==$version")
    if [ "${3:-}" = cuda ]; then
        wheels=("onnxruntime-gpu[cuda,cudnn]==$version")
    fi
    python3 -m pip download --quiet --disable-pip-version-check --only-binary=:all: -d "$tmp/wheels" "${wheels[@]}"
    python3 - "$tmp/wheels" "$tmp/libraries" <<'PY'
import os, re, shutil, sys, zipfile

source, dest = sys.argv[1:]
for wheel in sorted(os.listdir(source)):
    with zipfile.ZipFile(os.path.join(source, wheel)) as z:
        for name in z.namelist():
            if re.match(r"(onnxruntime/capi|nvidia/.*)/lib[^/]+\.so", name) and "tensorrt" not in name:
                with z.open(name) as library, open(os.path.join(dest, os.path.basename(name)), "wb") as target:
                    shutil.copyfileobj(library, target)
PY
    tar -C "$tmp/libraries" -czf - . | split -b "${megabytes}M" - "$dest/cuda-libraries.tar.gz."
    ls -l "$tmp/libraries" "$dest"
}

join() {
    mkdir -p "$2"
    cat "$1"/cuda-libraries.tar.gz.* | tar -C "$2" -xzf -
    ls "$2"
}

# One training run: its name, then flags.
curve() {
    local name=$1
    shift
    "$offshoot" tune models/fashion-vit.onnx --data fixtures/fashion-images.idx3-ubyte --batch-size 50 --epochs 10 --steps 50 \
        --val-split 0 --augment none --lr 5e-4 --onnxruntime "$library" -o "$tmp/$name.onnx" --metrics "$tmp/$name.jsonl" "$@" ||
        { echo "$name FAILED"; failed=1; }
}

check() {
    offshoot=$1
    local libraries=$2 found
    found=$(python3 - <<'PY' || true
import glob, os, site, sys
roots = {*site.getsitepackages(), site.getusersitepackages(), *sys.path}
print(":".join(sorted(d for r in roots for d in glob.glob(os.path.join(r, "nvidia", "*", "lib")))))
PY
)
    export LD_LIBRARY_PATH="$libraries:$found:/usr/local/cuda/lib64:${LD_LIBRARY_PATH:-}"
    library=$(find "$libraries" -name 'libonnxruntime.so*' -print -quit)
    [ -n "$library" ] || { echo "there is no libonnxruntime.so in $libraries" >&2; exit 2; }

    echo "== doctor"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    "$offshoot" doctor --onnxruntime "$library" --device cuda || { echo "doctor FAILED"; failed=1; }

    echo "== loss curves, 50 steps: CPU, GPU, GPU in half precision"
    curve cpu --device cpu
    curve cuda --device cuda
    curve fp16 --device cuda --precision fp16
    curve bf16 --device cuda --precision bf16
    python3 - "$tmp" <<'PY' || failed=1
import json, sys

def losses(name):
    with open(f"{sys.argv[1]}/{name}.jsonl") as lines:
        return [line["loss"] for line in map(json.loads, lines) if "loss" in line]

cpu = losses("cpu")
for name in ("cuda", "fp16", "bf16"):
    try:
        gpu = losses(name)
    except OSError:
        continue
    worst = max((abs(a - b) / abs(a) for a, b in zip(cpu, gpu)), default=float("nan"))
    last = gpu[-1] if gpu else float("nan")
    print(f"{name}: {len(gpu)} of {len(cpu)} steps, last loss {last:.5f}, largest relative difference from the CPU {worst:.1e}")
PY

    echo "== the model that was tuned on the GPU, evaluated on the CPU"
    "$offshoot" eval "$tmp/cuda.onnx" --data fixtures/fashion-images.idx3-ubyte --onnxruntime "$library" --device cpu | sed -n 1,4p ||
        failed=1

    echo "== bundled models and fixtures, on the processor and on the GPU"
    python3 scripts/check/compare_devices.py "$offshoot" "$library" | grep -v -e '^ok ' -e '^left out' || failed=1
    echo "== the same, tuned in bfloat16"
    python3 scripts/check/compare_devices.py "$offshoot" "$library" --commands tune --precision bf16 | grep -v -e '^ok ' -e '^left out' || failed=1

    if [ -f .cache/deit-small.onnx ]; then
        echo "== DeiT-small at 224 pixels: images a second and GPU memory"
        python3 scripts/bench/cuda_steps.py "$offshoot" "$library" .cache/deit-small.onnx || failed=1
    else
        echo "== DeiT-small LEFT OUT: there is no .cache/deit-small.onnx"
    fi
    exit "$failed"
}

case "${1:-} $#" in
    "parts 2" | "parts 3" | "parts 4") shift; parts "$@" ;;
    "join 3") shift; join "$@" ;;
    "check 3") shift; check "$@" ;;
    *) sed -n '2,14p' "$0"; exit 2 ;;
esac
