"""What an opener of a data set finds, and what several openers need."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from common.errors import UserError

Rows = NDArray[np.int64]
ImageShape = tuple[int, int, int]  # channels, height, width


class ImageSource(Protocol):
    """Images that are decoded on demand, by row."""

    def read(self, rows: Rows) -> Tensor:
        """Return the images of these rows: [k, C, H, W] uint8. Raises UserError for a file that cannot be decoded."""

    def keep(self, rows: Rows) -> "ImageSource":
        """Return the source of these rows alone, renumbered from 0."""


@dataclass(frozen=True, eq=False)
class Opened:
    """What a format's opener finds: labels as stored, not yet checked, and the images' source."""

    labels: NDArray[np.integer[Any]]  # [n]
    class_names: tuple[str, ...]  # () if the files name none
    image_shape: ImageShape
    source: ImageSource
    origin: Path  # of the labels


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images that are in memory, or mapped into it, as they are stored."""

    pixels: NDArray[np.uint8]  # [n, H, W, C]
    finish: Callable[[Tensor], Tensor]  # to the final size; a named function, so that a data set can be pickled

    def read(self, rows: Rows) -> Tensor:
        """See ImageSource."""
        return self.finish(torch.from_numpy(np.ascontiguousarray(self.pixels[rows].transpose(0, 3, 1, 2))))

    def keep(self, rows: Rows) -> "ArrayImages":
        """See ImageSource."""
        return ArrayImages(self.pixels[rows], self.finish)


def as_stored(images: Tensor) -> Tensor:
    """For images that have their final size."""
    return images


def missing(name: str, wanted: str, places: Sequence[Path], remedy: str) -> UserError:
    """The error of a data set whose files are nowhere."""
    where = ", ".join(str(place) for place in places) or "no place, as data-dir is not set"
    return UserError(f"data set {name!r} is missing: looked for {wanted} in {where}; {remedy}.")


def files_at(data_dir: Path | None, suffix: str) -> list[Path]:
    """The files with this suffix that `data-dir` names: itself, or those in it in the order of their names."""
    if data_dir is None:
        return []
    if data_dir.is_dir():
        return sorted(data_dir.glob(f"*{suffix}"))
    return [data_dir] if data_dir.is_file() and data_dir.suffix == suffix else []


def torchvision_download(class_name: str, data_dir: Path | None, arguments: str = "") -> str:
    """The command that has torchvision fetch a data set, as a remedy in a sentence."""
    root = "DATA-DIR" if data_dir is None else data_dir
    call = f"import_torchvision().datasets.{class_name}('{root}', {arguments}download=True)"
    return f'get it with: python -c "from common.data.torchvision_shim import import_torchvision; {call}"'


def decode_image(encoded: Path | io.BytesIO, where: str) -> Image.Image:
    """Decode an image file whole. Raises UserError, which says where it was, for one that cannot be decoded."""
    try:
        image = Image.open(encoded)
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: the image cannot be decoded ({error}).") from error
    return image
