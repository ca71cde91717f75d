"""The labelled image data sets of section 4.1 of the paper, a user's own images in Parquet or NumPy files, and whatever
a user's own function has loaded.

Opening a data set reads its labels, and whose its samples are where the files say so; images are decoded only for the
samples that are asked for, so that a partition costs no decoding and a client decodes its own share alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.data.normalisation import Normalisation
from common.data.own import OwnSource, load_own
from common.data.sources.base import ImageSource, Opened, Rows
from common.data.sources.cifar import open_cifar
from common.data.sources.idx import open_emnist, open_fashion_mnist
from common.data.sources.npz import open_npz
from common.data.sources.parquet import open_parquet
from common.data.sources.tiny_imagenet import open_tiny_imagenet
from common.errors import UserError
from common.inputs import ImageShape, InputShape, is_image_shape


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labels in memory, images on demand; or what a user's own function has loaded, in memory as it is."""

    name: str
    labels: Tensor | None  # [n] int64; None: the targets are no classes
    num_classes: int | None  # None: without classes
    class_names: tuple[str, ...]
    input_shape: InputShape  # of one sample; of images after padding or resizing
    normalisation: Normalisation | None  # as published; None: to be measured on the images that are trained on
    source: ImageSource | OwnSource
    origin: Path  # of the labels; of data of a user's own the data folder
    owners: Tensor | None = None  # [n] int64, places in `owner_names`; None: the files do not say
    owner_names: tuple[str, ...] = ()  # in order; where samples were left out, some may have none left
    is_test: Tensor | None = None  # [n] bool, the data's own split; None: they have none

    @property
    def called(self) -> str:
        """What sentences call it: the place of its files, or the function that has loaded it."""
        return self.name if isinstance(self.source, OwnSource) else str(self.origin)

    @property
    def image_shape(self) -> ImageShape | None:
        """Channels, height and width of uint8 images, which are normalised; None for all other inputs."""
        is_images = not isinstance(self.source, OwnSource) or self.source.is_images
        return self.input_shape if is_images and is_image_shape(self.input_shape) else None

    @property
    def has_classes_of_images(self) -> bool:
        """Whether a public architecture can be built for it."""
        return is_image_shape(self.input_shape) and self.num_classes is not None

    def limited(self, max_samples_per_class: int, seed: int) -> "Dataset":
        """The same with at most so many samples of each class, chosen at random; files and class names are shared.

        Args:
            max_samples_per_class: > 0; all are kept of a class that has fewer.
            seed: of the choice, >= 0; no global random state is read or changed.

        Raises UserError for data without classes.
        """
        if self.labels is None:
            raise UserError(
                f"max-samples-per-class is {max_samples_per_class}, but {self.called} gives no classes: set it to 0, "
                "or return targets that are whole numbers, one a sample."
            )
        rows = _choose_of_each_class(self.labels.numpy(), max_samples_per_class, seed)
        kept = torch.from_numpy(rows)
        return replace(
            self,
            labels=self.labels[kept],
            source=self.source.keep(rows),
            owners=None if self.owners is None else self.owners[kept],
            is_test=None if self.is_test is None else self.is_test[kept],
        )

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


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is opened; None is known only from the user's files."""

    num_classes: int | None
    image_shape: ImageShape | None
    mean: tuple[float, ...] | None  # None: measured
    std: tuple[float, ...] | None  # None: measured
    opener: Callable[[Path | None, Path], Opened]  # data folder, project folder


DATASETS: dict[str, DatasetInfo] = {
    # 0.2860 and 0.3530 of the 28 x 28 images, diluted by the black border.
    "fashion-mnist": DatasetInfo(10, (1, 32, 32), (0.2190,), (0.3318,), open_fashion_mnist),
    "cifar10": DatasetInfo(
        10, (3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), partial(open_cifar, "CIFAR10")
    ),
    "cifar100": DatasetInfo(
        100, (3, 32, 32), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), partial(open_cifar, "CIFAR100")
    ),
    "emnist-byclass": DatasetInfo(62, (1, 32, 32), (0.5,), (0.5,), open_emnist),
    "tiny-imagenet": DatasetInfo(
        200, (3, 32, 32), (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), open_tiny_imagenet
    ),
    "parquet": DatasetInfo(None, None, None, None, open_parquet),
    "npz": DatasetInfo(None, None, None, None, open_npz),
}


def open_dataset(name: str, data_dir: Path | None, *, project_dir: Path) -> Dataset:
    """Open a data set: find its files, read and check its labels.

    Args:
        name: a key of DATASETS, or `module:name` of a user's own function.
        data_dir: the user's data folder, or the file itself for "parquet" and "npz"; None: none is set.
        project_dir: the folder that holds this project, whose data/fashion-mnist comes with it.

    Raises:
        UserError: the name is unknown, files are missing or damaged, labels do not fit the classes, or a function
            does not return what it must.
    """
    if ":" in name:
        return _loaded(name, project_dir if data_dir is None else data_dir)
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

    return Dataset(
        name=name,
        labels=torch.from_numpy(labels),
        num_classes=num_classes,
        class_names=opened.class_names or tuple(str(label) for label in range(num_classes)),
        input_shape=opened.image_shape,
        normalisation=Normalisation(info.mean, info.std) if info.mean and info.std else None,
        source=opened.source,
        origin=opened.origin,
        owners=None if opened.owners is None else torch.from_numpy(opened.owners),
        owner_names=opened.owner_names,
        is_test=None if opened.is_test is None else torch.from_numpy(opened.is_test),
    )


def _loaded(name: str, data_dir: Path) -> Dataset:
    own = load_own(name, data_dir)
    return Dataset(
        name=name,
        labels=own.labels,
        num_classes=None if own.labels is None else len(own.class_names),
        class_names=own.class_names,
        input_shape=own.input_shape,
        normalisation=None,
        source=OwnSource(own.split),
        origin=data_dir,
        owners=None if own.owners is None else torch.from_numpy(own.owners),
        owner_names=own.owner_names,
        is_test=None if own.is_test is None else torch.from_numpy(own.is_test),
    )


def _choose_of_each_class(labels: Rows, count: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))
