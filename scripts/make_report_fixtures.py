"""Makes fixtures/reports: small files as people hold them, which no crate of the tests writes.

    python3 scripts/make_report_fixtures.py        needs numpy, pillow and pyarrow

pictures/  a scene as JPEG (baseline, progressive, with restart markers, grey, CMYK) and as lossy WebP
parquet/   two pictures and their labels, packed with each codec; pictures that are only named; a structure in a structure
"""

import io
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "fixtures/reports"


def scene(width=40, height=28):
    """Colours that run, a disc, and noise, so that no block is empty."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([6 * x, 9 * y, 255 - 3 * x - 3 * y], -1).astype(float)
    pixels[(x - 22) ** 2 + (y - 12) ** 2 < 60] = (240, 30, 80)
    pixels += np.random.default_rng(0).normal(0, 12, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def pictures():
    folder = FOLDER / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    image = scene()
    image.save(folder / "baseline.jpg", quality=90)
    image.save(folder / "progressive.jpg", quality=90, progressive=True)
    image.save(folder / "restarts.jpg", quality=90, restart_marker_blocks=2)
    image.save(folder / "no-subsampling.jpg", quality=90, subsampling=0, optimize=True)
    image.convert("L").save(folder / "grey.jpg", quality=90)
    image.convert("L").save(folder / "grey-progressive.jpg", quality=90, progressive=True)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=90)
    image.save(folder / "lossy.webp", quality=80)


def parquet():
    folder = FOLDER / "parquet"
    folder.mkdir(parents=True, exist_ok=True)

    def png(red):
        out = io.BytesIO()
        Image.new("RGB", (5, 4), (red, 0, 0)).save(out, "PNG")
        return out.getvalue()

    both = [png(10), png(20)]
    for codec in ("zstd", "lz4", "brotli", "snappy"):
        pq.write_table(pa.table({"image": both, "label": [1, 0]}), folder / f"{codec}.parquet", compression=codec)
    (folder / "red").mkdir(exist_ok=True)
    for red in (10, 20):
        (folder / f"red/{red}.png").write_bytes(png(red))
    names = ["red/10.png", "red/20.png", "red/none.png", "../parquet/red/10.png"]
    pq.write_table(pa.table({"image": names, "label": [1, 0, 1, 0]}), folder / "names.parquet")
    # As `datasets` writes a picture that it did not embed.
    cells = [{"bytes": None, "path": "red/20.png"}, {"bytes": both[0], "path": "gone.png"}, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"image": cells, "label": [1, 0, 1]}), folder / "some-names.parquet")
    deep = [{"image": {"bytes": data, "path": None}, "label": label} for data, label in zip(both, (1, 0))]
    pq.write_table(pa.table({"sample": deep}), folder / "nested.parquet")
    plain = [{"image": data, "label": label} for data, label in zip(both, (1, 0))]
    pq.write_table(pa.table({"sample": plain}), folder / "nested-plain.parquet")


if __name__ == "__main__":
    pictures()
    parquet()
