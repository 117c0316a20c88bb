# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Runs the commands of docs/deployment.md, each in the engine that it is for.

    python scripts/lib/engines.py install && cargo build --release && python scripts/check/deployment.py [--engine NAME ...]

In the page's source a block names its engines behind the language (```python openvino). All blocks run in their order in one folder, those of
an engine with its environment from scripts/lib/engines.py; whatever a block of Python prints last is the class of the picture, and all have to name
the same. Blocks of an engine that is not installed are left out by name. Exit code 1 where a block fails or differs.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/deployment.md"


def blocks():
    """The blocks that are run: engines, or none for those of the shell; the language; the text."""
    for language, names, text in re.findall(r"^```(\w+)([ \w]*)\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S):
        if names.strip() and names.strip() != "no_run":
            yield names.split(), language, text
        elif language == "sh" and re.search(r"^offshoot ", text, flags=re.M):
            yield [None], language, text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="append")
    parser.add_argument("--engines", type=Path, default=Path(".cache/engines"))
    parser.add_argument("--offshoot", type=Path, default=Path("target/release/offshoot"))
    args = parser.parse_args()
    home, offshoot = args.engines.absolute(), args.offshoot.absolute().parent
    said, failed, absent = {}, [], set()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("models", "fixtures"):
            Path(folder, name).symlink_to(ROOT / name)
        # Tools that look for newer versions of themselves call pip: what they find does nothing.
        stand_in = Path(folder, "bin/pip")
        stand_in.parent.mkdir()
        stand_in.write_text("#!/bin/sh\nexit 0\n")
        stand_in.chmod(0o755)
        for names, language, text in blocks():
            for name in names:
                if name and args.engine and name not in [*args.engine, "onnxruntime"]:
                    continue
                environment = home / name / "bin" if name else offshoot
                if not environment.exists():
                    absent.add(name)
                    continue
                # The script that pip installs for pnnx imports PyTorch, which the program beside it does not need.
                programs = [stand_in.parent, *environment.parent.glob("lib/python*/site-packages/pnnx"), environment]
                path = ":".join([*map(str, programs), os.environ["PATH"]])
                command = [environment / "python", "-c", text] if language == "python" else ["bash", "-euc", text]
                done = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=600)
                if done.returncode:
                    failed.append(f"{name or 'offshoot'}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
                elif language == "python" and done.stdout.strip():
                    said[name] = done.stdout.split()[-1]
    print(said, *failed, *(f"{name} is not installed" for name in sorted(absent)), sep="\n")
    return bool(failed) or len(set(said.values())) != 1


if __name__ == "__main__":
    sys.exit(main())
