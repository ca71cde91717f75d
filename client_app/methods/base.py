"""What a method is, on the client: one function an exchange, and one that puts deployed weights into the model.

The trainer (`client_app/trainer.py`) decodes and checks what came, loads and tests what is deployed, calls the function
named as the exchange, protects and packs what it returns. So a method knows no message of Flower's.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import nn

from client_app.site import GeneratedModel, Site
from client_app.store import ClientStore
from client_app.training import Loss, all_finite, epochs, evaluate, sgd, train
from common import settings
from common.arrays import Arrays
from common.errors import UserError
from common.evaluation import Evaluation
from common.instructions import Instructions
from common.protocol import DELTA
from common.schema import Facts, Schema
from common.settings import LocalTraining

DEPLOY = "deploy"  # the exchange that does nothing but deploy


@dataclass(frozen=True)
class Task:
    """An exchange as a method sees it: what came, and whose it is."""

    site: Site
    store: ClientStore
    instructions: Instructions
    arrays: Arrays  # received, checked, on the CPU

    def train(
        self,
        model: nn.Module,
        settings: LocalTraining,
        loss: Loss | None = None,
        purpose: str = "",
        parameters: Iterable[nn.Parameter] | None = None,
    ) -> float:
        """Train a model on the site's samples by SGD; return the mean loss, the site's own where none is given.

        `purpose` tells the random numbers of several trainings in one round apart; `parameters` are those that move.
        A method whose steps, optimizer or clipping differ calls `client_app.training.train` itself.
        """
        site = self.site
        generator = self.generator(purpose)
        chosen = trainable(model) if parameters is None else list(parameters)
        return train(
            model,
            site.train,
            epochs(len(site.train), settings.batch_size, settings.local_epochs, generator),
            sgd(chosen, settings),
            generator,
            settings.client_max_grad_norm,
            loss or (lambda outputs, targets, indices: site.loss(outputs, targets)),
        )

    def train_generated(self, generated: GeneratedModel, training: Callable[[], float], kept_as: str) -> "Outcome":
        """Run `training` on a loaded model; bring delta = sent - trained of its generated part, keep the rest here."""
        sent = generated.parameters.read()
        loss = training()
        delta = sent - generated.parameters.read()
        kept = generated.kept()
        # A round that diverged is lost for the server, and must not stay in what is kept either.
        if all_finite([delta, *kept.values()]):
            self.store.save(kept_as, kept)
        return Outcome({DELTA: delta}, loss)

    def generator(self, purpose: str = "") -> torch.Generator:
        """Random numbers that follow from the run's seed, this client, the round and the purpose alone."""
        return self.site.generator(self.instructions.seed, self.instructions.server_round, purpose)


@dataclass(frozen=True)
class Outcome:
    """What an exchange brings: arrays for the server, and the mean loss where something was trained."""

    arrays: Arrays = field(default_factory=dict)
    loss: float | None = None


class ClientMethod(ABC):
    """The client half of a method; `self.settings` holds the values of its `Settings`, as the server told them."""

    Settings: ClassVar[type[settings.Settings]] = settings.Settings

    def __init__(self, settings: Any) -> None:
        self.settings: Any = settings

    def facts(self, site: Site) -> Facts:
        """What this client can tell at registration; it is told only what the server half asks for by name."""
        return {}

    def receives(self, exchange: str, site: Site) -> Schema:
        """The arrays that the server sends in an exchange, as the server half's `send`."""
        return {}

    @abstractmethod
    def load(self, task: Task) -> None:
        """Put what was deployed into the site's model. All of its state is set: clients may share a model in turn."""

    def test(self, task: Task) -> Evaluation:
        """Test the model on `task.site.test`: by its own outputs, unless the method decides in another way.

        Called for what `load` put there, with the site's validation samples as its test samples too, and after
        `fine_tune`.
        """
        site = task.site
        return evaluate(site.personal.model, site.test, site.loss, site.correct)

    def fine_tune(self, task: Task) -> None:
        """Train what `load` put there for one epoch, to be tested and then loaded anew (`evaluate-after-training`).

        SGD on the site's own loss, with the method's settings of local training, or their defaults where it has none;
        what else a method adds to the loss when it trains, such as distillation, is left out. Nothing may be saved.
        """
        settings = self.settings if isinstance(self.settings, LocalTraining) else LocalTraining()
        # With random numbers of its own, so that the round's are what they would be without it.
        task.train(task.site.personal.model, replace(settings, local_epochs=1), purpose="/after-training")

    @classmethod
    def exchanges(cls) -> dict[str, Callable[..., Outcome]]:
        """The functions of this class that answer an exchange, by its name: those marked with `exchange`."""
        functions: dict[str, Callable[..., Outcome]] = dict(inspect.getmembers(cls, inspect.isfunction))
        marked = {name: function for name, function in functions.items() if hasattr(function, "exchange")}
        if DEPLOY in marked:
            raise UserError(f"{cls.__name__}.{DEPLOY} is marked as an exchange, but {DEPLOY!r} has none: rename it.")
        return marked


def exchange(function: Callable[[Any, Task], Outcome]) -> Callable[[Any, Task], Outcome]:
    """Mark the function of a client half that answers the exchange of its name."""
    function.exchange = True  # type: ignore[attr-defined]
    return function


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model that are not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
