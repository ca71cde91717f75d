"""MH-pFedHN's client (paper, Algorithm 1, ClientUpdate): train the weights that came, return delta = sent - trained.

With `anchor`, the model starts at theta_0 + theta_i, where theta_0 is the architecture's seeded initialisation; delta
is the same, so the server need not know.
"""

from collections.abc import Mapping

from client_app.methods.base import Task, Vectors
from client_app.site import Site
from client_app.training import all_finite
from common.protocol import DELTA, THETA

_BUFFERS = "buffers"


def incoming(site: Site) -> Mapping[str, int]:
    """theta_i [K]."""
    return {THETA: site.parameters.size}


def load(task: Task) -> None:
    """Write theta_i, beside the batch-norm statistics that this client has kept."""
    site = task.site
    theta = task.vectors[THETA].to(site.anchor)
    start = site.anchor + theta if task.instructions.anchor else theta
    site.model.load_state_dict(site.initial_state | task.store.load(_BUFFERS))
    site.parameters.write(start)


def train(task: Task) -> tuple[float, Vectors]:
    """Train; keep the batch-norm statistics here, return delta_i."""
    site = task.site
    sent = site.parameters.read()
    loss = task.train()
    delta = sent - site.parameters.read()
    buffers = dict(site.model.named_buffers())
    # A round that diverged is lost for the server, and must not stay in the statistics either.
    if all_finite([delta, *buffers.values()]):
        task.store.save(_BUFFERS, buffers)
    return loss, {DELTA: delta}
