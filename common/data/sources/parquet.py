"""A user's own encoded images in Parquet files, with columns `image` and `label`, as Hugging Face stores them, and
`client` and `split` where the samples have owners and a split of their own.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from common.data.sources.base import (
    Opened,
    Rows,
    check_spelling,
    decode_image,
    files_at,
    missing,
    numbered_owners,
    read_split,
)
from common.errors import UserError
from common.inputs import ImageShape

_FURTHER = ("client", "split")  # columns that files may have, in this order


@dataclass(frozen=True)
class _RowGroup:
    path: Path
    number: int
    first_row: int  # in the file
    num_bytes: int  # of its encoded images, unpacked


@dataclass(frozen=True, eq=False)
class _ParquetImages:
    groups: Sequence[_RowGroup]
    group_starts: Rows  # [groups], over all files
    rows: Rows  # [n], over all files
    image_shape: ImageShape
    # Row group -> its column of encoded images, kept once read: a worker decodes for many clients. None: not kept.
    columns: dict[_RowGroup, Any] | None = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(group.num_bytes for group in self.groups)

    def read(self, rows: Rows) -> Tensor:
        channels, height, width = self.image_shape
        images = np.empty((len(rows), height, width, channels), dtype=np.uint8)
        wanted = self.rows[rows]
        group_of = np.searchsorted(self.group_starts, wanted, side="right") - 1
        for group_number in np.unique(group_of):
            group = self.groups[group_number]
            positions = np.flatnonzero(group_of == group_number)
            in_group = wanted[positions] - self.group_starts[group_number]
            for position, row, encoded in zip(positions, in_group, self._encoded(group, in_group), strict=True):
                where = f"{group.path}, row {group.first_row + row}"
                images[position] = self._pixels(encoded, where)
        return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def keep(self, rows: Rows) -> "_ParquetImages":
        return replace(self, rows=self.rows[rows])

    def once(self) -> "_ParquetImages":
        return replace(self, columns=None)

    def _encoded(self, group: _RowGroup, rows: Rows) -> list[bytes]:
        import pyarrow

        kept = {} if self.columns is None else self.columns
        if group not in kept:
            kept[group] = _read_column(group)
        return [_encoded_bytes(value) for value in kept[group].take(pyarrow.array(rows)).to_pylist()]

    def _pixels(self, encoded: bytes, where: str) -> NDArray[np.uint8]:  # [H, W, C]
        image = decode_image(io.BytesIO(encoded), where)
        channels, height, width = self.image_shape
        if image.size != (width, height):
            raise UserError(
                f"{where}: the image is {image.width} x {image.height} (width x height), but the first one of the data "
                f"set is {width} x {height}; all must have one size."
            )
        if _channels(image, where) > channels:
            raise UserError(f"{where}: the image has colours, but the first one of the data set is grey; convert one.")
        return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(height, width, channels)


def _channels(image: Image.Image, where: str) -> int:
    if image.mode in ("1", "L", "LA"):
        return 1
    if image.mode in ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        return 3
    raise UserError(f"{where}: the image has pixels of mode {image.mode}, but must have 8 bits a channel, grey or RGB.")


def _read_column(group: _RowGroup) -> Any:
    # Imported where it is used: every message of a deployed client starts a process, most of which read no Parquet.
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(group.path, memory_map=True) as file:
            return file.read_row_group(group.number, columns=["image"]).column("image")
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{group.path} cannot be read as Parquet ({error}).") from error


def _image_bytes(row_group: Any) -> int:
    """Of its column of images, unpacked, as the file's metadata say it."""
    columns = [row_group.column(number) for number in range(row_group.num_columns)]
    return sum(each.total_uncompressed_size for each in columns if each.path_in_schema.split(".")[0] == "image")


def _encoded_bytes(value: Any) -> bytes:
    """Return a cell's bytes; Hugging Face stores {bytes, path}. An empty cell has none, and fails to decode."""
    return (value["bytes"] if isinstance(value, dict) else value) or b""


def open_parquet(data_dir: Path | None, project_dir: Path) -> Opened:
    """One file or all of a folder; `classes` in their metadata may name the classes, separated by commas.

    Beside image and label there may be the columns `client`, whose each sample is, and `split`, which samples are for
    testing.
    """
    import pyarrow
    import pyarrow.parquet

    paths = files_at(data_dir, ".parquet")
    if data_dir is None or not paths:
        remedy = "set data-dir to a .parquet file, or a folder of them, with the columns image and label"
        raise missing("parquet", "*.parquet", [] if data_dir is None else [data_dir], remedy)
    groups: list[_RowGroup] = []
    group_sizes: list[int] = []
    labels: list[NDArray[np.integer[Any]]] = []
    beside: dict[str, list[NDArray[Any]]] = {}  # the values of further columns, by file
    class_names: tuple[str, ...] | None = None
    for path in paths:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                schema = file.schema_arrow
                _check_parquet_columns(schema, path)
                further = [name for name in _FURTHER if name in schema.names]
                table = file.read(columns=["label", *further])
                in_file = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{path} cannot be read as Parquet ({error}).") from error
        for name in ("label", *further):
            if empty := table.column(name).null_count:
                raise UserError(f"{path} has {empty} empty values in column {name}: each row needs one.")
        if path != paths[0] and further != list(beside):
            raise UserError(
                f"{path} has the columns {', '.join(schema.names)}, but {paths[0]} has others: client and split must "
                "be in all files or in none."
            )
        for name in further:
            beside.setdefault(name, []).append(_values_of(table.column(name), f"{path}: column {name}"))
        stored_names = (schema.metadata or {}).get(b"classes", b"").decode()
        names = tuple(stored_names.split(",")) if stored_names else ()
        if class_names is not None and names != class_names:
            raise UserError(f"{path} names other classes in its metadata than {paths[0]}: they are no single data set.")
        class_names = names
        sizes = [group.num_rows for group in in_file]
        first_rows = np.cumsum([0, *sizes])
        groups.extend(
            _RowGroup(path, number, int(first_rows[number]), _image_bytes(group))
            for number, group in enumerate(in_file)
        )
        group_sizes.extend(sizes)
        labels.append(table.column("label").to_numpy())
    all_labels = np.concatenate(labels)
    group_starts = np.cumsum([0, *group_sizes], dtype=np.int64)[:-1]
    rows = np.arange(len(all_labels), dtype=np.int64)
    image_shape = _first_image_shape([path for path, part in zip(paths, labels, strict=True) if len(part)])
    source = _ParquetImages(groups, group_starts, rows, image_shape)
    owners: Rows | None = None
    owner_names: tuple[str, ...] = ()
    if "client" in beside:
        owners, owner_names = numbered_owners(np.concatenate(beside["client"]), f"{data_dir}: column client")
    is_test = read_split(np.concatenate(beside["split"]), f"{data_dir}: column split") if "split" in beside else None
    return Opened(all_labels, class_names or (), image_shape, source, data_dir, owners, owner_names, is_test)


def _values_of(column: Any, where: str) -> NDArray[Any]:  # [n] text, whole numbers, or flags
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(column.type):  # how pandas writes a category
        column = column.cast(column.type.value_type)
    if types.is_string(column.type) or types.is_large_string(column.type):
        return np.array(column.to_pylist(), dtype=np.str_)
    if types.is_integer(column.type) or types.is_boolean(column.type):
        values: NDArray[Any] = column.to_numpy()
        return values
    raise UserError(f"{where} is {column.type}, but must be text, whole numbers or, of a split, test flags.")


def _check_parquet_columns(schema: Any, path: Path) -> None:
    import pyarrow

    if not {"image", "label"} <= set(schema.names):
        raise UserError(f"{path} has the columns {', '.join(schema.names)}, but must have image and label.")
    check_spelling("column", schema.names, ("image", "label", *_FURTHER), path)
    label_type, image_type = schema.field("label").type, schema.field("image").type
    if not pyarrow.types.is_integer(label_type):
        raise UserError(f"{path}: column label is {label_type}, but must be an integer type.")
    if pyarrow.types.is_struct(image_type) and image_type.get_field_index("bytes") >= 0:
        image_type = image_type.field("bytes").type
    if not (pyarrow.types.is_binary(image_type) or pyarrow.types.is_large_binary(image_type)):
        raise UserError(f"{path}: column image is {image_type}, but must be binary or a struct with binary bytes.")


def _first_image_shape(paths: Sequence[Path]) -> ImageShape:
    import pyarrow.parquet

    if not paths:
        return (0, 0, 0)  # no samples: refused by the caller
    # A small buffer, as a whole row group can be all of the data set.
    with pyarrow.parquet.ParquetFile(paths[0], pre_buffer=False, buffer_size=1 << 16) as file:
        value = next(file.iter_batches(batch_size=1, columns=["image"])).column("image")[0].as_py()
    where = f"{paths[0]}, row 0"
    image = decode_image(io.BytesIO(_encoded_bytes(value)), where)
    return (_channels(image, where), image.height, image.width)
