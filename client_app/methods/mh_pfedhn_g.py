"""MH-pFedHNG's client (paper, Algorithm 2, ClientUpdate1): MH-pFedHN's, which also trains the global model."""

from dataclasses import dataclass

from client_app.methods.base import Outcome, Task, exchange
from client_app.methods.mh_pfedhn import GeneratedTraining, MHpFedHN
from client_app.site import GeneratedModel, Site
from common.config import MODELS
from common.errors import ProtocolError
from common.options import option
from common.protocol import THETA
from common.schema import Facts, Schema, Vector

GLOBAL_KEPT = "global-kept"  # name in the client's store


@dataclass(frozen=True, kw_only=True)
class GlobalTraining(GeneratedTraining):
    """Which global model there is, and who has room for it."""

    global_model: str = option(
        "lenet",
        "the public model that clients train beside their own",
        choices=MODELS,
        fixed="always",
        source="section 4.1; Table 9",
    )
    gd_fraction: float = option(
        1.0,
        "share of the simulated clients that deploy the global model",
        minimum=0,
        maximum=1,
        source="appendix C.10, Table 15",
    )


class MHpFedHNG(MHpFedHN):
    """The global model is a generated one as well, with batch-norm statistics of its own that stay here."""

    Settings = GlobalTraining
    settings: GlobalTraining

    def facts(self, site: Site) -> Facts:
        """K_g as well, from clients that deploy the global model."""
        facts = dict(super().facts(site))
        if site.deploys_global and self._has_room(site):
            facts["global-num-params"] = self.global_model(site).parameters.size
        return facts

    def receives(self, exchange: str, site: Site) -> Schema:
        """w_g [K_g] in the global exchange, else theta_i [K]."""
        if exchange == "global_step":
            return {THETA: Vector(self.global_model(site).parameters.size)}
        return super().receives(exchange, site)

    @exchange
    def global_step(self, task: Task) -> Outcome:
        """ClientUpdate1: train w_g, return delta_{g,i}."""
        generated = self.global_model(task.site)
        generated.load(task.arrays[THETA], self.settings.anchor, task.store.load(GLOBAL_KEPT))
        return task.train_generated(
            generated, lambda: task.train(generated.model, self.settings, purpose="/global"), GLOBAL_KEPT
        )

    def global_model(self, site: Site) -> GeneratedModel:
        """The public model for the site's data. Raises ProtocolError when the site does not deploy it."""
        if not self._has_room(site):
            raise ProtocolError("not-deployed", "this client does not deploy the global model")
        return site.global_model(self.settings.global_model)

    def _has_room(self, site: Site) -> bool:
        """Whether the client is in the share of the simulated ones that deploy the global model."""
        return site.is_among(self.settings.gd_fraction, "gd-fraction")
