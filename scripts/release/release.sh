#!/usr/bin/env bash
# Builds a release archive that works without Rust and without Python: offshoot-VERSION-TARGET.tar.gz with the stripped binary,
# ONNX Runtime's shared library beside it, licences, completions, man page, documentation, and the bundled model with its images.
#
#   scripts/release/release.sh [--profile NAME | --binary PATH] [--onnxruntime DIR] [--output DIR]
#
# --profile      the profile that the binary is built with (release), and with all codecs of Parquet files
# --binary       take this one instead of building
# --onnxruntime  the folder with libonnxruntime.so and its licences; scripts/fetch/onnxruntime.sh fills it where it is empty (.onnxruntime)
# --output       where the archive goes (dist)
#
# Needs cargo, python3, tar and strip. The same binary and library give the same bytes (SOURCE_DATE_EPOCH, else the last commit's time).
set -euo pipefail
# Names that are given are relative to where the script was called.
here=$PWD
cd "$(dirname "$0")/../.."

profile=release binary= runtime=$PWD/.onnxruntime output=$PWD/dist
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || { echo "$1 wants a value" >&2; exit 2; }
    case $1 in
        --profile) profile=$2 ;;
        --binary) binary=$(cd "$here" && realpath "$2") ;;
        --onnxruntime) runtime=$(cd "$here" && realpath -m "$2") ;;
        --output) output=$(cd "$here" && realpath -m "$2") ;;
        *) echo "$1 is no option of this script" >&2; exit 2 ;;
    esac
    shift 2
done

if [ -z "$binary" ]; then
    cargo build --locked --profile "$profile" --features codecs
    folder=$profile
    [ "$profile" = dev ] && folder=debug
    binary=${CARGO_TARGET_DIR:-target}/$folder/offshoot
fi
scripts/fetch/onnxruntime.sh "$runtime" >&2
target=$(rustc -vV | sed -n 's/^host: //p')
version=$("$binary" --version | cut -d' ' -f2)
expected=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
[ "$version" = "$expected" ] || { echo "the binary is version $version, the project $expected" >&2; exit 1; }

grep -q '"zstd"' <<< "$("$binary" doctor --runtime tract --json 2> /dev/null)" ||
    echo "note: this binary does not read every Parquet file: build it with --features codecs" >&2

name=offshoot-$version-$target
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/$name
mkdir -p "$root"/{completions,man,licences,models,fixtures}

install -m 755 "$binary" "$root/offshoot"
strip "$root/offshoot"
# The file itself, under the name that is looked for: links do not survive every way to unpack.
install -m 644 "$runtime/libonnxruntime.so" "$root/libonnxruntime.so"
install -m 644 "$runtime/LICENSE" "$root/licences/onnxruntime.txt"
install -m 644 "$runtime/ThirdPartyNotices.txt" "$root/licences/onnxruntime-third-party.txt"
python3 scripts/lib/third_party.py "$target" > "$root/licences/crates.txt"
install -m 644 README.md CHANGELOG.md LICENSE LICENSE-MIT LICENSE-APACHE "$root"
"$root/offshoot" completions bash > "$root/completions/offshoot.bash"
"$root/offshoot" completions zsh > "$root/completions/_offshoot"
"$root/offshoot" completions fish > "$root/completions/offshoot.fish"
"$root/offshoot" man > "$root/man/offshoot.1"
# What the guide's commands need.
cp -R docs "$root/docs"
rm -rf "$root/docs/studies/results"
install -m 644 models/* "$root/models"
cp -R fixtures/README.md fixtures/fashion-* "$root/fixtures"

mkdir -p "$output"
archive=$output/$name.tar.gz
stamp=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || echo 0)}
tar -C "$work" --sort=name --mtime="@$stamp" --owner=0 --group=0 --numeric-owner --mode=u+w,go-w,a+rX -cf - "$name" | gzip -n > "$archive.part"
mv "$archive.part" "$archive"
(cd "$output" && sha256sum "$name.tar.gz" > "$name.tar.gz.sha256")
glibc=$(objdump -T "$root/offshoot" "$root/libonnxruntime.so" 2> /dev/null | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -1 || true)
echo "$archive ($(du -h "$archive" | cut -f1)), needs ${glibc:-the system libraries of this machine}" >&2
