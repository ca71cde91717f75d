"""MH-pFedHN's client (paper, Algorithm 1, ClientUpdate): train the weights that came, return delta = sent - trained.

With `anchor`, the model starts at theta_0 + theta_i, where theta_0 is the architecture's seeded initialisation; delta
is the same, so the server need not know.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from client_app.methods.base import Task, Vectors
from client_app.site import GeneratedModel, Site
from client_app.training import all_finite
from common.protocol import DELTA, THETA

KEPT = "kept"  # name in the client's store


def incoming(site: Site) -> Mapping[str, int]:
    """theta_i [K]."""
    return {THETA: site.personal.parameters.size}


def load(task: Task) -> None:
    """Write theta_i, beside the batch-norm statistics and layers that this client has kept."""
    task.site.personal.load(task.vectors[THETA], task.instructions.anchor, task.store.load(KEPT))


def train(task: Task) -> tuple[float, Vectors]:
    """Train; keep here what stays here, return delta_i."""
    return train_and_keep(task, task.site.personal, lambda: task.train(task.site.personal.model), KEPT)


def train_and_keep(
    task: Task, generated: GeneratedModel, training: Callable[[], float], kept_as: str
) -> tuple[float, Mapping[str, Tensor]]:
    """Run `training` on a model that has been loaded; return its loss and how far the generated part moved."""
    sent = generated.parameters.read()
    loss = training()
    delta = sent - generated.parameters.read()
    kept = generated.kept()
    # A round that diverged is lost for the server, and must not stay in what is kept either.
    if all_finite([delta, *kept.values()]):
        task.store.save(kept_as, kept)
    return loss, {DELTA: delta}
