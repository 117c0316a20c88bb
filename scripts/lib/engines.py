# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy"]
# ///
"""Engines that children are deployed to: how each is installed, and how it loads and runs a file.

    python scripts/lib/engines.py install [NAME ...] [--engines .cache/engines]
    .cache/engines/NAME/bin/python scripts/lib/engines.py run NAME INPUT.npy OUTPUTS.npz FILE ... [--rounds N]

`install` makes an environment for each, with the versions below. `run` is called with the Python of that environment: each FILE is loaded
and run on the input, and the outputs of the last are written. With --rounds the files then run in turn so many times, and the milliseconds
of processor time of each run are printed as JSON, one list a file. Every engine keeps to one thread.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
WEB = HERE.parent / "check/web.mjs"


@dataclass(frozen=True)
class Engine:
    """What pip, npm or cargo installs, the version that counts first."""

    title: str
    pins: tuple
    # Whether a file with an open batch is handed over as it is.
    open: bool = False
    # Whether what it depends on is left out: it is not needed to run a file, and large.
    bare: bool = False


ENGINES = {
    "onnxruntime": Engine("ONNX Runtime", ("onnxruntime==1.32.0", "pillow"), open=True),
    "offshoot": Engine("Offshoot's own (tract)", (), open=True),
    "web": Engine("onnxruntime-web", ("onnxruntime-web@1.30.0",), open=True),
    "openvino": Engine("OpenVINO", ("openvino==2026.4.1",), open=True),
    "tract": Engine("tract", ("tract==0.23.9",)),
    "rten": Engine("rten", ("rten=0.27.0",), open=True),
    "opencv4": Engine("OpenCV", ("opencv-python-headless==4.14.0.94",)),
    "opencv5": Engine("OpenCV", ("opencv-python-headless==5.0.0.93",)),
    "mnn": Engine("MNN", ("MNN==3.6.1", "onnx==1.23.2")),
    "ncnn": Engine("pnnx and ncnn", ("ncnn==1.0.20261020", "pnnx==20261020"), bare=True),
    "tvm": Engine("TVM", ("apache-tvm==0.27.0.post1", "onnx==1.23.2")),
    "iree": Engine("IREE", ("iree-base-runtime==3.13.0", "iree-base-compiler==3.13.0", "onnx==1.23.2")),
}


def install(name, engines):
    """Puts an engine into an environment of its own."""
    home = Path(engines, name)
    if name == "web":
        quiet = ["--silent", "--no-audit", "--no-fund"]
        subprocess.run(["npm", "install", *quiet, "--prefix", str(home), *ENGINES[name].pins], check=True)
    elif name == "rten":
        shutil.copytree(HERE / "rten", home, dirs_exist_ok=True)
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=home, check=True)
    elif name != "offshoot":
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin/pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "numpy"], check=True)
        subprocess.run([*pip, *(["--no-deps"] if ENGINES[name].bare else []), *ENGINES[name].pins], check=True)


def version(name, engines, offshoot=None):
    """The version that is installed, or None."""
    home = Path(engines, name)
    if name == "offshoot":
        # A development build has the version of the release before it: what it is made of counts.
        example = offshoot and Path(offshoot).parent / "examples/outputs"
        return hashlib.sha256(example.read_bytes()).hexdigest()[:8] if example and example.exists() else None
    if name == "web":
        package = home / "node_modules/onnxruntime-web/package.json"
        return json.loads(package.read_text())["version"] if package.exists() else None
    if name == "rten":
        return ENGINES[name].pins[0].split("=")[1] if (home / "target/release/rten-outputs").exists() else None
    package = ENGINES[name].pins[0].split("==")[0].lower()
    for found in importlib.metadata.distributions(path=list(map(str, home.glob("lib/python*/site-packages")))):
        if found.metadata["Name"].lower().replace("_", "-") == package:
            return found.version
    return None


def command(name, engines, given, outputs, files, rounds=0, offshoot=None):
    """The command line that runs files in an engine, but under node."""
    more = ["--rounds", str(rounds)] if rounds else []
    if name == "rten":
        return [str(Path(engines, name, "target/release/rten-outputs")), given, outputs, str(rounds), *files]
    if name == "offshoot":
        return [str(Path(offshoot).parent / "examples/outputs"), files[-1], given, outputs]
    python = str(Path(engines, name, "bin/python"))
    return [python, str(Path(__file__).resolve()), "run", name, given, outputs, *files, *more]


def web_command(engines, given, folder, files, rounds=0):
    """The command line that runs files under node, whose outputs web.mjs writes as raw numbers."""
    import numpy as np

    x = np.load(given)
    raw = Path(folder, "input.bin")
    raw.write_bytes(np.ascontiguousarray(x).tobytes())
    taken = [{"name": None, "type": "float32", "dims": x.shape, "file": str(raw)}]
    jobs = [{"model": str(f), "inputs": taken, "outputs": f"{folder}/{at}"} for at, f in enumerate(files)]
    listed = Path(folder, "jobs.json")
    listed.write_text(json.dumps(jobs))
    return ["node", str(WEB), str(Path(engines, "web").resolve()), str(listed), *([str(rounds)] if rounds else [])]


# In the environment of an engine: each loads a file and returns what runs it on an array.


def load_onnxruntime(file, x, folder):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


def load_openvino(file, x, folder):
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    return lambda x: [compiled([x])[output] for output in compiled.outputs]


def load_tract(file, x, folder):
    import tract

    model = tract.onnx().load(file)
    model.set_input_fact(0, ",".join(map(str, x.shape)) + ",f32")
    runnable = model.into_model().into_runnable()
    return lambda x: [output.to_numpy() for output in runnable.run([x])]


def load_opencv(file, x, folder):
    import cv2

    cv2.setNumThreads(1)
    net = cv2.dnn.readNetFromONNX(file)

    def run(x):
        net.setInput(x)
        return net.forward(net.getUnconnectedOutLayersNames())

    return run


def load_mnn(file, x, folder):
    import MNN
    import onnx
    from MNN import expr, nn

    # The converter calls pip, to look for newer versions of itself. What it finds on its path does nothing.
    stand_in = Path(folder, "pip")
    stand_in.write_text("#!/bin/sh\nexit 0\n")
    stand_in.chmod(0o755)
    Path(folder, "pip3").symlink_to(stand_in)
    converted = f"{folder}/model.mnn"
    tool = str(Path(sys.executable).with_name("mnnconvert"))
    told = [tool, "-f", "ONNX", "--modelFile", file, "--MNNModel", converted, "--bizCode", "offshoot"]
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(told, check=True, capture_output=True, env=environment, cwd=folder)
    graph = onnx.load(file).graph
    net = nn.load_module_from_file(converted, [graph.input[0].name], [output.name for output in graph.output])

    def run(x):
        given = expr.placeholder(list(x.shape), expr.NCHW)
        given.write(x)
        return [expr.convert(output, expr.NCHW).read() for output in net.onForward([given])]

    return run


def load_ncnn(file, x, folder):
    import ncnn
    import numpy as np

    copy = shutil.copy(file, f"{folder}/model.onnx")
    shape = "[" + ",".join(map(str, x.shape)) + "]"
    # The script that pip installs imports PyTorch, which the program itself does not need. fp16 is about how the weights
    # are stored, and on by default.
    package = importlib.util.find_spec("pnnx").submodule_search_locations[0]
    subprocess.run([f"{package}/pnnx", copy, f"inputshape={shape}", "fp16=0"], check=True, capture_output=True, cwd=folder)
    net = ncnn.Net()
    net.opt.num_threads = 1
    if net.load_param(f"{folder}/model.ncnn.param") or net.load_model(f"{folder}/model.ncnn.bin"):
        raise RuntimeError("ncnn does not load what pnnx writes")

    def run(x):
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(x[0]).clone())
        outputs = []
        for name in net.output_names():
            code, output = extractor.extract(name)
            if code:
                raise RuntimeError(f"ncnn extracts {name} with code {code}")
            outputs.append(np.array(output)[None])
        return outputs

    return run


def load_tvm(file, x, folder):
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    model = onnx.load(file)
    module = from_onnx(model, shape_dict={model.graph.input[0].name: list(x.shape)}, keep_params_in_input=False)
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())

    def run(x):
        made = machine["main"](tvm.runtime.tensor(x))
        return [one.numpy() for one in ([made] if hasattr(made, "numpy") else made)]

    return run


def load_iree(file, x, folder):
    from iree import runtime

    def tool(name, *arguments):
        subprocess.run([str(Path(sys.executable).with_name(name)), *arguments], check=True, capture_output=True)

    read, compiled = f"{folder}/model.mlir", f"{folder}/model.vmfb"
    tool("iree-import-onnx", file, "-o", read)
    cpu = ["--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu"]
    tool("iree-compile", read, *cpu, "--iree-llvmcpu-target-cpu=host", "-o", compiled)
    module = runtime.load_vm_flatbuffer_file(compiled, driver="local-sync")
    # Beside each function stands one for asynchronous calls, which takes fences too.
    name = next(n for n in module.vm_module.function_names if "$" not in n and not n.startswith("__"))

    def run(x):
        made = module[name](x)
        return [one.to_host() for one in (made if isinstance(made, (list, tuple)) else [made])]

    return run


LOADERS = {
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
    "tract": load_tract,
    "opencv4": load_opencv,
    "opencv5": load_opencv,
    "mnn": load_mnn,
    "ncnn": load_ncnn,
    "tvm": load_tvm,
    "iree": load_iree,
}


def run(name, given, outputs, files, rounds):
    import numpy as np

    x = np.load(given)
    with tempfile.TemporaryDirectory() as folder:
        homes = [Path(folder, str(at)) for at in range(len(files))]
        [home.mkdir() for home in homes]
        loaded = [LOADERS[name](str(Path(file).resolve()), x, str(home)) for file, home in zip(files, homes)]
        for runs in loaded:
            made = [np.array(output, dtype=np.float32) for output in runs(x)]
        np.savez(outputs, *made)
        times = [[] for _ in files]
        for _ in range(rounds):
            for runs, of_file in zip(loaded, times):
                begun = time.process_time()
                runs(x)
                of_file.append(1e3 * (time.process_time() - begun))
        if rounds:
            print(json.dumps(times))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    installs = commands.add_parser("install")
    installs.add_argument("names", nargs="*")
    installs.add_argument("--engines", default=".cache/engines")
    runs = commands.add_parser("run")
    runs.add_argument("name", choices=LOADERS)
    runs.add_argument("input")
    runs.add_argument("outputs")
    runs.add_argument("files", nargs="+")
    runs.add_argument("--rounds", type=int, default=0)
    args = parser.parse_args()
    if args.command == "run":
        return run(args.name, args.input, args.outputs, args.files, args.rounds)
    for name in args.names or ENGINES:
        install(name, args.engines)
        print(f"{name}: {version(name, args.engines)}", flush=True)


if __name__ == "__main__":
    main()
