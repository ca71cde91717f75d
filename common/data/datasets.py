"""The labelled image data sets of section 4.1 of the paper, and a user's own images in Parquet or NumPy files.

Opening a data set reads its labels; images are decoded only for the samples that are asked for, so that a partition
costs no decoding and a client decodes its own share alone.
"""

import gzip
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from common.data.torchvision_shim import import_torchvision
from common.errors import UserError

FASHION_MNIST_PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist

Rows = NDArray[np.int64]
ImageShape = tuple[int, int, int]  # channels, height, width


class ImageSource(Protocol):
    """Images that are decoded on demand, by row."""

    def read(self, rows: Rows) -> Tensor:
        """Return the images of these rows: [k, C, H, W] uint8. Raises UserError for a file that cannot be decoded."""

    def keep(self, rows: Rows) -> "ImageSource":
        """Return the source of these rows alone, renumbered from 0."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labels in memory, images on demand."""

    name: str
    labels: Tensor  # [n] int64
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: ImageShape  # after padding or resizing
    mean: tuple[float, ...]  # [C], of pixels in 0..1
    std: tuple[float, ...]  # [C], of pixels in 0..1
    source: ImageSource

    def read_images(self, indices: Tensor) -> Tensor:
        """Decode these samples and no others; nothing is kept for the next call.

        Args:
            indices: [k] int64 on the CPU, each in 0..n-1, in any order.

        Returns:
            [k, C, H, W] uint8, in the order of `indices`.

        Raises:
            UserError: an image cannot be decoded or has another size than the others; names the file and the row.
        """
        return self.source.read(indices.numpy())


@dataclass(frozen=True, eq=False)
class _Opened:
    """What a format's opener finds: labels as stored, not yet checked, and the images' source."""

    labels: NDArray[np.integer[Any]]  # [n]
    class_names: tuple[str, ...]  # () if the files name none
    image_shape: ImageShape
    source: ImageSource
    origin: Path  # of the labels


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is opened; None is known only from the user's files."""

    num_classes: int | None
    image_shape: ImageShape | None
    mean: tuple[float, ...] | None  # None: 0.5 a channel
    std: tuple[float, ...] | None  # None: 0.25 a channel
    opener: Callable[[Path | None, Path], _Opened]  # data folder, project folder


def open_dataset(
    name: str, data_dir: Path | None, *, project_dir: Path, max_samples_per_class: int = 0, seed: int = 0
) -> Dataset:
    """Open a data set: find its files, read and check its labels.

    Args:
        name: a key of DATASETS.
        data_dir: the user's data folder, or the file itself for "parquet" and "npz"; None: none is set.
        project_dir: the folder that holds this project, whose data/fashion-mnist comes with it.
        max_samples_per_class: > 0: keep so many of each class (all, where there are fewer), chosen at random.
        seed: of that choice, >= 0; no global random state is read or changed.

    Raises:
        UserError: the name is unknown, files are missing or damaged, or labels do not fit the classes.
    """
    if name not in DATASETS:
        raise UserError(f"dataset is {name!r}, but must be one of {', '.join(DATASETS)}.")
    info = DATASETS[name]
    opened = info.opener(data_dir, project_dir)
    if len(opened.labels) == 0:
        raise UserError(f"{opened.origin} holds no samples, so data set {name!r} is empty.")
    labels = opened.labels.astype(np.int64)
    num_classes = info.num_classes or len(opened.class_names) or int(labels.max()) + 1
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        allowed = f"0..{num_classes - 1}" if num_classes > 0 else "0 or more"
        raise UserError(
            f"{opened.origin}: sample {outside[0]} has label {labels[outside[0]]}, but must have {allowed}."
        )

    source = opened.source
    if max_samples_per_class > 0:
        kept = _choose_of_each_class(labels, max_samples_per_class, seed)
        labels, source = labels[kept], source.keep(kept)
    channels = opened.image_shape[0]
    return Dataset(
        name=name,
        labels=torch.from_numpy(labels),
        num_classes=num_classes,
        class_names=opened.class_names or tuple(str(label) for label in range(num_classes)),
        image_shape=opened.image_shape,
        mean=info.mean or (0.5,) * channels,
        std=info.std or (0.25,) * channels,
        source=source,
    )


def _choose_of_each_class(labels: Rows, count: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def _missing(name: str, wanted: str, places: Sequence[Path], remedy: str) -> UserError:
    where = ", ".join(str(place) for place in places) or "no place, as data-dir is not set"
    return UserError(f"data set {name!r} is missing: looked for {wanted} in {where}; {remedy}.")


# Images in one array: IDX files, CIFAR, npz


@dataclass(frozen=True, eq=False)
class _ArrayImages:
    pixels: NDArray[np.uint8]  # [n, H, W, C]
    finish: Callable[[Tensor], Tensor]  # to the final size; a named function, so that a data set can be pickled

    def read(self, rows: Rows) -> Tensor:
        return self.finish(torch.from_numpy(np.ascontiguousarray(self.pixels[rows].transpose(0, 3, 1, 2))))

    def keep(self, rows: Rows) -> "_ArrayImages":
        return _ArrayImages(self.pixels[rows], self.finish)


def _as_stored(images: Tensor) -> Tensor:
    return images


def _pad_to_32(images: Tensor) -> Tensor:  # [k, 1, 28, 28] -> [k, 1, 32, 32]
    return functional.pad(images, (2, 2, 2, 2))


def _upright_resize_to_32(images: Tensor) -> Tensor:  # [k, 1, 28, 28] -> [k, 1, 32, 32]
    if len(images) == 0:  # interpolate refuses it
        return images.new_empty(0, 1, 32, 32)
    # EMNIST's files store every image with rows and columns swapped.
    return functional.interpolate(images.transpose(2, 3).contiguous(), (32, 32), mode="bilinear")


def _open_fashion_mnist(data_dir: Path | None, project_dir: Path) -> _Opened:
    given = [] if data_dir is None else [data_dir, data_dir / "fashion-mnist", data_dir / "FashionMNIST" / "raw"]
    places = [*given, project_dir / "data" / "fashion-mnist", FASHION_MNIST_PACKAGE_FOLDER]
    opened = _open_idx_images(places, ("train", "t10k"), _pad_to_32, _FASHION_MNIST_CLASSES)
    if opened is None:
        wanted = "train-images-idx3-ubyte or t10k-images-idx3-ubyte (plain or .gz)"
        raise _missing("fashion-mnist", wanted, places, "get it with: sudo apt install dataset-fashion-mnist")
    return opened


def _open_emnist(data_dir: Path | None, project_dir: Path) -> _Opened:
    places = [] if data_dir is None else [data_dir, data_dir / "EMNIST" / "raw"]
    opened = _open_idx_images(places, ("emnist-byclass-train",), _upright_resize_to_32, _EMNIST_CLASSES)
    if opened is None:
        wanted = "emnist-byclass-train-images-idx3-ubyte (plain or .gz)"
        remedy = _download_command("EMNIST", data_dir, "split='byclass', ")
        raise _missing("emnist-byclass", wanted, places, remedy)
    return opened


def _open_idx_images(
    places: Sequence[Path], prefixes: Sequence[str], finish: Callable[[Tensor], Tensor], class_names: tuple[str, ...]
) -> _Opened | None:
    """Open the first pair of image and label files there is; within a folder, the first prefix's."""
    for folder in places:
        for prefix in prefixes:
            images_path = _plain_or_gz(folder / f"{prefix}-images-idx3-ubyte")
            labels_path = _plain_or_gz(folder / f"{prefix}-labels-idx1-ubyte")
            if images_path is None:
                continue
            if labels_path is None:
                raise UserError(f"{images_path} has no labels beside it: put {prefix}-labels-idx1-ubyte.gz there.")
            pixels = _read_idx(images_path, dimensions=3)
            labels = _read_idx(labels_path, dimensions=1)
            if pixels.shape[1:] != (28, 28):
                raise UserError(f"{images_path} holds images of {pixels.shape[1]} x {pixels.shape[2]}, not of 28 x 28.")
            if len(pixels) != len(labels):
                raise UserError(f"{images_path} holds {len(pixels)} images, but {labels_path} {len(labels)} labels.")
            return _Opened(labels, class_names, (1, 32, 32), _ArrayImages(pixels[..., None], finish), labels_path)
    return None


def _plain_or_gz(path: Path) -> Path | None:
    return next((each for each in (path, path.with_name(path.name + ".gz")) if each.is_file()), None)


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes: 0, 0, type 8, number of dimensions, each size as 4 bytes big-endian, the data."""
    try:
        if path.suffix == ".gz":
            content = np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8)
        else:
            # EMNIST's training images are 550 MB, of which a client needs a few thousand.
            content = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): it is damaged, fetch it again.") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4].tolist() != [0, 0, 8, dimensions]:
        raise UserError(f"{path} is no IDX file of bytes in {dimensions} dimension(s): fetch it again.")
    shape = [int(size) for size in content[4:header].view(">u4")]
    if len(content) - header != int(np.prod(shape, dtype=np.int64)):
        raise UserError(f"{path} should hold {shape} bytes, but has {len(content) - header}: fetch it again.")
    return content[header:].reshape(shape)


def _open_cifar(class_name: str, data_dir: Path | None, project_dir: Path) -> _Opened:
    datasets = import_torchvision().datasets
    torchvision_class = getattr(datasets, class_name)
    download = _download_command(class_name, data_dir)
    if data_dir is None or not (data_dir / torchvision_class.base_folder).is_dir():
        places = [] if data_dir is None else [data_dir]
        raise _missing(class_name.lower(), f"the folder {torchvision_class.base_folder}", places, download)
    folder = data_dir / torchvision_class.base_folder
    try:
        data = torchvision_class(data_dir, train=True, download=False)
    except RuntimeError as error:
        # torchvision's error does not say which of its files failed the check.
        meta = (torchvision_class.meta["filename"], torchvision_class.meta["md5"])
        for file_name, md5 in (*torchvision_class.train_list, *torchvision_class.test_list, meta):
            if not datasets.utils.check_integrity(folder / file_name, md5):
                state = "is damaged" if (folder / file_name).exists() else "is missing"
                raise UserError(f"{folder / file_name} {state}: remove {folder}, then {download}.") from error
        raise
    return _Opened(
        np.asarray(data.targets), tuple(data.classes), (3, 32, 32), _ArrayImages(data.data, _as_stored), folder
    )


def _download_command(class_name: str, data_dir: Path | None, arguments: str = "") -> str:
    root = "DATA-DIR" if data_dir is None else data_dir
    call = f"import_torchvision().datasets.{class_name}('{root}', {arguments}download=True)"
    return f'get it with: python -c "from common.data.torchvision_shim import import_torchvision; {call}"'


def _open_npz(data_dir: Path | None, project_dir: Path) -> _Opened:
    files = _files_at(data_dir, ".npz")
    remedy = "set data-dir to a .npz file with the arrays images and labels"
    if not files:
        raise _missing("npz", "a .npz file", [] if data_dir is None else [data_dir], remedy)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{data_dir} holds {len(files)} .npz files ({names}): set data-dir to one of them.")
    path = files[0]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("images", "labels") if name in file.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as .npz without pickled objects ({error}).") from error
    if len(arrays) < 2:
        raise UserError(f"{path} holds the arrays {', '.join(file.files)}, but must hold images and labels.")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"{path}: images is {images.dtype} {list(images.shape)}, but must be uint8 [n, H, W] or [n, H, W, C]."
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise UserError(f"{path}: labels is {labels.dtype} {list(labels.shape)}, but must be integers [{len(images)}].")
    if images.ndim == 3:
        images = images[..., None]
    height, width, channels = images.shape[1:]
    return _Opened(labels, (), (channels, height, width), _ArrayImages(images, _as_stored), path)


def _files_at(data_dir: Path | None, suffix: str) -> list[Path]:
    if data_dir is None:
        return []
    if data_dir.is_dir():
        return sorted(data_dir.glob(f"*{suffix}"))
    return [data_dir] if data_dir.is_file() and data_dir.suffix == suffix else []


# Encoded images: Tiny-ImageNet, Parquet


def _decode(encoded: Path | io.BytesIO, where: str) -> Image.Image:
    try:
        image = Image.open(encoded)
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: the image cannot be decoded ({error}).") from error
    return image


@dataclass(frozen=True, eq=False)
class _TinyImages:
    paths: Sequence[Path]

    def read(self, rows: Rows) -> Tensor:
        images = np.empty((len(rows), 32, 32, 3), dtype=np.uint8)
        for position, row in enumerate(rows):
            path = self.paths[row]
            image = _decode(path, str(path)).convert("RGB")
            images[position] = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
        return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def keep(self, rows: Rows) -> "_TinyImages":
        return _TinyImages([self.paths[row] for row in rows])


def _open_tiny_imagenet(data_dir: Path | None, project_dir: Path) -> _Opened:
    places = [] if data_dir is None else [data_dir, data_dir / "tiny-imagenet-200"]
    folder = next((place for place in places if (place / "wnids.txt").is_file()), None)
    if folder is None:
        remedy = "unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there"
        raise _missing("tiny-imagenet", "wnids.txt", places, remedy)
    wnids = (folder / "wnids.txt").read_text(encoding="utf-8").split()
    if len(wnids) != 200:
        raise UserError(
            f"{folder / 'wnids.txt'} lists {len(wnids)} classes, but Tiny-ImageNet has 200: unpack it again."
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, wnid in enumerate(wnids):
        images_dir = folder / "train" / wnid / "images"
        names = sorted(n for n in os.listdir(images_dir) if n.endswith(".JPEG")) if images_dir.is_dir() else []
        if not names:
            raise UserError(f"{images_dir} holds no .JPEG files: unpack Tiny-ImageNet again.")
        paths.extend(images_dir / name for name in names)
        labels.extend([label] * len(names))
    class_names = dict(zip(wnids, wnids, strict=True))
    if (folder / "words.txt").is_file():
        for line in (folder / "words.txt").read_text(encoding="utf-8").splitlines():
            wnid, _, words = line.partition("\t")
            if wnid in class_names:
                class_names[wnid] = words.split(",")[0]  # its synonyms follow
    return _Opened(np.array(labels), tuple(class_names.values()), (3, 32, 32), _TinyImages(paths), folder)


@dataclass(frozen=True)
class _RowGroup:
    path: Path
    number: int
    first_row: int  # in the file


@dataclass(frozen=True, eq=False)
class _ParquetImages:
    groups: Sequence[_RowGroup]
    group_starts: Rows  # [groups], over all files
    rows: Rows  # [n], over all files
    image_shape: ImageShape
    # Row group -> its column of encoded images, kept once read: a worker decodes for many clients.
    columns: dict[_RowGroup, Any] = field(default_factory=dict)

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

    def _encoded(self, group: _RowGroup, rows: Rows) -> list[bytes]:
        import pyarrow

        if group not in self.columns:
            self.columns[group] = _read_column(group)
        return [_encoded_bytes(value) for value in self.columns[group].take(pyarrow.array(rows)).to_pylist()]

    def _pixels(self, encoded: bytes, where: str) -> NDArray[np.uint8]:  # [H, W, C]
        image = _decode(io.BytesIO(encoded), where)
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


def _encoded_bytes(value: Any) -> bytes:
    """Return a cell's bytes; Hugging Face stores {bytes, path}. An empty cell has none, and fails to decode."""
    return (value["bytes"] if isinstance(value, dict) else value) or b""


def _open_parquet(data_dir: Path | None, project_dir: Path) -> _Opened:
    import pyarrow
    import pyarrow.parquet

    paths = _files_at(data_dir, ".parquet")
    if data_dir is None or not paths:
        remedy = "set data-dir to a .parquet file, or a folder of them, with the columns image and label"
        raise _missing("parquet", "*.parquet", [] if data_dir is None else [data_dir], remedy)
    groups: list[_RowGroup] = []
    group_sizes: list[int] = []
    labels: list[NDArray[np.integer[Any]]] = []
    class_names: tuple[str, ...] | None = None
    for path in paths:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                schema = file.schema_arrow
                _check_parquet_columns(schema, path)
                label_column = file.read(columns=["label"]).column("label")
                sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{path} cannot be read as Parquet ({error}).") from error
        if label_column.null_count:
            raise UserError(f"{path} has {label_column.null_count} empty values in column label: each row needs one.")
        stored_names = (schema.metadata or {}).get(b"classes", b"").decode()
        names = tuple(stored_names.split(",")) if stored_names else ()
        if class_names is not None and names != class_names:
            raise UserError(f"{path} names other classes in its metadata than {paths[0]}: they are no single data set.")
        class_names = names
        first_rows = np.cumsum([0, *sizes])
        groups.extend(_RowGroup(path, number, int(first_rows[number])) for number in range(len(sizes)))
        group_sizes.extend(sizes)
        labels.append(label_column.to_numpy())
    all_labels = np.concatenate(labels)
    group_starts = np.cumsum([0, *group_sizes], dtype=np.int64)[:-1]
    rows = np.arange(len(all_labels), dtype=np.int64)
    image_shape = _first_image_shape([path for path, part in zip(paths, labels, strict=True) if len(part)])
    source = _ParquetImages(groups, group_starts, rows, image_shape)
    return _Opened(all_labels, class_names or (), image_shape, source, data_dir)


def _check_parquet_columns(schema: Any, path: Path) -> None:
    import pyarrow

    if not {"image", "label"} <= set(schema.names):
        raise UserError(f"{path} has the columns {', '.join(schema.names)}, but must have image and label.")
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
    image = _decode(io.BytesIO(_encoded_bytes(value)), where)
    return (_channels(image, where), image.height, image.width)


_FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_EMNIST_CLASSES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")

DATASETS: dict[str, DatasetInfo] = {
    # 0.2860 and 0.3530 of the 28 x 28 images, diluted by the black border.
    "fashion-mnist": DatasetInfo(10, (1, 32, 32), (0.2190,), (0.3318,), _open_fashion_mnist),
    "cifar10": DatasetInfo(
        10, (3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), partial(_open_cifar, "CIFAR10")
    ),
    "cifar100": DatasetInfo(
        100, (3, 32, 32), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), partial(_open_cifar, "CIFAR100")
    ),
    "emnist-byclass": DatasetInfo(62, (1, 32, 32), (0.5,), (0.5,), _open_emnist),
    "tiny-imagenet": DatasetInfo(
        200, (3, 32, 32), (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), _open_tiny_imagenet
    ),
    "parquet": DatasetInfo(None, None, None, None, _open_parquet),
    "npz": DatasetInfo(None, None, None, None, _open_npz),
}
