# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Runs a command as a process of its own and measures it: what the scripts that time Offshoot beside other programs share."""

import os
import subprocess
import tempfile
import time


class Measured:
    """Seconds, peaks of anonymous (RssAnon) and of all resident pages in MB, the exit status, and what the process printed."""

    def __init__(self, command):
        start, self.anonymous = time.perf_counter(), 0.0
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err)
            while True:
                try:
                    with open(f"/proc/{process.pid}/status") as status:
                        fields = dict(line.split(":", 1) for line in status)
                    self.anonymous = max(self.anonymous, int(fields.get("RssAnon", "0").split()[0]) / 1024)
                except (OSError, ValueError):
                    pass  # it has just ended
                pid, self.status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                time.sleep(0.002)
            self.seconds = time.perf_counter() - start
            self.resident = usage.ru_maxrss / 1024
            self.out, self.err = (stream.seek(0) or stream.read() for stream in (out, err))
