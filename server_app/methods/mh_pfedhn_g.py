"""MH-pFedHNG (paper, section 3.3): MH-pFedHN with a global model, without distillation.

A public model of K_g parameters has an embedding v_g of its own, and the head of tau_g. It is one more client of the
hypernetwork, under a key that no client can have, so no other code knows of it. The paper sets K_g to the smallest K_i
and lets w_g share that client's head; here, as in the authors' code, it is a public architecture of its own (LeNet),
which shares a head with whoever has the same tau.
"""

from collections import Counter
from collections.abc import Generator, Mapping, Sequence

import torch

from common.arrays import Arrays
from common.errors import UserError
from common.protocol import DELTA, THETA
from common.schema import Fact, Vector, Whole
from server_app.checkpoint import Checkpoint
from server_app.client import Client
from server_app.hypernetwork import Member
from server_app.methods.base import Exchange, Exchanges, Replies, logger
from server_app.methods.mh_pfedhn import MHpFedHN, members_of
from server_app.optim import mean_delta

GLOBAL_KEY = "(global model)"  # no client can have this key: it holds characters that a client key may not
K_G = "global-num-params"  # the fact that a client which deploys the global model gives


class MHpFedHNG(MHpFedHN):
    """Two exchanges a round: the global model's, then the personal one."""

    def round(self, cohort: Sequence[Client]) -> Exchanges:
        """Algorithm 2: the global step, then the personal one from the phi that it left."""
        yield from self.global_step(cohort)
        yield from super().round(cohort)

    def global_step(self, cohort: Sequence[Client]) -> Generator[Exchange, Replies, Replies]:
        """Steps 1 to 5 of Figure 2: those who deploy the global model train w_g; one step follows with Equation 6's
        sum_i (m_i / M) delta_{g,i}, which moves the trunk, the head of tau_g and v_g alone.
        """
        asked = self.with_global_model(cohort)
        if not asked or self.config.mode == "adapt":  # in which all that was trained before is frozen
            return Replies()
        expected = {DELTA: Vector(self.hn.num_params(GLOBAL_KEY))}
        replies = yield Exchange("global_step", to=asked, send=self.w_g, expect=expected, losses="global")
        if not replies:
            logger.info("No client trained the global model; it stays as it is.")
        elif not self.optimizer.apply({GLOBAL_KEY: mean_delta(replies.weighted(DELTA))}):
            logger.warning("The global step's gradient overflowed: the step was left out.")
        return replies

    def with_global_model(self, clients: Sequence[Client]) -> list[Client]:
        """Those who have room for the global model (appendix C.10), and mean the same one."""
        if not self._has_global_model():
            return []
        return [client for client in clients if client.facts.get(K_G) == self.hn.num_params(GLOBAL_KEY)]

    def w_g(self, clients: Sequence[Client]) -> Mapping[str, Arrays]:
        """The global model's weights [K_g] from the current phi (Equation 5), the same for each of these clients."""
        with torch.no_grad():
            (w_g,) = self.hn.generate([GLOBAL_KEY])
        arrays = {THETA: w_g.cpu()}
        return {client.key: arrays for client in clients}

    @property
    def facts(self) -> Mapping[str, Fact]:
        """K_g, from clients that deploy the global model: the server knows neither image size nor number of classes."""
        return {**super().facts, K_G: Whole(1, self.config.max_params)}

    def admit(self, clients: Sequence[Client]) -> Mapping[str, str]:
        """Add the clients, and the global model with the first of them that deploy it.

        Where they disagree about K_g, the size that most of them declare counts, of those that there is room for.
        """
        self.prepare(clients)
        members = members_of(clients)
        sizes = Counter(client.facts[K_G] for client in clients if K_G in client.facts)
        if not self._has_global_model():
            for size in sorted(sizes, key=lambda size: (-sizes[size], size)):
                with_global = members | {GLOBAL_KEY: Member(size)}
                if GLOBAL_KEY not in self.room.refused(self.hn, with_global):
                    members = with_global
                    break
        refused = self.add_members(members)
        refused.pop(GLOBAL_KEY, None)
        taking_part = {client.key for client in self.with_global_model(clients)}
        for client in clients:
            if K_G in client.facts and client.key not in taking_part | refused.keys():
                logger.warning("Client %s has no part in the global model: %s.", client.label, self._why_not(client))
        return refused

    def adapt(self, start: Checkpoint) -> None:
        """Freeze a checkpoint that has a global model."""
        super().adapt(start)
        if not self._has_global_model():
            raise UserError(
                f"{start.path} has no global model: it is of a run with method {start.config.get('method')!r}; adapt "
                "it with that method."
            )

    def _why_not(self, client: Client) -> str:
        own = client.facts[K_G]
        if not self._has_global_model():
            return f"its {own} parameters do not fit into memory"
        return f"it has {own} parameters there, elsewhere {self.hn.num_params(GLOBAL_KEY)}"

    def _has_global_model(self) -> bool:
        return hasattr(self, "hn") and GLOBAL_KEY in self.hn.members
