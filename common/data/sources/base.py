"""What an opener of a data set finds, and what several openers need."""

import difflib
import io
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from common.errors import UserError
from common.inputs import ImageShape
from common.text import shown

Rows = NDArray[np.int64]


class ImageSource(Protocol):
    """Images that are decoded on demand, by row."""

    @property
    def num_bytes(self) -> int:
        """What a process that reads from it comes to hold of the files in memory of its own, at most."""

    def read(self, rows: Rows) -> Tensor:
        """Return the images of these rows: [k, C, H, W] uint8. Raises UserError for a file that cannot be decoded."""

    def keep(self, rows: Rows) -> "ImageSource":
        """Return the source of these rows alone, renumbered from 0."""

    def once(self) -> "ImageSource":
        """Return a source of the same rows for one reading, which keeps nothing of the files in memory."""


@dataclass(frozen=True, eq=False)
class Opened:
    """What a format's opener finds: labels as stored, not yet checked, and the images' source."""

    labels: NDArray[np.integer[Any]]  # [n]
    class_names: tuple[str, ...]  # () if the files name none
    image_shape: ImageShape
    source: ImageSource
    origin: Path  # of the labels
    owners: Rows | None = None  # [n], places in `owner_names`; None if the files do not say whose a sample is
    owner_names: tuple[str, ...] = ()
    is_test: NDArray[np.bool_] | None = None  # [n]; None if the files have no split of their own


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images that are in memory, or mapped into it, as they are stored."""

    pixels: NDArray[np.uint8]  # [all, H, W, C]
    finish: Callable[[Tensor], Tensor]  # to the final size; a named function, so that a data set can be pickled
    rows: Rows | None = None  # [n], of `pixels`; None: all of them. No copy: sources with other rows share the pixels

    @property
    def num_bytes(self) -> int:
        """See ImageSource. None where a file is mapped, whose pages all processes share."""
        return 0 if _is_mapped(self.pixels) else self.pixels.nbytes

    def read(self, rows: Rows) -> Tensor:
        """See ImageSource."""
        wanted = rows if self.rows is None else self.rows[rows]
        return self.finish(torch.from_numpy(np.ascontiguousarray(self.pixels[wanted].transpose(0, 3, 1, 2))))

    def keep(self, rows: Rows) -> "ArrayImages":
        """See ImageSource."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def once(self) -> "ArrayImages":
        """See ImageSource."""
        return self


def _is_mapped(array: NDArray[Any]) -> bool:
    owner: object = array
    while isinstance(owner, np.ndarray) and not isinstance(owner, np.memmap):
        owner = owner.base
    return isinstance(owner, np.memmap | mmap.mmap)


def as_stored(images: Tensor) -> Tensor:
    """For images that have their final size."""
    return images


def numbered_owners(values: NDArray[Any], where: str) -> tuple[Rows, tuple[str, ...]]:
    """Number the owners of samples, given as text or whole numbers [n].

    Returns:
        [n] int64, and the owners' names in order: that of the alphabet, or of the numbers.

    Raises UserError, which begins with `where`, for what names no owner.
    """
    if values.dtype.kind not in "iuUS":
        raise UserError(f"{where} is {values.dtype}, but must be text or whole numbers, one a sample.")
    names, owners = np.unique(values, return_inverse=True)
    texts = _texts(names, where)
    if "" in texts:
        sample = int(np.flatnonzero(owners == texts.index(""))[0])
        raise UserError(f"{where} is empty for sample {sample}, but must say whose each sample is.")
    return owners.reshape(-1).astype(np.int64), texts


def read_split(values: NDArray[Any], where: str) -> NDArray[np.bool_]:
    """Read the data's own split, [n]: the texts train and test, or true (1) for a test sample, false (0) for another.

    Raises UserError, which begins with `where`, for a value that is neither.
    """
    if values.dtype.kind == "b":
        return values
    if values.dtype.kind not in "iuUS":
        raise UserError(f"{where} is {values.dtype}, but must be text (train or test), or test flags (true or false).")
    names, places = np.unique(values, return_inverse=True)
    meaning = {"train": False, "test": True, "0": False, "1": True}
    texts = _texts(names, where)
    for place, text in enumerate(texts):
        if text not in meaning:
            sample = int(np.flatnonzero(places == place)[0])
            raise UserError(
                f"{where} of sample {sample} is {shown(text)}, but must be train or test, or 0 (train) or 1 (test)."
            )
    return np.array([meaning[text] for text in texts], dtype=np.bool_)[places.reshape(-1)]


def _texts(values: NDArray[Any], where: str) -> tuple[str, ...]:
    try:
        return tuple(value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist())
    except UnicodeDecodeError as error:
        raise UserError(f"{where} holds text that is not UTF-8: save it as text, not as bytes.") from error


def missing(name: str, wanted: str, places: Sequence[Path], remedy: str) -> UserError:
    """The error of a data set whose files are nowhere."""
    where = ", ".join(str(place) for place in places) or "no place, as data-dir is not set"
    return UserError(f"data set {name!r} is missing: looked for {wanted} in {where}; {remedy}.")


def check_spelling(kind: str, names: Sequence[str], known: Sequence[str], path: Path) -> None:
    """Raise UserError for a name that is nearly one of those known which are not there: it would go unread unseen."""
    absent = [name for name in known if name not in names]
    for name in names:
        # Nearer than for a hint: files may hold other things.
        if name not in known and (meant := difflib.get_close_matches(name.lower(), absent, n=1, cutoff=0.79)):
            raise UserError(f"{path} holds {kind} {name!r}, which nobody reads: call it {meant[0]!r}, or leave it out.")


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
