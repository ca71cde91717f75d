"""A site: its private model and data. Here the simulated kind, which holds one part of a public data set.

`site_file.py` makes the other kind, of what an operator brings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from client_app.privacy import Privacy
from client_app.samples import ImageSamples, Samples
from client_app.store import State
from client_app.training import CountCorrect, Criterion, argmax_correct
from common.config import MODELS, Config, split
from common.data.datasets import Dataset
from common.data.simulation import divide
from common.device import resolve_device
from common.errors import ProtocolError, UserError
from common.models import build_model
from common.params import ParameterVector
from common.seeding import seeded_generator
from common.variants import VARIANTS, Variant


class GeneratedModel:
    """A model of which the server generates the parameters, or a part of them.

    What is not generated stays here: layers kept local, which are trained; frozen layers, which keep their seeded
    initialisation; and buffers, such as batch-norm statistics.

    Parameters
    ----------
    model: at its seeded initialisation, on the device.
    keep_local, freeze: shell-style patterns of parameter names.

    Raises UserError for a pattern that matches nothing, and when nothing is left to generate.
    """

    def __init__(self, model: nn.Module, keep_local: tuple[str, ...] = (), freeze: tuple[str, ...] = ()) -> None:
        try:
            self.parameters = ParameterVector(model, exclude=keep_local + freeze)
            frozen = ParameterVector(model, include=freeze).names if freeze else ()
        except (ValueError, TypeError) as error:
            raise UserError(f"keep-local and freeze do not fit the model: {error}.") from error
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.model = model
        self.initial_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.anchor = self.parameters.read()  # theta_0 [K]: the seeded initialisation of what is generated, never sent
        not_kept = {id(model.get_parameter(name)) for name in (*self.parameters.names, *frozen)}
        # With the second names of parameters that layers share, which are in the state too.
        aliases = {name for name, each in model.named_parameters(remove_duplicate=False) if id(each) in not_kept}
        self._kept = self.initial_state.keys() - aliases

    def load(self, theta: Tensor, anchor: bool, kept: State) -> None:
        """Write theta [K], on top of theta_0 if `anchor`, beside what this client has kept."""
        theta = theta.to(self.anchor)
        self.model.load_state_dict(self.initial_state | kept)
        self.parameters.write(self.anchor + theta if anchor else theta)

    def kept(self) -> State:
        """What stays with the client from round to round."""
        return {name: tensor for name, tensor in self.model.state_dict().items() if name in self._kept}


@dataclass(frozen=True, eq=False)
class Site:
    """One client's key, architecture and samples, held between messages."""

    key: str
    personal: GeneratedModel
    train: Samples
    test: Samples
    group: str = ""  # opaque label that it sends, so that clients of its architecture may share a head
    # Builds the public global model of this name for the site's data; None: the site does not deploy it.
    build_global: Callable[[str], GeneratedModel] | None = None
    loss: Criterion = functional.cross_entropy
    correct: CountCorrect = argmax_correct
    privacy: Privacy | None = None  # None: what is sent is not noised

    def global_model(self, name: str) -> GeneratedModel:
        """The public global model. Raises ProtocolError when the site does not deploy it or does not know it."""
        if self.build_global is None:
            raise ProtocolError("not-deployed", "this client does not deploy the global model")
        if name not in MODELS:
            raise ProtocolError("malformed", f"global-model is {name[:40]!r}, but must be one of {', '.join(MODELS)}")
        return self.build_global(name)

    def generator(self, seed: int, server_round: int, purpose: str = "") -> torch.Generator:
        """A generator that depends on the run's seed, this client, the round and the purpose alone."""
        return seeded_generator(seed, f"{self.key}/{server_round}{purpose}")


def simulated_site(config: Config, partition_id: int, num_nodes: int) -> Site:
    """Client number `partition_id` of a simulation: an architecture from `models`, a part of the data set.

    Raises UserError for data that is missing or cannot be divided so, and for layer patterns that do not fit.
    """
    num_parts = config.num_parts(num_nodes)
    dataset, parts = _divided_dataset(config, num_parts)
    device = resolve_device(config.device)
    name = config.model_of(partition_id, num_parts)
    variant = VARIANTS.get(name, Variant())

    @cache
    def build(architecture: str, keep_local: tuple[str, ...] = (), freeze: tuple[str, ...] = ()) -> GeneratedModel:
        model = build_model(architecture, dataset.image_shape, dataset.num_classes, config.seed)
        # Channels last is what PyTorch's convolutions are fastest on, on the CPU as on CUDA.
        model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return GeneratedModel(model, keep_local, freeze)

    part = parts[partition_id]
    keep_local, freeze = variant.keep_local + split(config.keep_local), variant.freeze + split(config.freeze)
    return Site(
        key=str(partition_id),
        personal=build(name.partition("/")[0], keep_local, freeze),
        train=_samples(dataset, part.train, device),
        test=_samples(dataset, part.test, device),
        group=_group(name, config.seed) if config.heads == "by-architecture" else "",
        build_global=build if _deploys_global_model(config, partition_id, num_parts) else None,
        privacy=_privacy(config),
    )


# One data set a worker process, however many clients it plays.
_divided_dataset = lru_cache(maxsize=1)(divide)


def _group(architecture: str, seed: int) -> str:
    """A label that tells clients of one architecture from others, but not which architecture it is."""
    return f"{seeded_generator(seed, f'group/{architecture}').initial_seed():x}"


def _deploys_global_model(config: Config, partition_id: int, num_parts: int) -> bool:
    """Whether this client is in the share `gd-fraction` (appendix C.10) of the trained clients, or of the held-out."""
    num_trained = num_parts - config.held_out
    first, count = (0, num_trained) if partition_id < num_trained else (num_trained, config.held_out)
    order = torch.randperm(count, generator=seeded_generator(config.seed, "gd-fraction"))
    return partition_id - first in order[: round(config.gd_fraction * count)]


def _privacy(config: Config) -> Privacy | None:
    if not config.clipping_norm:
        return None
    return Privacy(config.clipping_norm, config.noise_multiplier, config.privacy_delta, is_secret=False)


def _samples(dataset: Dataset, indices: Tensor, device: torch.device) -> ImageSamples:
    channels = dataset.image_shape[0]
    return ImageSamples(
        images=dataset.read_images(indices).to(device),
        labels=dataset.labels[indices].to(device),
        mean=255 * torch.tensor(dataset.mean, device=device).view(1, channels, 1, 1),
        std=255 * torch.tensor(dataset.std, device=device).view(1, channels, 1, 1),
    )
