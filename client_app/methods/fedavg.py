"""FedAvg's client (McMahan et al. 2017): train the average that came, return how far training moved it.

The average is an offset from the architecture's seeded initialisation, since the server knows no architecture whose
weights it could draw.
"""

from dataclasses import dataclass

from client_app.methods.base import ClientMethod, Outcome, Task, exchange
from client_app.site import Site
from common.protocol import THETA
from common.schema import Schema, Vector
from common.settings import Compressed, LocalTraining, Noised

_KEPT = "kept"  # name in the client's store


@dataclass(frozen=True, kw_only=True)
class FedAvgSettings(LocalTraining, Compressed, Noised):
    """Local training, and how what is sent is shortened and protected."""


class FedAvg(ClientMethod):
    """Batch-norm statistics and layers kept local stay here; everything else is the average's."""

    Settings = FedAvgSettings
    settings: FedAvgSettings

    def receives(self, exchange: str, site: Site) -> Schema:
        """w [K]."""
        return {THETA: Vector(site.num_params)}

    def load(self, task: Task) -> None:
        """Write theta_0 + w, beside what this client has kept."""
        task.site.personal.load(task.arrays[THETA], True, task.store.load(_KEPT))

    @exchange
    def personal(self, task: Task) -> Outcome:
        """Train; return w - w_i."""
        personal = task.site.personal
        return task.train_generated(personal, lambda: task.train(personal.model, self.settings), _KEPT)
