"""Writes images as the sources of `common/data/sources` read them."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encode(pixels, image_format="WEBP", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **options)
    return file.getvalue()


def lossless(pixels):
    return encode(pixels, "WEBP", lossless=True, exact=True)


def write_parquet(path, images, labels, classes=None, image_type=None, **options):
    table = pa.table({"image": pa.array(images, type=image_type), "label": pa.array(labels, type=pa.int16())})
    if classes is not None:
        table = table.replace_schema_metadata({"classes": ",".join(classes)})
    pq.write_table(table, path, **options)
