# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.5.5", "pillow==13.0.0"]
# ///
"""Writes fixtures/resize: a photograph-like picture and what Pillow's resize makes of it.

The tests of `src/data/transforms/preprocess.rs` compare Offshoot's resize with these. Needs numpy and pillow; run from the
repository root: python scripts/golden/resize.py
"""

from pathlib import Path

import numpy
from PIL import Image

FOLDER = Path("fixtures/resize")
WIDTH, HEIGHT = 160, 120
GOLDENS = {
    "down-bicubic": ((57, 43), Image.Resampling.BICUBIC),
    "down-bilinear": ((57, 43), Image.Resampling.BILINEAR),
    "down-lanczos": ((57, 43), Image.Resampling.LANCZOS),
    "down-nearest": ((57, 43), Image.Resampling.NEAREST),
    "up-bicubic": ((224, 168), Image.Resampling.BICUBIC),
    "up-bilinear": ((224, 168), Image.Resampling.BILINEAR),
}


def picture() -> Image.Image:
    """A gradient sky, noise whose power falls with frequency as in photographs, and a few hard edges."""
    random = numpy.random.default_rng(20240601)
    y, x = numpy.mgrid[0:HEIGHT, 0:WIDTH]
    frequency = numpy.hypot(numpy.fft.fftfreq(HEIGHT)[:, None], numpy.fft.fftfreq(WIDTH)[None, :])
    frequency[0, 0] = 1.0
    planes = []
    for channel in range(3):
        spectrum = numpy.fft.fft2(random.standard_normal((HEIGHT, WIDTH))) / frequency**1.6
        noise = numpy.real(numpy.fft.ifft2(spectrum))
        plane = 90 + 50 * channel * (1 - y / HEIGHT) + 30 * x / WIDTH + 45 * noise / noise.std()
        disc = numpy.hypot(x - 110, y - 45) < 25
        plane[disc] = (250, 225, 20)[channel]
        plane[80:, 20:34] = (5, 25, 60)[channel]
        plane[90:, 60:100] = numpy.where((x + y)[90:, 60:100] % 6 < 3, 255, 0)
        planes.append(plane)
    return Image.fromarray(numpy.clip(numpy.stack(planes, axis=-1), 0, 255).astype(numpy.uint8))


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    source = picture()
    source.save(FOLDER / "source.png", optimize=True)
    source.convert("L").save(FOLDER / "source-grey.png", optimize=True)
    for name, (size, resample) in GOLDENS.items():
        source.resize(size, resample).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
