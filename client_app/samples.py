"""What a model is trained and tested on: one split of a site's data, read a batch at a time, on the device."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate

from common.data.acceptance import Split, Tensors
from common.inputs import Inputs, map_inputs, tensors_of


class Samples(Protocol):
    """One split."""

    @property
    def device(self) -> torch.device:
        """Where batches are, and indices must be."""

    @property
    def num_bytes(self) -> int:
        """What they take of their own, beside what other samples or the data set hold anyway."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """Inputs and targets of these samples, each with one row a sample. `indices` [b] int64."""


@dataclass(frozen=True, eq=False)
class ImageSamples:
    """Images, kept on the device as uint8 and normalised there, a batch at a time."""

    images: Tensor  # [n, C, H, W] uint8
    labels: Tensor  # [n] int64
    mean: Tensor  # [1, C, 1, 1] float32, of values 0 to 255
    std: Tensor  # [1, C, 1, 1] float32
    # What convolutions are fastest on; a model of a user's own may ask for a view, which only the plain order has.
    channels_last: bool = True

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.labels.device

    @property
    def num_bytes(self) -> int:
        """What images and labels take."""
        return self.images.nbytes + self.labels.nbytes

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [b, C, H, W] float32 and labels [b] of these samples."""
        images = (self.images[indices].float() - self.mean) / self.std
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=order), self.labels[indices]


@dataclass(frozen=True, eq=False)
class TensorSamples:
    """Tensors as the model takes them, kept on the device."""

    inputs: Inputs  # each tensor [n, ...]
    targets: Tensor  # [n, ...]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.targets.device

    @property
    def num_bytes(self) -> int:
        """What inputs and targets take."""
        return sum(tensor.nbytes for tensor in (*tensors_of(self.inputs), self.targets))

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """The rows of these samples."""
        return map_inputs(self.inputs, lambda tensor: tensor[indices]), self.targets[indices]


@dataclass(frozen=True, eq=False)
class DatasetSamples:
    """A torch Dataset of (input, target), read by index for every batch and never held as a whole."""

    dataset: Any  # with __len__ and __getitem__; PyTorch's Dataset class is not a must
    device: torch.device

    @property
    def num_bytes(self) -> int:
        """Nothing: the Dataset holds what there is."""
        return 0

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """These samples, collated as PyTorch's DataLoader does it."""
        inputs, targets = default_collate([self.dataset[index] for index in indices.tolist()])
        return map_inputs(inputs, lambda tensor: tensor.to(self.device)), targets.to(self.device)


@dataclass(frozen=True, eq=False)
class PartOf:
    """Some of the samples that several clients share: each has its rows, and nothing is copied."""

    samples: Samples
    rows: Tensor  # [k] int64, on their device

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.samples.device

    @property
    def num_bytes(self) -> int:
        """What the rows take."""
        return self.rows.nbytes

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """These samples of the part."""
        return self.samples.batch(self.rows[indices])


def samples_of(split: Split, device: torch.device) -> TensorSamples | DatasetSamples:
    """Samples of a user's own: tensors go to the device as a whole, what a Dataset holds a batch at a time."""
    if isinstance(split, Tensors):
        return TensorSamples(map_inputs(split.inputs, lambda tensor: tensor.to(device)), split.targets.to(device))
    return DatasetSamples(split.dataset, device)
