# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Writes the names, versions and licence texts of the crates that are linked into the binary to standard output.

    python3 scripts/lib/third_party.py [TARGET]        TARGET is a triple; left out: that of this machine

Reads what `cargo metadata --locked` knows, with the codecs that releases are built with, and the files that the crates carry. Crates whose sources hold no text are listed with the
name of their licence. Build scripts and what only tests need are not linked and not listed.
"""

import json
import pathlib
import re
import subprocess
import sys


def linked(metadata):
    """Packages that the root links, whatever depends on them."""
    nodes = {n["id"]: n for n in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    seen, waiting = set(), [root]
    while waiting:
        for dependency in nodes[waiting.pop()]["deps"]:
            kinds = {k["kind"] for k in dependency["dep_kinds"]}
            if None in kinds and dependency["pkg"] not in seen:
                seen.add(dependency["pkg"])
                waiting.append(dependency["pkg"])
    return sorted((p for p in metadata["packages"] if p["id"] in seen), key=lambda p: (p["name"], p["version"]))


def texts(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    named = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)
    files = {f for f in folder.iterdir() if named.match(f.name) and f.is_file()}
    if package.get("license_file"):
        files.add(folder / package["license_file"])
    return [f.read_text(encoding="utf-8", errors="replace").strip() for f in sorted(files)]


def main():
    target = sys.argv[1] if len(sys.argv) > 1 else None
    if target is None:
        version = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
        target = re.search(r"host: (\S+)", version)[1]
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--features", "codecs", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    packages = linked(metadata)
    by_text = {}
    print("Offshoot is linked with these crates. Their licences follow, each text once.\n")
    for package in packages:
        name = f"{package['name']} {package['version']}"
        found = texts(package)
        licence = package["license"] or "see its text"
        print(f"{name}: {licence}" + ("" if found else " (the crate carries no text)"))
        for text in found:
            by_text.setdefault(" ".join(text.split()), (text, []))[1].append(name)
    for text, names in by_text.values():
        print("\n" + "-" * 80 + "\n" + ", ".join(names) + "\n\n" + text)


if __name__ == "__main__":
    main()
