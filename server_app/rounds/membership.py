"""Who is here: registration, who joins and leaves, and who can take part in a round."""

import itertools
import time
from collections.abc import Callable, Sequence
from logging import INFO, WARNING

from flwr.app import Message
from flwr.common import log
from flwr.serverapp import Grid

from common import protocol
from common.config import Config
from common.errors import ProtocolError, UserError
from common.refusal import PASSING
from server_app.client import Client, natural_order
from server_app.methods.base import Method
from server_app.rounds.log import RoundLog
from server_app.rounds.mailroom import TTL_MARGIN
from server_app.rounds.registry import KEY_IN_USE, Registry
from server_app.rounds.round_trip import OpenRequests, RoundTrip, failure_of

_START_PATIENCE = 300.0  # seconds
_LOOK_EVERY = 0.5  # seconds between looks for nodes
_PAUSE = 1.0  # seconds between looks for clients
_REST = 10.0  # seconds after which a node is asked again whose registration failed for one of these reasons
_PASSING = (
    *("client-raised", "client-crashed", "client-not-loadable", "node-unavailable", "message-unavailable"),
    *PASSING,
)


class Membership:
    """Registers nodes and knows which clients are connected.

    Parameters
    ----------
    config: of the run.
    method: admits who has registered, or says that there is no room.
    log: of the round under way.
    joined: is called with every client once it is admitted.
    nodes_may_come: False for a simulation, which has all of its nodes from the start.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        log: RoundLog,
        joined: Callable[[Client], None],
        nodes_may_come: bool,
    ) -> None:
        self.registry = Registry(config.max_params, config.max_samples)
        self.deadline = config.deadline
        self._config = config
        self._method = method
        self._log = log
        self._joined = joined
        self._nodes_may_come = nodes_may_come
        self._has_asked = False
        self._refused: set[int] = set()  # nodes whose registration failed
        self._asked_again_at: dict[int, float] = {}  # nodes whose registration failed for a reason that may pass
        self._late = OpenRequests()  # registrations that have not come yet
        self._present: set[str] = set()  # clients that were connected when last looked

    def gather(self, grid: Grid) -> list[Client]:
        """The clients that can take part in a round; waits for `min-clients` of them, at most for the deadline.

        Raises UserError when too few came.
        """
        at_least = self._config.min_clients
        patience = self.deadline if self._nodes_may_come else 0.0
        ends = time.monotonic() + patience
        said = -1
        while True:
            self.register_new_nodes(grid)
            clients = self.connected(grid)
            self._say_who_left({client.key for client in clients})
            if len(clients) >= at_least:
                return clients
            if time.monotonic() >= ends:
                raise UserError(
                    f"{len(clients)} clients are connected and registered after {patience:g} s, but min-clients is "
                    f"{at_least}; the lines above name the reason of each node that could not be."
                )
            if len(clients) != said:
                said = len(clients)
                log(INFO, "%d of at least %d clients (min-clients) are here; waiting.", said, at_least)
            time.sleep(_PAUSE)

    def connected(self, grid: Grid) -> list[Client]:
        """The registered clients whose nodes are there."""
        live = set(grid.get_node_ids())
        return [client for client in self.registry.clients if client.node_id in live]

    def register_new_nodes(self, grid: Grid) -> None:
        """Ask the nodes that have come for their registration, and admit who answers."""
        live = set(grid.get_node_ids())
        self._refused &= live  # a node that went away may try again
        resting = {node for node, until in self._asked_again_at.items() if time.monotonic() < until}
        self._late.forget_nodes_but(live)
        asked = self.registry.nodes() | self._refused | resting | self._late.nodes()
        late = self._late.look(grid)
        new = sorted(live - asked)
        if not new and not late:
            return
        known = {client.key for client in self.registry.clients}
        # The first exchange of a simulation waits for its workers to start, whatever the deadline of a round.
        patience = self.deadline if self._has_asked else max(self.deadline, _START_PATIENCE)
        self._has_asked = True
        halves = self._config.halves
        settings = self._config.settings(halves.client.Settings)
        greeting = protocol.encode_greeting(halves.client_name, self._config.seed, settings, self._method.facts)
        requests = (
            (f"node {node}", Message(greeting, node, protocol.REGISTER, ttl=patience + TTL_MARGIN)) for node in new
        )
        trip = RoundTrip(grid, requests, len(new), patience, 1.0, self._log.fail, self._log.quotes_clients)
        taken = set()  # nodes that asked for a key which another still holds; it may be gone in the next round
        for name, message in itertools.chain(late, trip.replies()):
            # Only of late ones: the trip sorts out its own.
            if failure := failure_of(message, int(name.removeprefix("node ")), self._log.quotes_clients):
                self._log.fail(name, *failure)
                continue
            try:
                registration = protocol.decode_registration(message.content, self._method.facts)
                self.registry.admit(registration, message.metadata.src_node_id, live)
            except ProtocolError as error:
                trip.reject(name, error.reason, error.detail)
                if error.reason == KEY_IN_USE:
                    taken.add(message.metadata.src_node_id)
        self._late.add(trip)
        answered = {int(name.removeprefix("node ")) for name, _ in late} | set(new)
        answered -= self._late.nodes()
        reasons = {failure.client: failure.reason for failure in self._log.record.failures}
        passing = {node for node in answered if reasons.get(f"node {node}") in _PASSING}
        self._asked_again_at |= dict.fromkeys(passing, time.monotonic() + _REST)
        self._refused |= answered - self.registry.nodes() - taken - passing
        self._admit_all_but(known)

    def _admit_all_but(self, known: set[str]) -> None:
        """Admit the registered clients that have joined since these keys were all."""
        # In order of their keys, so that the outcome does not depend on who answered first.
        joining = [client for client in self.registry.clients if client.key not in known]
        batches: list[Sequence[Client]] = [[client] for client in joining] if known else [joining] if joining else []
        for batch in batches:
            try:
                self._method.admit(batch)
            except UserError as error:
                if not known:
                    raise
                # A run goes on without one for whom there is no room.
                self._refused.add(batch[0].node_id)
                self.registry.remove(batch[0].key)
                self._log.fail(batch[0].key, "no-room", str(error))
                continue
            for client in batch:
                self._joined(client)
        joined = len(self.registry.clients) - len(known)
        log(INFO, "%d clients joined, %d in all.", joined, len(self.registry.clients))

    def _say_who_left(self, present: set[str]) -> None:
        for key in sorted(self._present - present, key=natural_order):
            log(WARNING, "Client %s is no longer connected; the rounds go on without it until it is back.", key)
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
