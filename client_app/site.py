"""A site: its private model and data. Here the simulated kind, which holds one part of a public data set."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from client_app.training import Samples
from common.config import Config
from common.data.datasets import Dataset
from common.data.simulation import divide
from common.device import resolve_device
from common.models import build_model
from common.params import ParameterVector
from common.seeding import seeded_generator


@dataclass(frozen=True, eq=False)
class Site:
    """One client's key, architecture and samples, held between messages."""

    key: str
    model: nn.Module
    initial_state: dict[str, Tensor]  # the architecture's seeded initialisation: parameters and buffers
    parameters: ParameterVector  # the part of the model that the server generates
    anchor: Tensor  # theta_0 [K]: that part of the seeded initialisation, never sent
    train: Samples
    test: Samples

    def generator(self, seed: int, server_round: int) -> torch.Generator:
        """A generator that depends on the run's seed, this client and the round alone."""
        return seeded_generator(seed, f"{self.key}/{server_round}")


def simulated_site(config: Config, partition_id: int, num_partitions: int) -> Site:
    """Client number `partition_id` of a simulation: an architecture from `models`, a part of the data set.

    Raises UserError for data that is missing or cannot be divided so.
    """
    dataset, parts = _divided_dataset(config, num_partitions)
    device = resolve_device(config.device)
    model = build_model(config.model_of(partition_id), dataset.image_shape, dataset.num_classes, config.seed)
    # Channels last is what PyTorch's convolutions are fastest on, on the CPU as on CUDA.
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    part = parts[partition_id]
    parameters = ParameterVector(model)
    return Site(
        key=str(partition_id),
        model=model,
        initial_state={name: tensor.clone() for name, tensor in model.state_dict().items()},
        parameters=parameters,
        anchor=parameters.read(),
        train=_samples(dataset, part.train, device),
        test=_samples(dataset, part.test, device),
    )


# One data set a worker process, however many clients it plays.
_divided_dataset = lru_cache(maxsize=1)(divide)


def _samples(dataset: Dataset, indices: Tensor, device: torch.device) -> Samples:
    channels = dataset.image_shape[0]
    return Samples(
        images=dataset.read_images(indices).to(device),
        labels=dataset.labels[indices].to(device),
        mean=255 * torch.tensor(dataset.mean, device=device).view(1, channels, 1, 1),
        std=255 * torch.tensor(dataset.std, device=device).view(1, channels, 1, 1),
    )
