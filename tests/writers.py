"""Images by writers: each draws the same few shapes in a hand of its own, and some draw more than others."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NUM_CLASSES, SIZE = 4, 8


@dataclass(frozen=True)
class Written:
    """What the writers drew, in no order."""

    images: np.ndarray  # [n, 8, 8] uint8, grey
    labels: np.ndarray  # [n]
    owners: np.ndarray  # [n] text
    sizes: dict[str, int]  # samples of each writer, in the order of their names
    is_test: np.ndarray  # [n] bool: a fifth of each writer's, at least one

    def write_npz(self, path: Path, *beside: str) -> Path:
        """With the arrays among `owners` and `split` that are named."""
        further = {"owners": self.owners, "split": np.where(self.is_test, "test", "train")}
        np.savez(path, images=self.images, labels=self.labels, **{name: further[name] for name in beside})
        return path

    def write_parquet(self, path: Path, *beside: str) -> Path:
        """With the columns among `client` and `split` that are named."""
        further = {"client": self.owners.tolist(), "split": self.is_test.tolist()}
        columns = {"image": [_png(image) for image in self.images], "label": self.labels}
        pq.write_table(pa.table(columns | {name: further[name] for name in beside}), path, row_group_size=50)
        return path


def write(num_writers: int = 6, smallest: int = 5, seed: int = 0) -> Written:
    """Samples of so many writers: from `smallest` on, each writer a few more than the one before."""
    rng = np.random.default_rng(seed)
    names = [f"writer-{number:02}" for number in range(num_writers)]
    sizes = {name: smallest + 7 * place for place, name in enumerate(names)}
    shapes = 160 * (rng.random((NUM_CLASSES, SIZE, SIZE)) > 0.5)
    images, labels, owners, is_test = [], [], [], []
    for name, size in sizes.items():
        hand = rng.integers(0, 2, 2), rng.uniform(0.5, 1.0), rng.uniform(0, 40)  # where, how dark, on what paper
        for number in range(size):
            label = int(rng.integers(NUM_CLASSES))
            drawn = hand[1] * np.roll(shapes[label], hand[0], axis=(0, 1)) + hand[2] + rng.uniform(0, 40, (SIZE, SIZE))
            images.append(drawn.astype(np.uint8))
            labels.append(label)
            owners.append(name)
            is_test.append(number < max(size // 5, 1))
    mixed = rng.permutation(len(labels))
    arrays = (np.array(each)[mixed] for each in (images, labels, owners, is_test))
    images, labels, owners, is_test = arrays
    return Written(images, labels, owners, sizes, is_test)


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
