"""Requests to nodes and their replies: push, hand on what arrives, end at the deadline or the quorum.

Flower's own `send_and_receive` looks for replies every 3 s and returns them all at the end; this one does not wait.
"""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Error, Message
from flwr.serverapp import Grid

from common.refusal import REASONS, decode_refusal
from common.text import printable
from server_app.rounds.pulling import Pull

# Seconds between looks for replies: a share of what has been waited, so that what looking adds to a wait is small.
_FIRST_PAUSE = 0.02
_PAUSE_SHARE = 0.01
_LONGEST_PAUSE = 0.5
_SILENCE = 30.0  # seconds after which a wait is told of, again and again

_RAY_PREAMBLE = "Exception ClientAppException occurred. Message: "

BROKEN = "malformed", "the bytes of the reply are no message"
_WRONG_SENDER = "wrong-sender", "the reply is from another node than the one that was asked"

# Flower's error codes: what happened, and what is said of it where the node's own words are not to be quoted.
_FLOWER_ERRORS = {
    1: ("client-not-loadable", "Flower could not load the app at the site; its SuperNode's log says why"),
    2: ("client-raised", "Flower could not run the app at the site; its SuperNode's log says why"),
    3: ("message-unavailable", "Flower no longer has the message, or never had it"),
    4: ("message-unavailable", "Flower no longer has the reply to the message"),
    5: ("node-unavailable", "the site's SuperNode is gone"),
    6: ("refused-by-mod", "a mod of the site's ClientApp refused the message"),
    7: ("bad-app-bundle", "the site's SuperNode refused the app's bundle; its log says why"),
    8: ("client-crashed", "the process that the site's SuperNode started for the message ended without an answer"),
}
_UNKNOWN_ERROR = "unknown", "Flower reports an error of no known kind; the site's SuperNode's log may say more"


class Reject(Protocol):
    """Notes that a client failed."""

    def __call__(self, client: str, reason: str, detail: str) -> None:
        """Take the client's key, a short reason that is counted, and a sentence for the log."""


class Wait(Protocol):
    """Is told now and then who has not answered yet."""

    def __call__(self, answered: int, missing: Sequence[str]) -> None:
        """Take how many clients have answered, and the keys of the others."""


@dataclass(frozen=True)
class OpenRequest:
    """A request that its exchange ended without."""

    identifier: str  # of the message
    node: int
    expires: float  # on the monotonic clock; Flower forgets the message then


class OpenRequests:
    """The requests that nobody waits for (any more), by client.

    A node works off its messages one after the other, the oldest first. One that is sent more while it still works on
    an old one would be late for ever.
    """

    def __init__(self, pull: Pull | None = None) -> None:
        self._pull = pull or Pull()
        self._open: dict[str, OpenRequest] = {}

    def add(self, trip: "RoundTrip") -> None:
        """Take over what an exchange that is over was not answered."""
        self._open |= trip.unanswered

    def send(self, grid: Grid, client: str, message: Message) -> bool:
        """Send a request without waiting for its reply; whether Flower took it."""
        expires = time.monotonic() + message.metadata.ttl
        for identifier in filter(None, grid.push_messages([message])):
            self._open[client] = OpenRequest(identifier, message.metadata.dst_node_id, expires)
            return True
        return False

    def look(self, grid: Grid) -> dict[str, Message | None]:
        """Replies that have come since, by client; None for one whose bytes are no message.

        They and what has expired are forgotten.
        """
        if not self._open:
            return {}
        clients = {request.identifier: client for client, request in self._open.items()}
        messages, broken = self._pull(grid, list(clients))
        late: dict[str, Message | None] = {clients[identifier]: None for identifier in broken}
        for message in messages:
            if message.metadata.reply_to_message_id in clients:
                late.setdefault(clients[message.metadata.reply_to_message_id], message)  # of several the first counts
        now = time.monotonic()
        self._open = {
            client: request for client, request in self._open.items() if client not in late and now < request.expires
        }
        return late

    def wait(self, grid: Grid, patience: float) -> dict[str, Message | None]:
        """As `look`, until every request has its reply or `patience` seconds have passed."""
        began = time.monotonic()
        replies = self.look(grid)
        while self._open and (waited := time.monotonic() - began) < patience:
            time.sleep(min(_pause(waited), patience - waited))
            replies |= self.look(grid)
        return replies

    def nodes(self) -> set[int]:
        """The nodes that were asked."""
        return {request.node for request in self._open.values()}

    def forget_nodes_but(self, nodes: Set[int]) -> None:
        """Forget what nodes were asked that are gone."""
        self._open = {client: request for client, request in self._open.items() if request.node in nodes}

    def busy(self, grid: Grid, nodes: Mapping[str, int], patience: float) -> list[str]:
        """The clients, given with their nodes, that still work on a request.

        While that is all of them, waits for one to be free, at most `patience` seconds.
        """
        ends = time.monotonic() + patience
        while True:
            self.look(grid)
            busy = [client for client, node in nodes.items() if self._is_busy(client, node)]
            if not busy or len(busy) < len(nodes) or time.monotonic() >= ends:
                return busy
            time.sleep(_LONGEST_PAUSE)

    def _is_busy(self, client: str, node: int) -> bool:
        # A node that is new was never asked: without registered keys a site has another after every start.
        return client in self._open and self._open[client].node == node


class RoundTrip:
    """The requests of one exchange and their replies.

    Parameters
    ----------
    grid: Flower's connection to the nodes.
    requests: each client's key and its message, made when its turn comes and held no longer than that.
    count: how many requests there are.
    deadline: seconds after which missing replies count as late.
    quorum: share of the clients (0 to 1] whose good replies end the exchange early.
    reject: is told of every client that fails.
    quotes_clients: whether their own words may be passed on to it.
    wait: is told every 30 s who has not answered yet, if anybody wants to know.
    pull: how replies are pulled, in this exchange and others.
    """

    def __init__(
        self,
        grid: Grid,
        requests: Iterable[tuple[str, Message]],
        count: int,
        deadline: float,
        quorum: float,
        reject: Reject,
        quotes_clients: bool = False,
        wait: Wait | None = None,
        pull: Pull | None = None,
    ) -> None:
        self._grid = grid
        self._requests = requests
        self._deadline = deadline
        self._needed = math.ceil(quorum * count - 1e-9)  # 0.28 x 25 is 7.000000000000001 in binary
        self._note = reject
        self._quotes_clients = quotes_clients
        self._wait = wait
        self._pull = pull or Pull()
        self._rejected: set[str] = set()
        self._asked: dict[str, str] = {}  # message id -> client key
        self._nodes: dict[str, int] = {}  # client key -> the node that was asked
        self.unanswered: dict[str, OpenRequest] = {}  # by client; complete once all replies have been taken

    def reject(self, client: str, reason: str, detail: str) -> None:
        """Count a client's reply as bad: it does not count towards the quorum."""
        self._rejected.add(client)
        self._note(client, reason, detail)

    def replies(self) -> Iterator[tuple[str, Message]]:
        """Yield each client's key and reply as it arrives; a failed client is rejected by name, not yielded.

        A consumer that finds a yielded reply bad calls `reject` before it asks for the next.
        """
        began = time.monotonic()
        ends = began + self._deadline
        waiting: dict[str, str] = {}  # message id -> client key
        expires: dict[str, float] = {}  # by client, on the monotonic clock
        for client, request in self._requests:
            self._nodes[client], expires[client] = request.metadata.dst_node_id, began + request.metadata.ttl
            # One by one: of several, Flower does not say which were refused (too large, or the node is gone).
            identifiers = [identifier for identifier in self._grid.push_messages([request]) if identifier]
            if identifiers:
                waiting[identifiers[0]] = self._asked[identifiers[0]] = client
            else:
                self.reject(client, "not-sent", "Flower refused the message: the node is gone or the message too large")
            del request  # the last one too, before the long wait
        arrived: set[str] = set()
        told = time.monotonic()
        while waiting:
            pulled, broken = self._pull(self._grid, list(waiting))
            messages = deque(pulled)
            del pulled
            for identifier in broken:
                self.reject(waiting.pop(identifier), *BROKEN)
            while messages:
                message = messages.popleft()  # held no longer than it is looked at
                asked = message.metadata.reply_to_message_id
                if asked not in waiting:
                    self._note(self._asked.get(asked, "unknown"), *self._why_not_wanted(asked))
                    continue
                client = waiting.pop(asked)
                if failure := failure_of(message, self._nodes[client], self._quotes_clients):
                    self.reject(client, *failure)
                else:
                    arrived.add(client)
                    yield client, message
            if len(arrived - self._rejected) >= self._needed or not waiting:
                break
            now = time.monotonic()
            if now >= ends:
                break
            if self._wait and now - told >= _SILENCE:
                told = now
                self._wait(len(self._asked) - len(waiting), list(waiting.values()))
            time.sleep(min(_pause(now - began), ends - now))
        for identifier, client in waiting.items():
            self.unanswered[client] = OpenRequest(identifier, self._nodes[client], expires[client])
            self.reject(client, "late", "no reply came before the exchange ended")

    def _why_not_wanted(self, asked: str) -> tuple[str, str]:
        if asked in self._asked:
            return "duplicate", "the client answered the same message again; the first answer counts"
        return "unasked", "a reply to a message of another exchange"


def _pause(waited: float) -> float:
    """Seconds until the next look for replies, after so many of waiting."""
    return min(max(_FIRST_PAUSE, _PAUSE_SHARE * waited), _LONGEST_PAUSE)


def failure_of(message: Message, node: int, quotes_clients: bool) -> tuple[str, str] | None:
    """Why a reply brings nothing: a reason and a sentence for an error of Flower's, a reply from another node than the
    one that was asked, and a client's refusal; None for any other. The client's own words are in it only if quoted.
    """
    if message.has_error():
        return describe_error(message.error, quotes_clients)
    if message.metadata.src_node_id != node:
        return _WRONG_SENDER
    if refusal := decode_refusal(message.content):
        quoted = refusal.detail if quotes_clients else ""
        return refusal.reason, quoted or REASONS[refusal.reason]
    return None


def describe_error(error: Error, quotes_clients: bool) -> tuple[str, str]:
    """A reason and a sentence for an error reply of Flower's, which quotes the exception of whose code it was."""
    name, sentence = _FLOWER_ERRORS.get(error.code, _UNKNOWN_ERROR)
    if not quotes_clients or not error.reason:
        return name, sentence
    # In a simulation the client's own words come after a page of Ray's, quoted once more by Flower.
    _, quoted, words = error.reason.rpartition(_RAY_PREAMBLE)
    if quoted:
        words = words.removesuffix(">").removesuffix("'").removesuffix('"')
    return name, printable(words)
