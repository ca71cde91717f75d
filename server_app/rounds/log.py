"""What happens in the round under way: its record, which all parts add to."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import WARNING

from flwr.common import log

from server_app.results import PHASES, Failure, RoundRecord

# Why a client may not be the one that the server takes it for any more: its model or its key was changed.
_DOUBTFUL = ("another-client", "changed-size", "wrong-length")


class RoundLog:
    """Holds the record of the round under way.

    `label` makes of a client's key what is shown; `doubtful` are the keys of clients that have to say again who they
    are.
    """

    def __init__(self, label: Callable[[str], str] = str) -> None:
        self.record = RoundRecord(0)
        self.doubtful: set[str] = set()
        self._label = label

    def open(self, server_round: int) -> None:
        """Begin a round's record."""
        self.record = RoundRecord(server_round, seconds=dict.fromkeys(PHASES, 0.0))

    def fail(self, client: str, reason: str, detail: str) -> None:
        """Note that a client, given by its key, lost its round: `reason` is counted, `detail` is a sentence."""
        label = self._label(client)
        log(WARNING, "Round %d: client %s: %s: %s", self.record.round, label, reason, detail)
        self.record.failures.append(Failure(label, reason, detail))
        if reason in _DOUBTFUL:
            self.doubtful.add(client)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count what happens inside towards a phase of the round."""
        began = time.monotonic()
        yield
        self.record.seconds[phase] = self.record.seconds.get(phase, 0.0) + time.monotonic() - began
