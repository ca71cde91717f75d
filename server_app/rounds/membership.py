"""Who is here: registration, who joins and leaves, and who can take part in a round.

Registration runs beside the rounds: nodes that come are asked who they are, and whenever a round begins those who have
answered by then are taken in. Only the first registration of a run is waited for.
"""

import time
from collections.abc import Callable, Mapping, Set
from logging import INFO, WARNING

from flwr.app import Message
from flwr.common import log
from flwr.serverapp import Grid

from common import protocol
from common.config import Config
from common.errors import ProtocolError, UserError
from common.protocol import Registration
from common.refusal import PASSING
from server_app.client import Client, natural_order
from server_app.methods.base import Method
from server_app.rounds.bindings import NOT_BOUND
from server_app.rounds.log import RoundLog
from server_app.rounds.mailroom import TTL_MARGIN
from server_app.rounds.registry import Registry
from server_app.rounds.round_trip import BROKEN, OpenRequests, failure_of

_START_PATIENCE = 300.0  # seconds
_LOOK_EVERY = 0.5  # seconds between looks for nodes
_PAUSE = 1.0  # seconds between looks for clients
_REST = 30.0  # seconds after which a node is asked again whose registration failed
_SHORT_REST = 10.0  # the same, where the reason may soon be gone
_SHORT_REST_REASONS = (
    *("client-raised", "client-crashed", "client-not-loadable", "node-unavailable", "message-unavailable"),
    *PASSING,
    *("key-in-use", NOT_BOUND),
)


class Membership:
    """Registers nodes and knows which clients are connected.

    Parameters
    ----------
    config: of the run.
    method: admits who has registered, or says that there is no room.
    registry: of the clients.
    log: of the round under way.
    joined: is called with every client once it is admitted.
    nodes_may_come: False for a simulation, which has all of its nodes from the start.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        registry: Registry,
        log: RoundLog,
        joined: Callable[[Client], None],
        nodes_may_come: bool,
    ) -> None:
        self.registry = registry
        self.deadline = config.deadline
        self._config = config
        self._method = method
        self._log = log
        self._joined = joined
        self._nodes_may_come = nodes_may_come
        self._has_waited = False
        self._asked = OpenRequests()  # greetings without an answer, by node
        self._rests_until: dict[int, float] = {}  # nodes whose registration failed
        self._told: dict[int, str] = {}  # and the reason that was told last
        self._present: set[str] = set()  # clients that were connected when last looked
        self._gone: set[str] = set()  # those that were connected once and are not

    def gather(self, grid: Grid) -> list[Client]:
        """The clients that can take part in a round; waits for `min-clients` of them, at most for the deadline.

        One that is in doubt is left out until it has said who it is, unless the run would end for want of it.

        Raises UserError when too few came.
        """
        at_least = self._config.min_clients
        patience = self.deadline if self._nodes_may_come else 0.0
        ends = time.monotonic() + patience
        said = -1
        while True:
            self.register_new_nodes(grid)
            clients = self.connected(grid)
            self._say_who_left_or_came_back({client.key for client in clients})
            sure = [client for client in clients if client.node_id not in self._asked.nodes()]
            if len(sure) >= at_least and (sure == clients or any(map(self._method.trains, sure))):
                return sure
            if time.monotonic() >= ends:
                if len(clients) >= at_least:
                    return clients
                raise UserError(
                    f"{len(clients)} clients are connected and registered after {patience:g} s, but min-clients is "
                    f"{at_least}; the lines above name the reason of each node that could not be."
                )
            if len(sure) != said:
                said = len(sure)
                log(INFO, "%d of at least %d clients (min-clients) are here; waiting.", said, at_least)
            time.sleep(_PAUSE)

    def connected(self, grid: Grid) -> list[Client]:
        """The registered clients whose nodes are there."""
        live = set(grid.get_node_ids())
        return [client for client in self.registry.clients if client.node_id in live]

    def register_new_nodes(self, grid: Grid) -> None:
        """Ask who has come who it is, and admit who has answered; waits for the answers the first time only."""
        live = set(grid.get_node_ids())
        known = {client.key for client in self.registry.clients}
        self._forget_nodes_but(live)
        admitted = self._take(self._late_answers(grid), live)
        new = sorted(live - self._not_to_be_asked())
        is_first = bool(new) and not self._has_waited
        # The first exchange of a simulation waits for its workers to start, whatever the deadline of a round.
        is_starting = is_first and not self._nodes_may_come
        patience = max(self.deadline, _START_PATIENCE) if is_starting else self.deadline
        self._greet(grid, new, patience)
        admitted |= self._take(self._asked.wait(grid, patience if is_first else 0.0), live)
        if is_first:
            self._has_waited = True
            for node in sorted(self._asked.nodes()):
                self._fail(node, "late", f"it did not say who it is within {patience:g} s; the run begins without it")
        self._admit_all_but(known)
        for node in admitted & self.registry.nodes():  # there was room for it, too
            self._rests_until.pop(node, None)
            self._told.pop(node, None)

    def _forget_nodes_but(self, live: Set[int]) -> None:
        """A node that went away may try again at once."""
        self._asked.forget_nodes_but(live)
        self._rests_until = {node: until for node, until in self._rests_until.items() if node in live}
        self._told = {node: reason for node, reason in self._told.items() if node in live}

    def _late_answers(self, grid: Grid) -> dict[str, Message | None]:
        """Answers to greetings of earlier looks; those that will never come are noted."""
        asked = self._asked.nodes()
        answers = self._asked.look(grid)
        for node in sorted(asked - self._asked.nodes() - set(map(int, answers))):
            self._fail(node, "late", "it has not said who it is; it is asked again")
        return answers

    def _not_to_be_asked(self) -> set[int]:
        """Nodes that have said who they are, unless that is in doubt; that have yet to answer; that are to rest."""
        # A simulated client is what it was: its model and its data follow from the settings.
        doubtful_keys = self._log.doubtful if self._nodes_may_come else set()
        doubtful = {client.node_id for client in self.registry.clients if client.key in doubtful_keys}
        self._log.doubtful.clear()
        resting = {node for node, until in self._rests_until.items() if time.monotonic() < until}
        return (self.registry.nodes() - doubtful) | resting | self._asked.nodes()

    def _greet(self, grid: Grid, nodes: list[int], patience: float) -> None:
        config, halves = self._config, self._config.halves
        settings = config.settings(halves.client.Settings)
        greeting = protocol.encode_greeting(
            halves.client_name, config.run_name, config.seed, settings, self._method.facts
        )
        for node in nodes:
            message = Message(greeting, node, protocol.REGISTER, ttl=patience + TTL_MARGIN)
            if not self._asked.send(grid, str(node), message):
                self._fail(node, "not-sent", "Flower refused the message: the node is gone")

    def _take(self, answers: Mapping[str, Message | None], live: Set[int]) -> set[int]:
        """Register who has answered, or note why not; return the nodes of those who are.

        By node, so that nothing depends on who answered first.
        """
        admitted = set()
        for node in sorted(map(int, answers)):
            try:
                self.registry.admit(self._registration(node, answers[str(node)]), node, live)
            except ProtocolError as error:
                self._fail(node, error.reason, error.detail)
            else:
                admitted.add(node)
        return admitted

    def _registration(self, node: int, message: Message | None) -> Registration:
        """What a node answered. Raises ProtocolError."""
        if message is None:
            raise ProtocolError(*BROKEN)
        if failure := failure_of(message, node, self._log.quotes_clients):
            raise ProtocolError(*failure)
        return protocol.decode_registration(message.content, self._method.facts)

    def _fail(self, node: int, reason: str, detail: str, name: str = "") -> None:
        """Let a node rest before it is asked again; said once, not every time that it fails for the same reason."""
        self._rests_until[node] = time.monotonic() + (_SHORT_REST if reason in _SHORT_REST_REASONS else _REST)
        if self._told.get(node) != reason:
            self._told[node] = reason
            self._log.fail(name or self.registry.node_name(node), reason, detail)

    def _admit_all_but(self, known: set[str]) -> None:
        """Have the method admit the registered clients that have joined since these keys were all."""
        joining = [client for client in self.registry.clients if client.key not in known]
        if not joining:
            return
        refused = self._method.admit(joining)
        if not isinstance(refused, Mapping):
            raise UserError(
                f"Method {self._config.method!r}: admit returned a {type(refused).__name__}, but must return a mapping "
                "from client key to the sentence why there is no room; {} admits all."
            )
        for client in joining:
            if client.key in refused:
                # A run goes on without one for whom there is no room.
                self.registry.remove(client.key)
                self._fail(client.node_id, "no-room", refused[client.key], client.label)
            else:
                self._joined(client)
        joined = len(self.registry.clients) - len(known)
        if joined:
            log(INFO, "%d clients joined, %d in all.", joined, len(self.registry.clients))

    def _say_who_left_or_came_back(self, present: set[str]) -> None:
        for key in sorted(self._present - present, key=natural_order):
            label = self.registry.label(key)
            log(WARNING, "Client %s is no longer connected; the rounds go on without it until it is back.", label)
        self._gone |= self._present - present
        for key in sorted(self._gone & present, key=natural_order):
            log(INFO, "Client %s is back.", self.registry.label(key))
        self._gone -= present
        self._present = present


def wait_for_nodes(grid: Grid, at_least: int, timeout: float) -> list[int]:
    """Wait until enough nodes are connected and no more have come for a moment; return their ids, sorted.

    Raises UserError when fewer came within `timeout` seconds.
    """
    ends = time.monotonic() + timeout
    before: list[int] | None = None
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= at_least and nodes == before:
            return nodes
        if time.monotonic() >= ends:
            raise UserError(
                f"{len(nodes)} of at least {at_least} nodes (min-clients) connected within {timeout:g} s (deadline): "
                "start more SuperNodes or lower min-clients."
            )
        if len(nodes) < at_least and nodes != before:
            log(INFO, "%d of at least %d nodes (min-clients) are connected; waiting for more.", len(nodes), at_least)
        before = nodes
        time.sleep(_LOOK_EVERY)
