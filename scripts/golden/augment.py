# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "pillow==13.0.0", "timm==1.0.31", "torchvision==0.29.2"]
# ///
"""Writes fixtures/augment: a small picture, what Pillow, torchvision and timm make of it, and timm's parameters.

The tests of `src/data/transforms` compare Offshoot's transforms with these. Needs numpy, pillow,
torchvision and timm; run from the repository root: python scripts/golden/augment.py
"""

import json
import random
from pathlib import Path

import numpy
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

FOLDER = Path("fixtures/augment")
FILL = (124, 116, 104)
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# timm's operations with their parameters, which become tiles below each other.
VALUES = [
    ("auto_contrast", []),
    ("equalize", []),
    ("invert", []),
    ("posterize", [1]),
    ("posterize", [4]),
    ("solarize", [26]),
    ("solarize", [256]),
    ("solarize_add", [99]),
    ("color", [0.1]),
    ("color", [1.81]),
    ("contrast", [0.19]),
    ("contrast", [1.9]),
    ("brightness", [0.4]),
    ("brightness", [1.73]),
    ("sharpness", [0.1]),
    ("sharpness", [1.9]),
]
MOVES = [
    ("rotate", [27.0]),
    ("rotate", [-3.7]),
    ("shear_x", [0.27]),
    ("shear_y", [-0.19]),
    ("translate_x_rel", [0.405]),
    ("translate_y_rel", [-0.13]),
]
# Top, left, height, width and size of resized crops.
CROPS = [((3, 5, 18, 11), (24, 32)), ((0, 0, 24, 32), (24, 32)), ((10, 1, 2, 30), (24, 32))]


def tiles(picture: Image.Image):
    fill = FILL if picture.mode == "RGB" else FILL[0]
    for name, arguments in VALUES:
        yield getattr(auto_augment, name)(picture, *arguments)
    for filter in FILTERS.values():
        for name, arguments in MOVES:
            yield getattr(auto_augment, name)(picture, *arguments, fillcolor=fill, resample=filter)
    for crop, size in CROPS:
        yield transforms.resized_crop(picture, *crop, size, InterpolationMode.BICUBIC)
    yield transforms.hflip(picture)
    padded = transforms.pad(picture, 4)
    yield transforms.crop(padded, 1, 7, picture.height, picture.width)


def levels():
    """What timm makes of magnitudes, with either sign: the names, magnitudes, signs and arguments."""
    original = random.random
    for name in auto_augment._RAND_INCREASING_TRANSFORMS:
        function = auto_augment.LEVEL_TO_ARG[name]
        for magnitude in (0.0, 2.6, 9.0, 9.43, 10.0):
            for sign in (1, -1):
                random.random = lambda: 0.0 if sign == 1 else 1.0
                arguments = [] if function is None else list(function(magnitude, {}))
                yield {"name": name, "magnitude": magnitude, "sign": sign, "arguments": arguments}
    random.random = original


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    source = Image.open("fixtures/resize/source.png").resize((32, 24), Image.Resampling.BICUBIC)
    # A narrower range, so that stretching it does something.
    source = source.point([40 + value * 170 // 255 for value in range(256)] * 3)
    for name, picture in (("colour", source), ("grey", source.convert("L"))):
        picture.save(FOLDER / f"{name}.png", optimize=True)
        strip = numpy.concatenate([numpy.asarray(tile) for tile in tiles(picture)])
        Image.fromarray(strip).save(FOLDER / f"{name}-golden.png", optimize=True)
    lines = ",\n".join(json.dumps(level) for level in levels())
    (FOLDER / "levels.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
