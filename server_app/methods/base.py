"""What a method is, on the server: a round as a generator of exchanges, and what it has learned.

A method says what goes out, what must come back, and what is learned from it, in the order of its paper's algorithm.
The shared loop (`server_app/strategy.py`) sends, waits, refuses, counts, tests and saves. So a method knows no message
of Flower's, no deadline and no file. `docs/adding-a-method.md` builds one step by step.
"""

import copy
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from common import settings
from common.arrays import Arrays
from common.config import Config
from common.errors import UserError
from common.schema import Fact, Schema
from server_app.checkpoint import Checkpoint, State
from server_app.client import Client

DEPLOY = "deploy"  # the exchange of which the client half has no function

logger = logging.getLogger("flwr.method")  # below Flower's own, so that its lines stand among Flower's


@dataclass(frozen=True)
class Reply:
    """What one client brought back from an exchange, checked."""

    arrays: Arrays
    num_examples: int  # m_i


Weigh = Callable[[Mapping[str, int]], Mapping[str, int | float]]


class Replies(dict[str, Reply]):
    """The good replies to an exchange by client key, in the keys' natural order, whoever answered first.

    `weigh` makes weights of the clients' numbers of samples, by client; by default these are the weights.
    """

    def __init__(self, replies: Mapping[str, Reply] | Iterable[tuple[str, Reply]] = (), weigh: Weigh = dict) -> None:
        super().__init__(replies)
        self._weigh = weigh

    def of(self, name: str) -> dict[str, Tensor]:
        """One array of each reply, by client."""
        return {key: reply.arrays[name] for key, reply in self.items()}

    def weighted(self, name: str, among: Collection[str] | None = None) -> list[tuple[Tensor, int | float]]:
        """One array of each reply, with its weight in a mean over these clients, all or those `among` them.

        The weight is the number m_i of samples behind it. On real sites, which may claim any number, no client has a
        larger share of all weights than `max-client-weight`.
        """
        counts = {key: reply.num_examples for key, reply in self.items() if among is None or key in among}
        return [(self[key].arrays[name], weight) for key, weight in self._weigh(counts).items()]


@dataclass(frozen=True)
class Exchange:
    """Something is sent to clients, and something comes back.

    `send` and `expect` are the same for all, or functions: of the clients that are really asked, to arrays by client;
    of one client, to the schema of its reply. Replies that are late or do not fit their schema never reach the method.
    """

    name: str  # the client half has a function of this name; "deploy": nothing but what `deploys` says
    to: Sequence[Client]
    send: Arrays | Callable[[Sequence[Client]], Mapping[str, Arrays]] = field(default_factory=dict)
    expect: Schema | Callable[[Client], Schema] = field(default_factory=dict)
    deploys: bool = False  # what is sent is what the clients are to use: they load it, and test it when that is due
    losses: str = "train"  # the name under which the clients' training losses are written down; "": they do not train

    def outgoing(self, clients: Sequence[Client]) -> dict[str, Arrays]:
        """What each of these clients is sent, by client key."""
        if callable(self.send):
            return dict(self.send(clients))
        return {client.key: self.send for client in clients}

    def expected(self, client: Client) -> Schema:
        """What this client must send back."""
        return self.expect(client) if callable(self.expect) else self.expect


Exchanges = Generator[Exchange, Replies, None]


class Method(ABC):
    """The server half of a method; `self.settings` holds the values of its `Settings`."""

    Settings: ClassVar[type[settings.Settings]] = settings.Settings
    client: ClassVar[str] = ""  # module:Class of the client half, for a method from outside this project
    adapts: ClassVar[bool] = False  # whether it knows mode adapt
    saved: ClassVar[tuple[str, ...]] = ()  # names of the attributes that hold what it has learned, for checkpoints

    def __init__(self, config: Config) -> None:
        self.config = config
        self.settings: Any = config.settings(self.Settings)
        self.random = random.Random(config.seed)  # for the method's own draws; a checkpoint holds its state
        self.server_round = 0  # the round under way, from 1 on

    @property
    def facts(self) -> Mapping[str, Fact]:
        """What a client may be asked for at registration beyond K; it lands in `Client.facts`."""
        return {}

    def admit(self, clients: Sequence[Client]) -> Mapping[str, str]:
        """Make room for clients that have registered since the last call, at the start of a run for all together.

        Returns for whom there is no room, by client key, each with a sentence that says why: the run goes on without
        them, so that none of them can end it for the others.
        """
        return {}

    @abstractmethod
    def round(self, cohort: Sequence[Client]) -> Exchanges:
        """One round of training. Each yield gives back the good replies, perhaps none."""

    @abstractmethod
    def deploy(self, clients: Sequence[Client]) -> Exchanges:
        """What gives clients the weights that they are to use: for tests, and at the end of a run. Changes nothing.

        It may be played between two exchanges of a round: what belongs to one of them stays in local variables.
        """

    @property
    def tests_on_arrival(self) -> bool:
        """Whether the first exchange of a round that deploys sends everybody what the round before led to.

        Then the clients test it on arrival; if not, all of them are sent it for a test of its own just before.
        """
        return True

    def trains(self, client: Client) -> bool:
        """Whether a client takes part in training; the others are only tested."""
        return True

    def num_chunks(self, client: Client) -> int | None:
        """Tau of a client (paper, section 3.2); None for methods without chunks."""
        return None

    def memory_for(self, clients: Sequence[Client]) -> float:
        """Bytes that a round takes at its peak in the server's memory with these, the first clients; an estimate.

        Only those that grow with the number or the size of clients; 0 where they hardly do.
        """
        return 0.0

    def numbers(self) -> Mapping[str, float]:
        """Numbers of the last round that are added to its line of the metrics, under kebab-case names."""
        return {}

    def state(self) -> State:
        """What the method has learned, for a checkpoint; tensors on any device, not copied."""
        return {name: copy.copy(getattr(self, name)) for name in self.saved}

    def load_state(self, state: State) -> None:
        """Go on from such a state. Raises KeyError, TypeError, ValueError or RuntimeError for one that is none."""
        for name in self.saved:
            setattr(self, name, state[name])

    def adapt(self, start: Checkpoint) -> None:
        """Take up what another run has learned, frozen, for clients that it has not seen (section 4.4).

        Raises UserError for a checkpoint that does not fit.
        """
        raise UserError(f"method {self.config.method!r} has nothing frozen that could adapt.")
