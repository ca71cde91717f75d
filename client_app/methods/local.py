"""Local training's client: the model is its own and stays on its own disk."""

from collections.abc import Mapping

from client_app.methods.base import Task, Vectors
from client_app.site import Site
from client_app.training import all_finite

_MODEL = "model"


def incoming(site: Site) -> Mapping[str, int]:
    """No vectors."""
    return {}


def load(task: Task) -> None:
    """Go on where the last round ended; start at the seeded initialisation."""
    task.site.personal.load_all(task.store.load(_MODEL))


def train(task: Task) -> tuple[float, Vectors]:
    """Train and keep the model, unless it diverged."""
    model = task.site.personal.model
    loss = task.train(model)
    state = dict(model.state_dict())
    if all_finite(state.values()):
        task.store.save(_MODEL, state)
    return loss, {}
