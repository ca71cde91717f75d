"""MH-pFedHN's client (paper, Algorithm 1, ClientUpdate): train the weights that came, return delta = sent - trained.

With `anchor`, the model starts at theta_0 + theta_i, where theta_0 is the architecture's seeded initialisation; delta
is the same, so the server need not know.
"""

from dataclasses import dataclass

from client_app.methods.base import ClientMethod, Outcome, Task, exchange
from client_app.site import Site
from client_app.training import Loss
from common.protocol import THETA
from common.schema import Facts, Schema, Vector
from common.settings import Anchored, Compressed, LocalTraining, Noised

KEPT = "kept"  # name in the client's store


@dataclass(frozen=True, kw_only=True)
class GeneratedTraining(LocalTraining, Anchored, Compressed, Noised):
    """Local training, and how what is sent is shortened and protected."""


class MHpFedHN(ClientMethod):
    """Batch-norm statistics and layers kept local stay here; the rest is generated."""

    Settings = GeneratedTraining
    settings: GeneratedTraining

    def facts(self, site: Site) -> Facts:
        """A label that clients of one architecture have in common, if this one has any."""
        return {"group": site.group} if site.group else {}

    def receives(self, exchange: str, site: Site) -> Schema:
        """theta_i [K]."""
        return {THETA: Vector(site.num_params)}

    def load(self, task: Task) -> None:
        """Write theta_i, beside the batch-norm statistics and layers that this client has kept."""
        task.site.personal.load(task.arrays[THETA], self.settings.anchor, task.store.load(KEPT))

    @exchange
    def personal(self, task: Task) -> Outcome:
        """ClientUpdate: train theta_i, return delta_i."""
        return self.train_personal(task)

    def train_personal(self, task: Task, loss: Loss | None = None) -> Outcome:
        """Train what `load` put into the model, with another loss than the site's own where one is given."""
        personal = task.site.personal
        return task.train_generated(personal, lambda: task.train(personal.model, self.settings, loss), KEPT)
