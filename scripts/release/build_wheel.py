# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Builds a Python wheel that carries the binary: `pip install` puts `offshoot` on the PATH of the environment.

    cargo build --release --features codecs
    python3 scripts/release/build_wheel.py --binary target/release/offshoot [--output DIR] [--platform TAG]

Needs nothing but Python; `strip` is used where it is there. ONNX Runtime comes from its own wheel, whose library the binary finds in the
same environment: `offshoot[onnxruntime]`, or `offshoot[cuda]`. Neither is required, since both put their files into one folder and the
embedded runtime works without. The same binary gives the same bytes.
"""

import argparse
import base64
import hashlib
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Oldest that has the interface which src/runtime/library.rs asks for.
ONNX_RUNTIME = "1.24"


def package_table():
    """The strings and the keywords of [package] in Cargo.toml, which Python before 3.11 has no parser for."""
    section = re.search(r"\[package\]\n(.*?)\n\[", (ROOT / "Cargo.toml").read_text(encoding="utf-8"), re.DOTALL)[1]
    table = dict(re.findall(r'^([a-z-]+) = "(.*)"$', section, re.MULTILINE))
    table["keywords"] = re.findall(r'"(.*?)"', re.search(r"^keywords = \[(.*)\]$", section, re.MULTILINE)[1])
    return table


def platform_tag(binary):
    """The machines that the binary runs on: on Linux by the newest glibc that it asks for."""
    plain = re.sub(r"[-.]", "_", sysconfig.get_platform())
    if not plain.startswith("linux_"):
        return plain
    # Versions of symbols stand in the binary as text.
    versions = [tuple(map(int, v)) for v in re.findall(rb"GLIBC_(\d+)\.(\d+)", binary)]
    if not versions:
        return plain
    major, minor = max(versions)
    return f"manylinux_{major}_{minor}_{plain.removeprefix('linux_')}"


def stripped(path):
    if not shutil.which("strip"):
        return path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / path.name
        shutil.copy(path, copy)
        subprocess.run(["strip", copy], check=True)
        return copy.read_bytes()


def metadata(package):
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {package['name']}",
        f"Version: {package['version']}",
        f"Summary: {package['description']}",
        f"License-Expression: {package['license']}",
        f"Keywords: {','.join(package['keywords'])}",
        "Requires-Python: >=3.8",
        "Provides-Extra: onnxruntime",
        f'Requires-Dist: onnxruntime>={ONNX_RUNTIME}; extra == "onnxruntime"',
        "Provides-Extra: cuda",
        f'Requires-Dist: onnxruntime-gpu>={ONNX_RUNTIME}; extra == "cuda"',
        "Description-Content-Type: text/markdown",
        "",
        (ROOT / "README.md").read_text(encoding="utf-8"),
    ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "dist")
    parser.add_argument("--platform", help="platform tag [default: from the binary]")
    args = parser.parse_args()

    package = package_table()
    name = f"{package['name']}-{package['version']}"
    binary = stripped(args.binary)
    tag = f"py3-none-{args.platform or platform_tag(binary)}"
    crates = subprocess.run([sys.executable, ROOT / "scripts/lib/third_party.py"], check=True, capture_output=True, cwd=ROOT).stdout
    files = {f"{name}.data/scripts/{args.binary.name}": binary}
    info = f"{name}.dist-info"
    files[f"{info}/METADATA"] = metadata(package).encode()
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: build_wheel.py\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    for licence in ("LICENSE", "LICENSE-MIT", "LICENSE-APACHE"):
        files[f"{info}/licenses/{licence}"] = (ROOT / licence).read_bytes()
    files[f"{info}/licenses/crates.txt"] = crates

    record = ""
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(data)}\n"
    record += f"{info}/RECORD,,\n"
    files[f"{info}/RECORD"] = record.encode()

    args.output.mkdir(parents=True, exist_ok=True)
    wheel = args.output / f"{name}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if "/scripts/" in path else 0o100644) << 16
            archive.writestr(entry, data)
    print(wheel)


if __name__ == "__main__":
    main()
