"""A simulated site: one part of a data set, and an architecture; either may be public or a user's own.

A worker process of a simulation plays many clients, one message at a time. What it holds does not grow with their
number: the division of the data set, one model an architecture, and samples up to a limit or, of a user's own data, all
of them once.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from client_app.privacy import Privacy
from client_app.samples import ImageSamples, Samples
from client_app.site.first_batch import default_correct, default_loss, function_on, try_first_batch
from client_app.site.model_checks import generated
from client_app.site.sample_cache import SampleCache, Splits
from client_app.site.shared_samples import forget_shared_samples, on_device, part_of
from client_app.site.site import GeneratedModel, Place, Site
from common.config import Config
from common.data.datasets import Dataset
from common.data.own import OwnSource
from common.data.simulation import Division, DivisionKey, divide_by, division_key
from common.device import resolve_device
from common.errors import UserError
from common.factories import IN_THE_WORKING_FOLDER, Factory
from common.inputs import ImageShape, InputShape, is_image_shape
from common.methods import built_in
from common.models import build_model
from common.seeding import seeded, seeded_generator
from common.settings import Noised
from common.text import split
from common.variants import VARIANTS, Variant

# Of samples a process. CIFAR-100 as a whole has 184 MB, so that with the usual data sets every client is decoded once
# a process; of Tiny-ImageNet's 1.4 GB, times the number of worker processes, more would push out what trains.
SAMPLE_BYTES = 256 * 2**20
# A process keeps so many divisions, each with the numbers of its samples: runs that are compared differ in a few seeds.
_DIVISIONS = 8
# A process keeps so many models of one seed, each with its initialisation and its anchor; more architectures than that
# take turns.
_MODELS = 32


def simulated_site(config: Config, partition_id: int, num_nodes: int) -> Site:
    """Client number `partition_id` of a simulation: an architecture from `models`, a part of the data set.

    Its models are those of all clients of its architecture in this process: they must be loaded before every use.
    Raises UserError for data that is missing or cannot be divided so, for layer patterns that do not fit, and for code
    of a user's own that cannot be imported or fails.
    """
    num_parts = config.num_parts(num_nodes)
    key = division_key(config, num_parts)
    division = _division(key)
    dataset = division.dataset
    device = resolve_device(config.device)
    name = config.model_of(partition_id, num_parts)
    _keep_models_of(config.seed)
    of_run = (dataset.input_shape, dataset.num_classes, config.seed, device)
    train, validation, test = _splits(key, partition_id, device, channels_last=not _is_own(name))
    return Site(
        key=str(partition_id),
        personal=_shared_model("personal", *of_run, name, *_patterns(config, name)),
        train=train,
        validation=validation if len(validation) else None,
        test=test,
        group=_group(name, config.seed),
        build_global=partial(_shared_model, "global", *of_run) if dataset.has_classes_of_images else None,
        loss=_own_function("loss", config.loss, device) or default_loss,
        correct=_own_function("correct", config.correct, device) or default_correct,
        privacy=_privacy(config),
        foreign_methods=frozenset({config.halves.client_name} - {*built_in()}),
        place=_place(config, partition_id, num_parts),
        built_by=_built_by(str(partition_id), name, division),
    )


def check_models(config: Config) -> None:
    """Build each model of this simulation once; with code of the user's own, try each on a first batch of a client.

    Raises UserError for patterns that do not fit a model, and models, data, loss and count that do not fit together.
    """
    config = replace(config, device="cpu")  # no other is needed to find what is wrong
    first: dict[str, int] = {}  # architecture -> the first client that has it
    for client in range(config.num_clients):
        first.setdefault(config.model_of(client, config.num_clients), client)
    dataset = _division(division_key(config, config.num_clients)).dataset
    has_own = set(config.own_code) - {config.method}
    for name, client in sorted(first.items()):
        if has_own:
            _try(simulated_site(config, client, config.num_nodes), name, config, dataset)
        else:
            # What comes with this project fits together, but for patterns, which need no image decoded.
            model = build_model(name.partition("/")[0], dataset.input_shape, dataset.num_classes, config.seed)
            generated(model, f"model {name!r}", *_patterns(config, name))


def forget_clients() -> None:
    """Let go of all that is kept from one client to the next."""
    for kept in (_division, _shared_model, _own_function):
        kept.cache_clear()
    _samples.clear()
    forget_shared_samples()


def _try(site: Site, name: str, config: Config, dataset: Dataset) -> None:
    """Raise UserError unless a client's model, data, loss and count fit together, and a global model's as well."""
    targets = dataset.labels
    if targets is None and isinstance(dataset.source, OwnSource):
        targets = dataset.source.known_targets
    with seeded(0):
        try_first_batch(
            site.personal.model,
            (site.train, site.test),
            site.loss,
            site.correct,
            _sizes_of_global_model(config, dataset),
            called=f"model {name!r}",
            global_key="global-model",
            all_targets=targets,
        )


def _sizes_of_global_model(config: Config, dataset: Dataset) -> tuple[ImageShape, int] | None:
    """Image shape and number of classes, if clients deploy a global model. Raises UserError if these data suit none."""
    name = config.method_settings.get("global-model")
    if not name or not config.method_settings.get("gd-fraction"):
        return None
    try:
        build_model(str(name), dataset.input_shape, dataset.num_classes, config.seed)
    except UserError as error:
        raise UserError(f"global-model: {error}") from error
    assert is_image_shape(dataset.input_shape)
    assert dataset.num_classes is not None
    return dataset.input_shape, dataset.num_classes


# By what they follow from: a process plays all clients of a run, and may play several runs that are compared.
_division = lru_cache(maxsize=_DIVISIONS)(divide_by)

_samples = SampleCache(SAMPLE_BYTES)


@lru_cache(maxsize=1)
def _keep_models_of(seed: int) -> None:
    """Let go of the models of any other seed: runs that are compared would leave one an architecture and seed."""
    _shared_model.cache_clear()


@lru_cache(maxsize=_MODELS)
def _shared_model(
    # A client holds both at once, and they may be of one architecture.
    role: Literal["personal", "global"],
    input_shape: InputShape,
    num_classes: int | None,
    seed: int,
    device: torch.device,
    name: str,
    keep_local: tuple[str, ...] = (),
    freeze: tuple[str, ...] = (),
) -> GeneratedModel:
    model = build_model(name.partition("/")[0], input_shape, num_classes, seed)
    # Channels last is what PyTorch's convolutions are fastest on, on the CPU as on CUDA.
    order = torch.preserve_format if _is_own(name) else torch.channels_last
    model = model.to(device=device, memory_format=order)  # type: ignore[call-overload]
    return generated(model, f"model {name!r}", keep_local, freeze)


@lru_cache
def _own_function(key: str, name: str, device: torch.device) -> Callable[..., Any] | None:
    """The loss or the count that the user names; None where none is named."""
    return function_on(Factory(key, name, remedy=IN_THE_WORKING_FOLDER), device) if name else None


def _is_own(model: str) -> bool:
    return ":" in model


def _patterns(config: Config, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The patterns of layers that a name in `models` has kept local, and frozen."""
    variant = VARIANTS.get(name, Variant())
    return variant.keep_local + split(config.keep_local), variant.freeze + split(config.freeze)


def _built_by(key: str, name: str, division: Division) -> dict[str, object]:
    dataset, normalisation = division.dataset, division.normalisation
    if _is_own(name):
        built: dict[str, object] = {"factory": name, "args": [dataset.input_shape, dataset.num_classes]}
    else:
        built = {"architecture": name.partition("/")[0]}
    if is_image_shape(dataset.input_shape):
        built |= {"image-shape": dataset.input_shape}
    if normalisation is not None:
        built |= {"mean": normalisation.mean, "std": normalisation.std}
    classes = {"num-classes": dataset.num_classes, "class-names": dataset.class_names} if dataset.num_classes else {}
    return {"client": key, "model": name, **built, **classes}


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


def _splits(key: DivisionKey, client: int, device: torch.device, channels_last: bool) -> tuple[Samples, ...]:
    """What the client trains, validates and tests on."""
    division = _division(key)
    source, part = division.dataset.source, division.parts[client]
    if isinstance(source, OwnSource):
        of_client = partial(part_of, source, division.normalisation, device, channels_last)
        return of_client(part.train), of_client(part.validation), of_client(part.test)
    read = partial(_read_samples, division, client, device, channels_last)
    return _samples.get((key, client, device, channels_last), read)


def _read_samples(division: Division, client: int, device: torch.device, channels_last: bool) -> Splits:
    dataset, part = division.dataset, division.parts[client]
    assert dataset.labels is not None
    assert division.normalisation is not None
    labels, mean_and_std = dataset.labels, on_device(division.normalisation, device)

    def read(indices: Tensor) -> ImageSamples:
        images = dataset.read_images(indices).to(device)
        return ImageSamples(images, labels[indices].to(device), *mean_and_std, channels_last)

    return read(part.train), read(part.validation), read(part.test)
