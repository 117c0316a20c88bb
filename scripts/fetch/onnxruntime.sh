#!/usr/bin/env bash
# Fetches ONNX Runtime's shared library from its PyPI wheel into a folder.
#
#   scripts/fetch/onnxruntime.sh [DEST]        DEST defaults to .onnxruntime
#
# Makes DEST/libonnxruntime.so (a link to the versioned library beside it).
# Does nothing when it is there already. Needs python3 with pip; installs nothing.
set -euo pipefail

version=1.32.0
dest=${1:-.onnxruntime}

if [ -e "$dest/libonnxruntime.so" ]; then
    echo "ONNX Runtime is already at $dest/libonnxruntime.so"
    exit 0
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

echo "Downloading the onnxruntime $version wheel ..."
python3 -m pip download --quiet --disable-pip-version-check --no-deps \
    --only-binary=:all: -d "$tmp" "onnxruntime==$version"

mkdir -p "$dest"
name=$(python3 - "$tmp" "$dest" <<'PY'
import glob, os, re, shutil, sys, zipfile

tmp, dest = sys.argv[1:]
(wheel,) = glob.glob(os.path.join(tmp, "*.whl"))
with zipfile.ZipFile(wheel) as z:
    names = [n for n in z.namelist() if re.fullmatch(r"onnxruntime/capi/libonnxruntime\.(so\.[\d.]+|[\d.]*dylib)", n)]
    if not names:
        sys.exit(f"no libonnxruntime in {os.path.basename(wheel)}: {[n for n in z.namelist() if 'capi/lib' in n]}")
    name = max(names, key=len)
    base = os.path.basename(name)
    part = os.path.join(dest, base + ".part")
    with z.open(name) as source, open(part, "wb") as target:
        shutil.copyfileobj(source, target)
    os.replace(part, os.path.join(dest, base))
    for n in z.namelist():  # licences travel with the library
        if os.path.basename(n) in ("LICENSE", "ThirdPartyNotices.txt"):
            with z.open(n) as source, open(os.path.join(dest, os.path.basename(n)), "wb") as target:
                shutil.copyfileobj(source, target)
print(base)
PY
)
ln -sfn "$name" "$dest/libonnxruntime.so"
ln -sfn "$name" "$dest/libonnxruntime.so.1" # the name that programs linked with it look for
echo "ONNX Runtime $version is at $dest/libonnxruntime.so"
