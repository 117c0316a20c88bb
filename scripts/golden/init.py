#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "scipy==1.18.1"]
# ///
"""Numbers that the initialisations of `offshoot grow --init` are checked against, computed by NumPy and SciPy.

    python scripts/golden/init.py        writes fixtures/init/golden.json

Selection follows "Initializing Models with Larger Ones" (Xu et al., 2311.18823), lines come from numpy.linalg.lstsq, and the
resampling from scipy.fft's orthonormal n-dimensional cosine transforms.
"""
import json
import math
import pathlib

import numpy
import scipy.fft

random = numpy.random.default_rng(17)


def listed(array):
    return [round(float(x), 7) for x in numpy.asarray(array).ravel()]


def select(t, s):
    if t % s == 0:
        return list(range(0, t, t // s))
    return [int(x) for x in numpy.round(numpy.linspace(0, t - 1, s))]


def line(layers, elements):
    tensors = random.normal(size=(layers, elements)).astype(numpy.float32).round(4)
    places = numpy.arange(layers) / layers
    design = numpy.stack([numpy.ones(layers), places], axis=1)
    (a, b), *_ = numpy.linalg.lstsq(design, tensors.astype(numpy.float64), rcond=None)
    return {"tensors": [listed(t) for t in tensors], "places": listed(places), "a": listed(a), "b": listed(b)}


def resample(source, target):
    data = random.normal(size=source).astype(numpy.float32).round(4)
    spectrum = scipy.fft.dctn(data.astype(numpy.float64), type=2, norm="ortho")
    kept = numpy.zeros(target)
    low = tuple(slice(min(n, m)) for n, m in zip(source, target))
    kept[low] = spectrum[low]
    result = scipy.fft.idctn(kept, type=2, norm="ortho") * math.sqrt(math.prod(target) / math.prod(source))
    return {"from": source, "to": target, "data": listed(data), "result": listed(result)}


golden = {
    "select": [{"t": t, "s": s, "indices": select(t, s)} for t, s in [(12, 4), (12, 12), (7, 3), (10, 4), (384, 192), (24, 18), (5, 1), (8, 5), (64, 48), (3, 2)]],
    "line": line(5, 6),
    "resample": [resample(s, t) for s, t in [([4, 6, 5], [2, 3, 5]), ([3, 4, 6], [5, 6, 4]), ([2, 8], [2, 5]), ([3, 1, 4], [6, 1, 8])]],
}
path = pathlib.Path(__file__).resolve().parents[2] / "fixtures/init/golden.json"
path.parent.mkdir(exist_ok=True)
path.write_text(json.dumps(golden) + "\n")
