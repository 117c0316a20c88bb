# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy", "onnxruntime==1.32.0", "pillow"]
# ///
"""Checks examples/web in headless Chromium: it classifies bundled pictures as ONNX Runtime does.

    apt-get install --no-install-recommends chromium-driver
    cargo build --release && python scripts/check/browser.py [--offshoot target/release/offshoot] [--web .cache/web]

Makes a child of the bundled ancestor, in float32 and in float16, serves it with the page, and gives the page pictures as a person does.
The best class and its share have to be those that the same file says in ONNX Runtime, of the pixels that Pillow reads: the pictures are grey
and of the size of the model, so no filter has a part in it. --web is a folder where npm has put onnxruntime-web. Exit code 1 where an answer
differs.
"""

import argparse
import functools
import http.server
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PICTURES = sorted((ROOT / "fixtures/fashion-png").glob("*.png"))[:6]
FORMS = {"float32": [], "float16": ["--dtype", "fp16"]}
MEAN, STD = 0.2860, 0.3530  # of the bundled ancestor: models/README.md
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element in the WebDriver protocol


class Quiet(http.server.SimpleHTTPRequestHandler):
    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm"}

    def log_message(self, *_):
        pass


class Browser:
    """Headless Chromium through its driver, which speaks JSON over HTTP."""

    def __init__(self, port=9515):
        self.driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.base = f"http://127.0.0.1:{port}"
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self.base += "/session/" + self.until(lambda: self.call("POST", "/session", wanted))["sessionId"]

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def until(self, attempt, seconds=60):
        """The first answer that is something."""
        end = time.monotonic() + seconds
        while True:
            try:
                if answer := attempt():
                    return answer
            except urllib.error.URLError as error:
                if isinstance(error, urllib.error.HTTPError) or time.monotonic() > end:
                    raise
            if time.monotonic() > end:
                raise TimeoutError("the page says nothing new")
            time.sleep(0.1)

    def find(self, css):
        return "/element/" + self.call("POST", "/element", {"using": "css selector", "value": css})[ELEMENT]

    def text(self, css):
        return self.call("GET", self.find(css) + "/text")

    def close(self):
        try:
            self.call("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait()


def classified(browser, page, pictures):
    """What the page shows for each picture: the best class and its share."""
    browser.call("POST", "/url", {"url": page})

    def state(begins):
        text = browser.text("#state")
        if text.startswith("failed"):
            sys.exit(f"the page says: {text}")
        return text.startswith(begins)

    browser.until(lambda: state("ready"))
    answers = {}
    for picture in pictures:
        browser.call("POST", browser.find("#picture") + "/value", {"text": str(picture)})
        browser.until(lambda: state(picture.name))
        name, _, share = (browser.text(f"#answers tr:first-child td:nth-child({n})") for n in (1, 2, 3))
        answers[picture.name] = name, float(share.removesuffix(" %"))
    return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offshoot", type=Path, default=ROOT / "target/release/offshoot")
    parser.add_argument("--web", type=Path, default=ROOT / ".cache/web")
    args = parser.parse_args()
    wrong = count = 0
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        for name in ("index.html", "classify.js"):
            (site / name).symlink_to(ROOT / "examples/web" / name)
        (site / "node_modules").symlink_to(args.web.resolve() / "node_modules")
        for form, flags in FORMS.items():
            child = site / f"{form}.onnx"
            grow = [args.offshoot, "grow", ROOT / "models/fashion-vit.onnx", "--no-images", "--heads", "75%", *flags, "-o", child]
            subprocess.run(list(map(str, grow)), check=True, capture_output=True)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = Browser()
        try:
            for form in FORMS:
                page = f"http://127.0.0.1:{server.server_port}/?model={form}.onnx"
                for picture, (name, share) in classified(browser, page, PICTURES).items():
                    best, expected = said_by_onnxruntime(site / f"{form}.onnx", ROOT / "fixtures/fashion-png" / picture)
                    same = name == best and abs(share - expected) < 0.02
                    wrong, count = wrong + (not same), count + 1
                    print(f"{form} {picture}: {name} {share:.2f} %, ONNX Runtime {best} {expected:.2f} %{'' if same else ': WRONG'}")
        finally:
            browser.close()
            server.shutdown()
    print(f"{count - wrong} of {count} answers are right")
    return wrong or not count


def said_by_onnxruntime(model, picture):
    """The best class and its share in percent."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    x = (np.asarray(Image.open(picture).convert("L"), np.float32) / 255 - MEAN) / STD
    (logits,) = session.run(None, {session.get_inputs()[0].name: x[None, None]})
    shares = np.exp(logits[0] - logits[0].max())
    shares *= 100 / shares.sum()
    names = json.loads(session.get_modelmeta().custom_metadata_map["offshoot.classes"])
    return names[shares.argmax()], float(shares.max())


if __name__ == "__main__":
    sys.exit(main())
