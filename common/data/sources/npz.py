"""A user's own images in a NumPy file."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from common.data.sources.base import ArrayImages, Opened, as_stored, files_at, missing
from common.errors import UserError


def open_npz(data_dir: Path | None, project_dir: Path) -> Opened:
    """Arrays `images`, uint8 [n, H, W] or [n, H, W, C], and `labels`, whole numbers [n]."""
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
    return Opened(labels, (), (channels, height, width), ArrayImages(images, as_stored), path)
