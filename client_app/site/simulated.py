"""A simulated site: one part of a public data set, and a public architecture.

A worker process of a simulation plays many clients, one message at a time. What it holds does not grow with their
number: the division of the data set, one model an architecture, and samples up to a limit.
"""

from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor

from client_app.privacy import Privacy
from client_app.samples import ImageSamples
from client_app.site.sample_cache import SampleCache, Splits
from client_app.site.site import GeneratedModel, Place, Site
from common.config import Config
from common.data.datasets import Dataset
from common.data.partition import ClientIndices
from common.data.simulation import divide
from common.device import resolve_device
from common.errors import UserError
from common.methods import built_in
from common.models import ImageShape, build_model
from common.seeding import seeded_generator
from common.settings import Noised
from common.text import split
from common.variants import VARIANTS, Variant

# Of samples a process. CIFAR-100 as a whole has 184 MB, so that with the usual data sets every client is decoded once
# a process; of Tiny-ImageNet's 1.4 GB, times the number of worker processes, more would push out what trains.
_SAMPLE_BYTES = 256 * 2**20
# A process keeps so many models, each with its initialisation and its anchor; more architectures than that take turns.
_MODELS = 32


def simulated_site(config: Config, partition_id: int, num_nodes: int) -> Site:
    """Client number `partition_id` of a simulation: an architecture from `models`, a part of the data set.

    Its models are those of all clients of its architecture in this process: they must be loaded before every use.
    Raises UserError for data that is missing or cannot be divided so, and for layer patterns that do not fit.
    """
    num_parts = config.num_parts(num_nodes)
    dataset, parts = _divided_dataset(config, num_parts)
    device = resolve_device(config.device)
    name = config.model_of(partition_id, num_parts)
    of_run = (dataset.image_shape, dataset.num_classes, config.seed, device)
    train, test = _samples.get(
        (config, num_parts, partition_id), partial(_read_samples, dataset, parts[partition_id], device)
    )
    return Site(
        key=str(partition_id),
        personal=_shared_model("personal", *of_run, *_architecture(config, name)),
        train=train,
        test=test,
        group=_group(name, config.seed),
        build_global=partial(_shared_model, "global", *of_run),
        privacy=_privacy(config),
        foreign_methods=frozenset({config.halves.client_name} - {*built_in()}),
        place=_place(config, partition_id, num_parts),
        built_by=_built_by(str(partition_id), name, dataset),
    )


def check_models(config: Config, dataset: Dataset) -> None:
    """Build each model of this simulation once. Raises UserError for patterns that do not fit one."""
    for name in sorted({config.model_of(client, config.num_clients) for client in range(config.num_clients)}):
        try:
            architecture, keep_local, freeze = _architecture(config, name)
            model = build_model(architecture, dataset.image_shape, dataset.num_classes, config.seed)
            GeneratedModel(model, keep_local, freeze)
        except UserError as error:
            raise UserError(f"model {name!r}: {error}") from error


# One data set a worker process, however many clients it plays.
_divided_dataset = lru_cache(maxsize=1)(divide)

_samples = SampleCache(_SAMPLE_BYTES)


@lru_cache(maxsize=_MODELS)
def _shared_model(
    # A client holds both at once, and they may be of one architecture.
    role: Literal["personal", "global"],
    image_shape: ImageShape,
    num_classes: int,
    seed: int,
    device: torch.device,
    architecture: str,
    keep_local: tuple[str, ...] = (),
    freeze: tuple[str, ...] = (),
) -> GeneratedModel:
    model = build_model(architecture, image_shape, num_classes, seed)
    # Channels last is what PyTorch's convolutions are fastest on, on the CPU as on CUDA.
    model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return GeneratedModel(model, keep_local, freeze)


def _architecture(config: Config, name: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """What a name in `models` stands for: an architecture, and the patterns of layers kept local and frozen."""
    variant = VARIANTS.get(name, Variant())
    keep_local, freeze = variant.keep_local + split(config.keep_local), variant.freeze + split(config.freeze)
    return name.partition("/")[0], keep_local, freeze


def _built_by(key: str, name: str, dataset: Dataset) -> dict[str, object]:
    return {
        "client": key,
        "model": name,
        "architecture": name.partition("/")[0],
        "image-shape": dataset.image_shape,
        "num-classes": dataset.num_classes,
        "class-names": dataset.class_names,
        "mean": dataset.mean,
        "std": dataset.std,
    }


def _group(architecture: str, seed: int) -> str:
    """A label that tells clients of one architecture from others, but not which architecture it is."""
    return f"{seeded_generator(seed, f'group/{architecture}').initial_seed():x}"


def _place(config: Config, partition_id: int, num_parts: int) -> Place:
    """Among the trained clients, which come first, or among the held-out ones."""
    num_trained = num_parts - config.held_out
    if partition_id < num_trained:
        return Place(partition_id, num_trained, config.seed)
    return Place(partition_id - num_trained, config.held_out, config.seed)


def _privacy(config: Config) -> Privacy | None:
    noised = config.settings(Noised)
    if not noised.clipping_norm:
        return None
    return Privacy(noised.clipping_norm, noised.noise_multiplier, noised.privacy_delta, is_secret=False)


def _read_samples(dataset: Dataset, part: ClientIndices, device: torch.device) -> Splits:
    channels = dataset.image_shape[0]
    mean = 255 * torch.tensor(dataset.mean, device=device).view(1, channels, 1, 1)
    std = 255 * torch.tensor(dataset.std, device=device).view(1, channels, 1, 1)

    def read(indices: Tensor) -> ImageSamples:
        return ImageSamples(dataset.read_images(indices).to(device), dataset.labels[indices].to(device), mean, std)

    return read(part.train), read(part.test)
