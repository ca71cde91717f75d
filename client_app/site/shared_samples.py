"""Samples of a user's own in a simulation, held once a process: each client has its rows of them, and no copy."""

from functools import lru_cache

import torch
from torch import Tensor

from client_app.samples import ImageSamples, PartOf, Samples, samples_of
from common.data.acceptance import Split, Tensors
from common.data.normalisation import Normalisation
from common.data.own import OwnSource

# That a process keeps on its device: of the data set in use, and of another that it is compared with.
_SHARED = 2


def part_of(
    source: OwnSource,
    normalisation: Normalisation | None,
    device: torch.device,
    channels_last: bool,
    indices: Tensor,
) -> Samples:
    """These samples [k] of a data set, on the device. `normalisation` is that of images, None for all other inputs."""
    rows = source.rows_of(indices).to(device)
    return PartOf(_shared(source.split, normalisation, device, channels_last), rows)


def on_device(normalisation: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [1, C, 1, 1] of values 0 to 255."""
    mean, std = (
        255 * torch.tensor(values, device=device).view(1, -1, 1, 1)
        for values in (normalisation.mean, normalisation.std)
    )
    return mean, std


def forget_shared_samples() -> None:
    """Let go of them."""
    _shared.cache_clear()


@lru_cache(maxsize=_SHARED)
def _shared(split: Split, normalisation: Normalisation | None, device: torch.device, channels_last: bool) -> Samples:
    if normalisation is None:
        return samples_of(split, device)
    assert isinstance(split, Tensors)
    assert isinstance(split.inputs, Tensor)
    images, labels = split.inputs.to(device), split.targets.to(device)
    return ImageSamples(images, labels, *on_device(normalisation, device), channels_last)
