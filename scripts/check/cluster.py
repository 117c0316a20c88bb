# /// script
# requires-python = ">=3.10"
# dependencies = ["pyyaml==6.0.4"]
# ///
"""Checks that the files for clusters parse: YAML, and the shell text that a launcher is given.

    python scripts/check/cluster.py docs/cluster/*.yaml
"""
import subprocess
import sys

import yaml

for path in sys.argv[1:]:
    for document in yaml.safe_load_all(open(path)):
        print(path, document["kind"], document["metadata"]["name"])
        launcher = document["spec"].get("mpiReplicaSpecs", {}).get("Launcher")
        for container in launcher["template"]["spec"]["containers"] if launcher else ():
            subprocess.run(["bash", "-n", "-c", container["args"][0]], check=True)
