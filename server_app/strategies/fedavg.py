"""FedAvg (McMahan et al. 2017): one model for all clients, the mean of what they trained, weighted by their samples.

Clients of different architectures cannot be averaged, so there is one vector for each K; the paper does the same
(section 4.3: one run an architecture). The vector is an offset from the architecture's seeded initialisation, which all
clients of an architecture share and the server never sees; the averages are the same as of the weights themselves.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.protocol import DELTA, THETA
from server_app.checkpoint import State
from server_app.optim import mean_delta
from server_app.registry import Client
from server_app.strategies.base import RoundStrategy, Run, Update, Vectors


class FedAvgStrategy(RoundStrategy):
    """Holds one vector w for each K; down goes w, up comes w - w_i."""

    def __init__(self, run: Run) -> None:
        self.averages: dict[int, Tensor] = {}  # K -> w [K] float32
        super().__init__(run)

    @property
    def anchor(self) -> bool:
        """Always: the server knows no architecture whose weights it could draw."""
        return True

    def admit(self, clients: Sequence[Client]) -> None:
        """Start the vector of a new K at zero, which is the seeded initialisation itself."""
        for client in clients:
            self.averages.setdefault(client.num_params, torch.zeros(client.num_params))

    def state(self) -> State:
        """The vector of each K."""
        return {"averages": dict(self.averages)}

    def load_state(self, state: State) -> None:
        """Take up such vectors."""
        self.averages = dict(state["averages"])

    def outgoing(self, clients: Sequence[Client]) -> dict[str, Vectors]:
        """The average of the client's group."""
        return {client.key: {THETA: self.averages[client.num_params]} for client in clients}

    def incoming(self, client: Client) -> Mapping[str, int]:
        """w - w_i."""
        return {DELTA: client.num_params}

    def update(self, updates: Mapping[str, Update]) -> None:
        """w = sum_i (m_i / M) w_i over the clients of each group, as w - sum_i (m_i / M) (w - w_i)."""
        groups: dict[int, list[Update]] = {}
        for update in updates.values():
            groups.setdefault(len(update.vectors[DELTA]), []).append(update)
        for num_params, group in groups.items():
            mean = mean_delta([(update.vectors[DELTA], update.num_examples) for update in group])
            self.averages[num_params] = self.averages[num_params] - mean
