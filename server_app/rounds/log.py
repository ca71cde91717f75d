"""What happens in the round under way: its record, which all parts add to."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING

from flwr.common import log

from common.text import printable
from server_app.results import PHASES, Failure, RoundRecord


class RoundLog:
    """Holds the record of the round under way.

    `quotes_clients` says whether what clients say in words of their own may stand in it: those of a simulation, which
    are the researcher's, and no others.
    """

    def __init__(self, quotes_clients: bool = False) -> None:
        self.record = RoundRecord(0)
        self.quotes_clients = quotes_clients

    def open(self, server_round: int) -> None:
        """Begin a round's record."""
        self.record = RoundRecord(server_round, seconds=dict.fromkeys(PHASES, 0.0))

    def fail(self, client: str, reason: str, detail: str) -> None:
        """Note that a client lost its round: `reason` is counted, `detail` a sentence, which may quote the client."""
        detail = printable(detail)
        log(WARNING, "Round %d: client %s: %s: %s", self.record.round, client, reason, detail)
        self.record.failures.append(Failure(client, reason, detail))

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count what happens inside towards a phase of the round."""
        began = time.monotonic()
        yield
        self.record.seconds[phase] = self.record.seconds.get(phase, 0.0) + time.monotonic() - began
