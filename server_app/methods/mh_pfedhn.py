"""MH-pFedHN (paper, section 3.2, Algorithm 1): the server generates all weights and learns from the deltas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.arrays import Arrays
from common.config import Config
from common.device import resolve_device
from common.errors import UserError
from common.options import AUTO, option
from common.protocol import DELTA, THETA
from common.schema import Fact, Label, Schema, Vector
from common.settings import Anchored, Bounded
from server_app.checkpoint import Checkpoint, State
from server_app.client import Client
from server_app.hypernetwork import HEADS, HyperNetwork, Member, choose_chunk_size
from server_app.methods.base import Exchange, Exchanges, Method, logger
from server_app.optim import REDUCTIONS, SCHEDULES, HyperNetworkOptimizer
from server_app.room import Room


@dataclass(frozen=True, kw_only=True)
class HyperNetworkSettings(Anchored, Bounded):
    """The hypernetwork's shape, and how it learns."""

    chunk_size: int | str = option(
        AUTO,
        "N: values generated a chunk; auto: at most 3072, all clients but perhaps the smallest have 64 chunks",
        minimum=1,
        words=(AUTO,),
        fixed="always",
        source="appendix D.4: 3072",
    )
    embedding_dim: int = option(
        64, "E: size of one embedding vector", minimum=1, fixed="always", source="authors' code"
    )
    embedding_init_std: float = option(
        1.0, "standard deviation of the initial embeddings", minimum=0, source="ours; authors' code: 0.002"
    )
    hidden_dim: int = option(
        128, "H: width of the hypernetwork's trunk", minimum=1, fixed="always", source="authors' code"
    )
    hidden_layers: int = option(3, "depth of the hypernetwork's trunk", minimum=1, fixed="always", source="section 4.1")
    hn_lr: float = option(
        1e-3, "learning rate of the hypernetwork's Adam", above=0, source="ours for joint; section 4.1: 2e-4"
    )
    embedding_lr: float | str = option(
        AUTO, "the same for embeddings; auto is hn-lr, and 0.1 in mode adapt", above=0, words=(AUTO,), source="ours"
    )
    schedule: str = option(
        "joint",
        "how deltas become optimizer steps",
        choices=SCHEDULES,
        fixed="training",
        source="Algorithm 1: per-client; authors' code: sequential",
    )
    # With a global model the two kinds of steps share Adam's moments: the mean keeps their gradients of one size.
    reduction: str = option("mean", "how a joint step combines clients", choices=REDUCTIONS, source="ours")
    heads: str = option(
        "by-tau",
        "which clients share an output head of the hypernetwork",
        choices=HEADS,
        fixed="always",
        source="section 3.2; Tables 3 and 10",
    )
    head_init_scale: float | str = option(
        AUTO,
        "factor on a head's initial weights; auto is 0.1 with the anchor, 1.0 without",
        above=0,
        words=(AUTO,),
        source="ours",
    )

    @property
    def resolved_head_init_scale(self) -> float:
        """`head-init-scale` as a number."""
        if isinstance(self.head_init_scale, str):
            return 0.1 if self.anchor else 1.0
        return self.head_init_scale


class MHpFedHN(Method):
    """Owns the hypernetwork and the embeddings; down goes theta_i, up comes delta_i.

    The hypernetwork is made when the first clients have registered, since N may depend on their K. In mode `adapt` it
    comes from a checkpoint and is frozen: only what new clients bring with them learns (section 4.4).
    """

    Settings = HyperNetworkSettings
    adapts = True
    settings: HyperNetworkSettings
    hn: HyperNetwork
    optimizer: HyperNetworkOptimizer

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._device = resolve_device(config.device)
        self.room = Room(self._device, is_copied=config.checkpoint_every > 1)
        self._frozen: frozenset[str] = frozenset()  # clients of the checkpoint that mode adapt starts from

    # Algorithm 1 ----------------------------------------------------------------------------------------------------

    def round(self, cohort: Sequence[Client]) -> Exchanges:
        """Algorithm 1: theta_i = h(v_i; phi)[1:K_i] goes out, delta_i comes back and moves phi and v_i."""
        for clients in self.visits(cohort):
            replies = yield Exchange("personal", to=clients, send=self.for_training, expect=delta_of, deploys=True)
            self.learn(replies.of(DELTA))

    def deploy(self, clients: Sequence[Client]) -> Exchanges:
        """Theta_i from the current phi, as it is."""
        yield Exchange("deploy", to=clients, send=self.generate, deploys=True)

    def visits(self, cohort: Sequence[Client]) -> list[Sequence[Client]]:
        """One client at a time, in random order, for the authors' sequential schedule; else all at once."""
        if self.settings.schedule != "sequential":
            return [cohort]
        return [[client] for client in self.random.sample(cohort, len(cohort))]

    def for_training(self, clients: Sequence[Client]) -> Mapping[str, Arrays]:
        """What clients train from."""
        return self.generate(clients)

    def generate(self, clients: Sequence[Client]) -> Mapping[str, Arrays]:
        """Theta_i [K_i] of each client from the current phi (Equation 3)."""
        # Frozen ones by themselves, as in the run that trained them: how many share a matrix product decides how it is
        # rounded, and in mode adapt their weights are to be the same bit for bit.
        frozen = [client.key for client in clients if client.key in self._frozen]
        new = [client.key for client in clients if client.key not in self._frozen]
        with torch.no_grad():
            thetas = self.hn.generate(frozen) + self.hn.generate(new)
        return {key: {THETA: theta.cpu()} for key, theta in zip(frozen + new, thetas, strict=True)}

    def learn(self, deltas: Mapping[str, Tensor]) -> None:
        """Algorithm 1's two update lines, by the configured schedule.

        As printed they ascend, with delta = trained - sent; here delta = sent - trained, as in the authors' code. v_i
        is a leaf beside phi, so its gradient is its own vector-Jacobian product.
        """
        if not self.optimizer.apply(deltas):
            logger.warning("A gradient overflowed: some client sent enormous values, and the step was left out.")

    @property
    def tests_on_arrival(self) -> bool:
        """With the sequential schedule, weights go out half-way through a round, so they are tested on their own."""
        return self.settings.schedule != "sequential"

    # Who takes part -------------------------------------------------------------------------------------------------

    @property
    def facts(self) -> Mapping[str, Fact]:
        """A label that clients of one architecture have in common, where heads are shared by it (appendix C.5)."""
        return {"group": Label()} if self.settings.heads == "by-architecture" else {}

    def admit(self, clients: Sequence[Client]) -> Mapping[str, str]:
        """Add the clients' embeddings, and the heads of those who are the first to need them."""
        self.prepare(clients)
        return self.add_members(members_of(clients))

    def prepare(self, clients: Sequence[Client]) -> None:
        """Make the network when the first clients have come, since N may depend on their K."""
        if not hasattr(self, "hn"):
            self._make_network(choose_chunk_size(client.num_params for client in clients))

    def add_members(self, members: Mapping[str, Member]) -> dict[str, str]:
        """Add embeddings and heads of those for whom there is room; return the others, each with the reason."""
        refused = self.room.refused(self.hn, members)
        added = {key: member for key, member in members.items() if key not in refused}
        if taken := self.room.taken_by(self.hn, added):
            logger.info("Hypernetwork: %s.", taken)
        for key, member in added.items():
            self.hn.register(key, member.num_params, member.group)
            if self._frozen and key not in self._frozen:
                # The frozen network has only learned what to do with embeddings like those that it knows.
                self.hn.start_at_mean(key, sorted(self._frozen))
        return refused

    def memory_for(self, clients: Sequence[Client]) -> float:
        """Of the network, its gradient and moments, and of what is generated."""
        self.prepare(clients)
        return self.room.needed(self.hn, members_of(clients))

    def trains(self, client: Client) -> bool:
        """Clients of a frozen checkpoint are only tested: nothing that they have learns any more."""
        return client.key not in self._frozen

    def num_chunks(self, client: Client) -> int | None:
        """Tau = ceil(K / N)."""
        return self.hn.num_chunks(client.key)

    # State ----------------------------------------------------------------------------------------------------------

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

    def adapt(self, start: Checkpoint) -> None:
        """Freeze trunk, heads and embeddings of a checkpoint."""
        try:
            self.load_state(start.method)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"The checkpoint {start.path} does not hold a hypernetwork: {error}.") from error
        self.hn.freeze()
        self._frozen = frozenset(self.hn.members)
        logger.info(
            "Starting from %s: round %d, %d embeddings, all frozen.",
            start.path,
            start.server_round,
            len(self._frozen),
        )

    def _make_network(self, chunk_size: int) -> None:
        settings = self.settings
        self.hn = HyperNetwork(
            chunk_size=chunk_size if settings.chunk_size == AUTO else int(settings.chunk_size),
            embedding_dim=settings.embedding_dim,
            hidden_dim=settings.hidden_dim,
            hidden_layers=settings.hidden_layers,
            head_init_scale=settings.resolved_head_init_scale,
            embedding_init_std=settings.embedding_init_std,
            heads=settings.heads,
            seed=self.config.seed,
        ).to(self._device)
        self._make_optimizer()

    def _make_optimizer(self) -> None:
        settings, embedding_lr = self.settings, self.settings.embedding_lr
        if isinstance(embedding_lr, str):
            # In mode adapt embeddings are all that learns, and have a long way to go.
            embedding_lr = 0.1 if self.config.mode == "adapt" else settings.hn_lr
        self.optimizer = HyperNetworkOptimizer(
            self.hn, settings.hn_lr, settings.schedule, settings.reduction, embedding_lr=embedding_lr
        )


def members_of(clients: Sequence[Client]) -> dict[str, Member]:
    """What the hypernetwork has to know of these clients, by client key."""
    return {client.key: Member(client.num_params, client.facts.get("group", "")) for client in clients}


def delta_of(client: Client) -> Schema:
    """What comes back from training theta_i: delta_i [K_i]."""
    return {DELTA: Vector(client.num_params)}
