"""Tiny-ImageNet, in the folder of JPEG files that its archive unpacks to."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.data.sources.base import Opened, Rows, decode_image, missing
from common.errors import UserError


@dataclass(frozen=True, eq=False)
class _TinyImages:
    paths: Sequence[Path]

    @property
    def num_bytes(self) -> int:
        return 0  # each file is read for itself

    def read(self, rows: Rows) -> Tensor:
        images = np.empty((len(rows), 32, 32, 3), dtype=np.uint8)
        for position, row in enumerate(rows):
            path = self.paths[row]
            image = decode_image(path, str(path)).convert("RGB")
            images[position] = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
        return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def keep(self, rows: Rows) -> "_TinyImages":
        return _TinyImages([self.paths[row] for row in rows])

    def once(self) -> "_TinyImages":
        return self


def open_tiny_imagenet(data_dir: Path | None, project_dir: Path) -> Opened:
    """The training images, resized to 32 x 32; classes in the order of wnids.txt."""
    places = [] if data_dir is None else [data_dir, data_dir / "tiny-imagenet-200"]
    folder = next((place for place in places if (place / "wnids.txt").is_file()), None)
    if folder is None:
        remedy = "unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there"
        raise missing("tiny-imagenet", "wnids.txt", places, remedy)
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
    return Opened(np.array(labels), tuple(class_names.values()), (3, 32, 32), _TinyImages(paths), folder)
