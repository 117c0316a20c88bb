"""Writes fixtures/datasets: the same few pictures of Fashion-MNIST in the formats that other programs write data sets in.

The tests of `src/data/labelled.rs` read them. The Parquet file is laid out as Hugging Face's `datasets` does it. Needs numpy,
pillow and pyarrow; run from the repository root: python scripts/make_dataset_fixtures.py
"""

import io
import json
import tarfile
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
from PIL import Image

FOLDER = Path("fixtures/datasets")
COUNT = 7
NAMES = ["top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]


def png(pixels: numpy.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def parquet(pictures: list[bytes], labels: numpy.ndarray) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    schema = pyarrow.schema(
        {"image": image, "label": pyarrow.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = {
        "image": [{"bytes": picture, "path": f"{index}.png"} for index, picture in enumerate(pictures)],
        "label": labels.tolist(),
    }
    table = pyarrow.table(rows, schema=schema)
    pyarrow.parquet.write_table(table, FOLDER / "hugging-face.parquet", row_group_size=3, compression="snappy")


def shard(pictures: list[bytes], labels: numpy.ndarray) -> None:
    with tarfile.open(FOLDER / "webdataset.tar.gz", "w:gz") as archive:
        for index, (picture, label) in enumerate(zip(pictures, labels)):
            # A name that is too long for the first tar format.
            name = f"{'shard' * 30}/{index:06}"
            for extension, content in (("cls", str(label).encode()), ("png", picture)):
                member = tarfile.TarInfo(f"{name}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    # Every 43rd of 300 pictures, which are sorted by class.
    images = numpy.frombuffer(Path("fixtures/fashion-images.idx3-ubyte").read_bytes()[16:], numpy.uint8)
    images = images.reshape(-1, 28, 28)[:: 300 // COUNT][:COUNT]
    labels = numpy.frombuffer(Path("fixtures/fashion-labels.idx1-ubyte").read_bytes()[8:], numpy.uint8)
    labels = labels[:: 300 // COUNT][:COUNT]
    pictures = [png(image) for image in images]
    parquet(pictures, labels)
    shard(pictures, labels)
    numpy.savez_compressed(
        FOLDER / "keras.npz",
        x_train=images[:5],
        y_train=labels[:5].astype(numpy.int64),
        x_test=images[5:],
        y_test=labels[5:].astype(numpy.int64)[:, None],
    )


if __name__ == "__main__":
    main()
