"""A user's own images in a NumPy file."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from common.data.sources.base import (
    ArrayImages,
    Opened,
    Rows,
    as_stored,
    check_spelling,
    files_at,
    missing,
    numbered_owners,
    read_split,
)
from common.errors import UserError

_ARRAYS = ("images", "labels", "owners", "split")


def open_npz(data_dir: Path | None, project_dir: Path) -> Opened:
    """Arrays `images`, uint8 [n, H, W] or [n, H, W, C], and `labels`, whole numbers [n].

    Beside them there may be `owners` [n], whose each sample is, and `split` [n], which samples are for testing.
    """
    files = files_at(data_dir, ".npz")
    remedy = "set data-dir to a .npz file with the arrays images and labels"
    if not files:
        raise missing("npz", "a .npz file", [] if data_dir is None else [data_dir], remedy)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{data_dir} holds {len(files)} .npz files ({names}): set data-dir to one of them.")
    path = files[0]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS if name in file.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as .npz without pickled objects ({error}).") from error
    if not {"images", "labels"} <= arrays.keys():
        raise UserError(f"{path} holds the arrays {', '.join(file.files)}, but must hold images and labels.")
    check_spelling("array", file.files, _ARRAYS, path)
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"{path}: images is {images.dtype} {list(images.shape)}, but must be uint8 [n, H, W] or [n, H, W, C]."
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise UserError(f"{path}: labels is {labels.dtype} {list(labels.shape)}, but must be integers [{len(images)}].")
    for name in ("owners", "split"):
        if name in arrays and arrays[name].shape != images.shape[:1]:
            raise UserError(
                f"{path}: {name} is {arrays[name].dtype} {list(arrays[name].shape)}, but must be one value a sample, "
                f"[{len(images)}]."
            )
    if images.ndim == 3:
        images = images[..., None]
    height, width, channels = images.shape[1:]
    owners: Rows | None = None
    owner_names: tuple[str, ...] = ()
    if "owners" in arrays:
        owners, owner_names = numbered_owners(arrays["owners"], f"{path}: owners")
    return Opened(
        labels,
        (),
        (channels, height, width),
        ArrayImages(images, as_stored),
        path,
        owners,
        owner_names,
        read_split(arrays["split"], f"{path}: split") if "split" in arrays else None,
    )
