"""Fashion-MNIST and EMNIST ByClass, in the IDX files in which they are published."""

import gzip
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from common.data.sources.base import ArrayImages, Opened, missing, torchvision_download
from common.errors import UserError

FASHION_MNIST_PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist

_FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_EMNIST_CLASSES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def open_fashion_mnist(data_dir: Path | None, project_dir: Path) -> Opened:
    """Of the user, of this project, or of Debian's package, in this order; padded with black to 32 x 32."""
    given = [] if data_dir is None else [data_dir, data_dir / "fashion-mnist", data_dir / "FashionMNIST" / "raw"]
    places = [*given, project_dir / "data" / "fashion-mnist", FASHION_MNIST_PACKAGE_FOLDER]
    opened = _open_idx_images(places, ("train", "t10k"), _pad_to_32, _FASHION_MNIST_CLASSES)
    if opened is None:
        wanted = "train-images-idx3-ubyte or t10k-images-idx3-ubyte (plain or .gz)"
        raise missing("fashion-mnist", wanted, places, "get it with: sudo apt install dataset-fashion-mnist")
    return opened


def open_emnist(data_dir: Path | None, project_dir: Path) -> Opened:
    """The training images, upright, resized to 32 x 32."""
    places = [] if data_dir is None else [data_dir, data_dir / "EMNIST" / "raw"]
    opened = _open_idx_images(places, ("emnist-byclass-train",), _upright_resize_to_32, _EMNIST_CLASSES)
    if opened is None:
        wanted = "emnist-byclass-train-images-idx3-ubyte (plain or .gz)"
        remedy = torchvision_download("EMNIST", data_dir, "split='byclass', ")
        raise missing("emnist-byclass", wanted, places, remedy)
    return opened


def _open_idx_images(
    places: Sequence[Path], prefixes: Sequence[str], finish: Callable[[Tensor], Tensor], class_names: tuple[str, ...]
) -> Opened | None:
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
            return Opened(labels, class_names, (1, 32, 32), ArrayImages(pixels[..., None], finish), labels_path)
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


def _pad_to_32(images: Tensor) -> Tensor:  # [k, 1, 28, 28] -> [k, 1, 32, 32]
    return functional.pad(images, (2, 2, 2, 2))


def _upright_resize_to_32(images: Tensor) -> Tensor:  # [k, 1, 28, 28] -> [k, 1, 32, 32]
    if len(images) == 0:  # interpolate refuses it
        return images.new_empty(0, 1, 32, 32)
    # EMNIST's files store every image with rows and columns swapped.
    return functional.interpolate(images.transpose(2, 3).contiguous(), (32, 32), mode="bilinear")
