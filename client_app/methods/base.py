"""What the client half of a method provides; each is a module with these functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from client_app.site import Site
from client_app.store import ClientStore
from client_app.training import Loss, SGDSettings, train
from common.protocol import Instructions

Vectors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Task:
    """A request of the server's, as a method sees it."""

    site: Site
    store: ClientStore
    instructions: Instructions
    vectors: Vectors  # received, checked, on the CPU

    def train(self, model: nn.Module, loss: Loss | None = None, purpose: str = "") -> float:
        """Train a model on the site's samples as instructed; return the mean loss, the site's own where none is given.

        `purpose` tells the random numbers of several trainings in one round apart.
        """
        told, criterion = self.instructions, self.site.loss
        settings = SGDSettings(
            epochs=told.local_epochs,
            batch_size=told.batch_size,
            lr=told.client_lr,
            momentum=told.client_momentum,
            weight_decay=told.client_weight_decay,
            max_grad_norm=told.max_grad_norm,
        )
        generator = self.site.generator(told.seed, told.server_round, purpose)
        return train(
            model,
            self.site.train,
            settings,
            generator,
            loss or (lambda outputs, targets, indices: criterion(outputs, targets)),
        )


class ClientMethod(Protocol):
    """The client half of a method."""

    def incoming(self, site: Site) -> Mapping[str, int]:
        """Names and lengths of the vectors that the server sends."""

    def load(self, task: Task) -> None:
        """Put the weights that the server means into the site's model."""

    def train(self, task: Task) -> tuple[float, Vectors]:
        """Train what `load` put there; return the mean loss and the vectors for the server."""
