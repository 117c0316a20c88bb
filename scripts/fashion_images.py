"""Cuts the test images that the tests use out of Fashion-MNIST.

Makes fixtures/fashion-images.idx3-ubyte and fixtures/fashion-labels.idx1-ubyte (the first 30 test images of each class, in the order
of the test set) and fixtures/fashion-png/ (the first two of each class; a name is the index in the IDX file, then the class).

    scripts/fetch_models.sh --fashion-mnist
    python scripts/fashion_images.py

Fashion-MNIST: Zalando Research, MIT licence. Needs numpy and pillow.
"""

import argparse
import struct
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = "t-shirt-top trouser pullover dress coat sandal shirt sneaker bag ankle-boot".split()


def idx(path):
    raw = path.read_bytes()
    rank = raw[3]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank]))


def write_idx(path, array):
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(".cache/fashion-mnist"))
    parser.add_argument("--output", type=Path, default=Path("fixtures"))
    args = parser.parse_args()

    images, labels = idx(args.data / "t10k-images-idx3-ubyte"), idx(args.data / "t10k-labels-idx1-ubyte")
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:30] for c in range(10)]))
    images, labels = images[chosen], labels[chosen]
    args.output.mkdir(parents=True, exist_ok=True)
    write_idx(args.output / "fashion-images.idx3-ubyte", images)
    write_idx(args.output / "fashion-labels.idx1-ubyte", labels)
    png = args.output / "fashion-png"
    png.mkdir(exist_ok=True)
    for c, name in enumerate(NAMES):
        for i in np.flatnonzero(labels == c)[:2]:
            Image.fromarray(images[i]).save(png / f"{i:03}-{name}.png", optimize=True)
    print(f"{len(images)} images, of each class {np.bincount(labels).tolist()}")


if __name__ == "__main__":
    main()
