"""A site: its private model and data, whether simulated (`simulated.py`) or an operator's (`private.py`)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from client_app.privacy import Privacy
from client_app.samples import Samples
from client_app.store import State
from client_app.training import CountCorrect, Criterion, argmax_correct
from common.config import MODELS
from common.errors import ProtocolError, UserError
from common.params import ParameterVector
from common.seeding import seeded_generator


class GeneratedModel:
    """A model of which the server generates the parameters, or a part of them.

    What is not generated stays here: layers kept local, which are trained; frozen layers, which keep their seeded
    initialisation; and buffers, such as batch-norm statistics.

    In a simulation the clients of one architecture take turns with one of these, so every use begins with `load` or
    `load_all`, which leave nothing of what was there before.

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
        self.load_all(kept)
        self.parameters.write(self.anchor + theta if anchor else theta)

    def load_all(self, state: State) -> None:
        """Write a client's own state, over the seeded initialisation of whatever is not in it."""
        self.model.load_state_dict(self.initial_state | state)

    def kept(self) -> State:
        """What stays with the client from round to round."""
        return {name: tensor for name, tensor in self.model.state_dict().items() if name in self._kept}


@dataclass(frozen=True)
class Place:
    """Where a simulated client stands among those that a choice is made from: all trained ones, or all held-out."""

    index: int  # from 0
    count: int
    seed: int  # of the run


@dataclass(frozen=True, eq=False)
class Site:
    """One client: its key, model and samples, and what it takes part in."""

    key: str
    personal: GeneratedModel
    train: Samples
    test: Samples
    group: str = ""  # opaque label of its architecture, so that clients of one architecture may share a head
    # Builds the public global model of this name for the site's data; None: the site does not deploy it.
    build_global: Callable[[str], GeneratedModel] | None = None
    loss: Criterion = functional.cross_entropy
    correct: CountCorrect = argmax_correct
    privacy: Privacy | None = None  # None: what is sent is not noised
    foreign_methods: frozenset[str] = frozenset()  # package.module:Class of what it takes part in beside our methods
    place: Place | None = None  # None: a real site, which decides for itself
    validation: Samples | None = None  # held back from training, to choose settings on; None: nothing is

    @property
    def num_params(self) -> int:
        """K, the number of parameters that the server generates."""
        return self.personal.parameters.size

    @property
    def deploys_global(self) -> bool:
        """Whether the site trains the public global model too."""
        return self.build_global is not None

    def is_among(self, fraction: float, purpose: str) -> bool:
        """Whether this client is in a share of all, drawn from the run's seed and the purpose; a real site always is.

        Trained and held-out clients are drawn apart, so that the share is the same among both.
        """
        if self.place is None:
            return True
        order = torch.randperm(self.place.count, generator=seeded_generator(self.place.seed, purpose))
        return self.place.index in order[: round(fraction * self.place.count)]

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
