"""MH-pFedHN (paper, section 3.2, Algorithm 1): the server generates all weights and learns from the deltas."""

import random
from collections.abc import Mapping, Sequence
from logging import INFO, WARNING

import torch
from flwr.common import log

from common.config import AUTO
from common.device import free_memory, resolve_device
from common.errors import UserError
from common.protocol import DELTA, THETA
from server_app.checkpoint import Checkpoint, State
from server_app.hypernetwork import HyperNetwork, Member, choose_chunk_size
from server_app.optim import HyperNetworkOptimizer
from server_app.registry import Client
from server_app.strategies.base import RoundStrategy, Run, Update, Vectors

# A value of the network has a gradient and Adam's two moments beside it; one of a generated vector has its gradient.
_BYTES_A_VALUE = 4 * 4
_BYTES_A_GENERATED_VALUE = 4 * 2
_GIB = 2**30


class HyperNetStrategy(RoundStrategy):
    """Owns the hypernetwork and the embeddings; down goes theta_i, up comes delta_i.

    The hypernetwork is made when the first clients have registered, since N may depend on their K. In mode `adapt` it
    comes from a checkpoint and is frozen: only what new clients bring with them learns (section 4.4).
    """

    hn: HyperNetwork
    optimizer: HyperNetworkOptimizer

    def __init__(self, run: Run) -> None:
        self._device = resolve_device(run.config.device)
        self._known: frozenset[str] = frozenset()  # clients of the checkpoint that mode adapt starts from
        super().__init__(run)
        self.generators.setdefault("order", random.Random(run.config.seed))
        if run.config.mode == "adapt" and run.start:
            self._freeze(run.start)

    def _freeze(self, start: Checkpoint) -> None:
        try:
            self.load_state(start.method)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"The checkpoint {start.path} does not hold a hypernetwork: {error}.") from error
        self.hn.freeze()
        self._known = frozenset(self.hn.members)
        log(
            INFO,
            "Starting from %s: round %d, %d embeddings, all frozen.",
            start.path,
            start.server_round,
            len(self._known),
        )

    def admit(self, clients: Sequence[Client]) -> None:
        """Add the clients' embeddings, and the heads of those who are the first to need them."""
        self.add_members({client.key: Member(client.num_params, client.group) for client in clients})

    def add_members(self, members: Mapping[str, Member]) -> None:
        """Add embeddings and heads once it is known that they fit. Raises UserError when they do not."""
        if not hasattr(self, "hn"):
            self._make_network(choose_chunk_size(member.num_params for member in members.values()))
        for key, member in members.items():
            if key in self.hn.members and self.hn.num_params(key) != member.num_params:
                raise UserError(
                    f"Client {key!r} has {member.num_params:,} parameters (K), but {self.hn.num_params(key):,} in the "
                    "checkpoint: a client whose model changed needs a new key."
                )
        self._check_room(members)
        for key, member in members.items():
            self.hn.register(key, member.num_params, member.group)
            if self._known and key not in self._known:
                # The frozen network has only learned what to do with embeddings like those that it knows.
                self.hn.start_at_mean(key, sorted(self._known))

    def _make_network(self, chunk_size: int) -> None:
        config = self.config
        self.hn = HyperNetwork(
            chunk_size=chunk_size if config.chunk_size == AUTO else int(config.chunk_size),
            embedding_dim=config.embedding_dim,
            hidden_dim=config.hidden_dim,
            hidden_layers=config.hidden_layers,
            head_init_scale=config.resolved_head_init_scale,
            embedding_init_std=config.embedding_init_std,
            heads=config.heads,
            seed=config.seed,
        ).to(self._device)
        self._make_optimizer()

    def _make_optimizer(self) -> None:
        config = self.config
        self.optimizer = HyperNetworkOptimizer(
            self.hn, config.hn_lr, config.schedule, config.reduction, embedding_lr=config.resolved_embedding_lr
        )

    def _check_room(self, members: Mapping[str, Member]) -> None:
        values = self.hn.count_new_values(members)
        if not values:
            return
        generated = sum(member.num_params for member in (self.hn.members | dict(members)).values())
        needed = _BYTES_A_VALUE * values + _BYTES_A_GENERATED_VALUE * generated
        free = free_memory(self._device)
        told = (
            f"{values:,} values more for {len(members)} clients, chunks of {self.hn.chunk_size}; with gradients and "
            f"Adam's moments {needed / _GIB:.2f} GiB of {free / _GIB:.2f} GiB that are free on {self._device.type}"
        )
        if needed > free:
            raise UserError(
                f"The hypernetwork does not fit: {told}. Lower hidden-dim (now {self.hn.hidden_dim}: the heads grow "
                "with it), let fewer sizes of models take part, or use a machine with more memory."
            )
        log(INFO, "Hypernetwork: %s.", told)

    def is_trained(self, client: Client) -> bool:
        """Clients of the checkpoint are only tested: nothing that they have learns any more."""
        return client.key not in self._known

    def state(self) -> State:
        """Trunk, heads, embeddings, Adam's moments by parameter name, and what is known about each client."""
        return {
            "settings": self.hn.settings,
            "members": [[key, *member] for key, member in self.hn.members.items()],
            "network": dict(self.hn.state_dict()),
            "adam": self.optimizer.state(),
        }

    def load_state(self, state: State) -> None:
        """Build the network of a checkpoint, on the device."""
        self.hn = HyperNetwork(**state["settings"])
        for key, num_params, group in state["members"]:
            self.hn.register(key, num_params, group)
        self.hn.load_state_dict(state["network"])
        self.hn.to(self._device)
        self._make_optimizer()
        if self.config.mode == "train":
            self.optimizer.load_state(state["adam"])

    def num_chunks(self, client: Client) -> int:
        """Tau = ceil(K / N)."""
        return self.hn.num_chunks(client.key)

    def outgoing(self, clients: Sequence[Client]) -> dict[str, Vectors]:
        """Theta_i of each client from the current phi (Equation 3)."""
        # Known ones by themselves, as in the run that trained them: how many share a matrix product decides how it is
        # rounded, and in mode adapt their weights are to be the same bit for bit.
        known = [client.key for client in clients if client.key in self._known]
        new = [client.key for client in clients if client.key not in self._known]
        with torch.no_grad():
            thetas = self.hn.generate(known) + self.hn.generate(new)
        return {key: {THETA: theta.cpu()} for key, theta in zip(known + new, thetas, strict=True)}

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
        return [[client] for client in self.generators["order"].sample(cohort, len(cohort))]

    @property
    def evaluates_on_arrival(self) -> bool:
        """With the sequential schedule, weights go out half-way through a round, so they are tested on their own."""
        return self.config.schedule != "sequential"
