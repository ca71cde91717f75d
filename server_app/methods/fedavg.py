"""FedAvg (McMahan et al. 2017): one model for all clients, the mean of what they trained, weighted by their samples.

Clients of different architectures cannot be averaged, so there is one vector for each K, by which the server tells them
apart; the paper does the same (section 4.3: one run an architecture). Sites whose models have the same K and differ
must not share a run. The vector is an offset from the architecture's seeded initialisation, which all
clients of an architecture share and the server never sees; the averages are the same as of the weights themselves.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.arrays import Arrays
from common.config import Config
from common.device import free_memory
from common.protocol import DELTA, THETA
from common.schema import Schema, Vector
from common.settings import Bounded
from server_app.client import Client
from server_app.methods.base import Exchange, Exchanges, Method
from server_app.optim import mean_delta

# Beside a vector: the new one, the mean's sum, a client's delta, and the bytes of a message up and of one down.
_VECTORS_A_SIZE = 6
_BYTES_A_NUMBER = 4  # float32
_GIB = 2**30


class FedAvg(Method):
    """Holds one vector w for each K; down goes w, up comes w - w_i."""

    Settings = Bounded
    saved = ("averages",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.averages: dict[int, Tensor] = {}  # K -> w [K] float32

    def admit(self, clients: Sequence[Client]) -> Mapping[str, str]:
        """Start the vector of a new K at zero, which is the seeded initialisation itself.

        The smallest first, as long as there is memory: one that asks for too much takes nothing from the others.
        """
        refused: dict[str, str] = {}
        taken, free = 0, free_memory(torch.device("cpu"))
        for client in sorted(clients, key=lambda client: client.num_params):
            if client.num_params in self.averages:
                continue
            needed = _VECTORS_A_SIZE * _BYTES_A_NUMBER * client.num_params
            if taken + needed > free:
                refused[client.key] = (
                    f"An average of {client.num_params:,} parameters (K) takes {needed / _GIB:.2f} GiB, and "
                    f"{(free - taken) / _GIB:.2f} GiB are left: let fewer sizes of models take part, or use a machine "
                    "with more memory."
                )
                continue
            taken += needed
            self.averages[client.num_params] = torch.zeros(client.num_params)
        return refused

    def memory_for(self, clients: Sequence[Client]) -> float:
        """Of the vectors of each K."""
        return float(_VECTORS_A_SIZE * _BYTES_A_NUMBER * sum({client.num_params for client in clients}))

    def round(self, cohort: Sequence[Client]) -> Exchanges:
        """w = sum_i (m_i / M) w_i over the clients of each K, as w - sum_i (m_i / M) (w - w_i)."""
        replies = yield Exchange("personal", to=cohort, send=self.average, expect=_delta, deploys=True)
        for num_params in self.averages:
            group = [key for key, delta in replies.of(DELTA).items() if len(delta) == num_params]
            if group:
                self.averages[num_params] = self.averages[num_params] - mean_delta(replies.weighted(DELTA, group))

    def deploy(self, clients: Sequence[Client]) -> Exchanges:
        """The average of the client's group."""
        yield Exchange("deploy", to=clients, send=self.average, deploys=True)

    def average(self, clients: Sequence[Client]) -> Mapping[str, Arrays]:
        """w for each client."""
        return {client.key: {THETA: self.averages[client.num_params]} for client in clients}


def _delta(client: Client) -> Schema:
    return {DELTA: Vector(client.num_params)}
