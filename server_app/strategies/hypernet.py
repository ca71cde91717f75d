"""MH-pFedHN (paper, section 3.2, Algorithm 1): the server generates all weights and learns from the deltas."""

import random
from collections.abc import Mapping, Sequence
from logging import WARNING

import torch
from flwr.common import log

from common.device import resolve_device
from common.protocol import DELTA, THETA
from server_app.hypernetwork import HyperNetwork
from server_app.optim import HyperNetworkOptimizer
from server_app.registry import Client
from server_app.strategies.base import RoundStrategy, Run, Update, Vectors


class HyperNetStrategy(RoundStrategy):
    """Owns the hypernetwork and the embeddings; down goes theta_i, up comes delta_i."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        config = run.config
        self.hn = HyperNetwork(
            chunk_size=config.chunk_size,
            embedding_dim=config.embedding_dim,
            hidden_dim=config.hidden_dim,
            hidden_layers=config.hidden_layers,
            head_init_scale=config.resolved_head_init_scale,
            embedding_init_std=config.embedding_init_std,
            seed=config.seed,
        ).to(resolve_device(config.device))
        self.optimizer = HyperNetworkOptimizer(self.hn, config.hn_lr, config.schedule, config.reduction)
        self._order = random.Random(config.seed)

    def admit(self, client: Client) -> None:
        """Add the client's embedding, and the head of its tau if it is the first."""
        self.hn.register(client.key, client.num_params)

    def num_chunks(self, client: Client) -> int:
        """Tau = ceil(K / N)."""
        return self.hn.num_chunks(client.key)

    def outgoing(self, clients: Sequence[Client]) -> dict[str, Vectors]:
        """Theta_i of each client from the current phi (Equation 3)."""
        keys = [client.key for client in clients]
        with torch.no_grad():
            return {key: {THETA: theta.cpu()} for key, theta in zip(keys, self.hn.generate(keys), strict=True)}

    def incoming(self, client: Client) -> Mapping[str, int]:
        """Delta_i."""
        return {DELTA: client.num_params}

    def update(self, updates: Mapping[str, Update]) -> None:
        """Algorithm 1's two update lines, by the configured schedule."""
        if not self.optimizer.apply({key: update.vectors[DELTA] for key, update in updates.items()}):
            log(WARNING, "A gradient overflowed: some client sent enormous values, and the step was left out.")

    def waves(self, cohort: Sequence[Client]) -> list[Sequence[Client]]:
        """One client at a time, in random order, for the authors' sequential schedule; else all at once."""
        if self.config.schedule != "sequential":
            return [cohort]
        return [[client] for client in self._order.sample(cohort, len(cohort))]

    @property
    def evaluates_on_arrival(self) -> bool:
        """With the sequential schedule, weights go out half-way through a round, so they are tested on their own."""
        return self.config.schedule != "sequential"
