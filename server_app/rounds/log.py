"""What happens in the round under way: its record, which all parts add to."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import INFO, WARNING

from flwr.common import log

from server_app.client import natural_order
from server_app.results import PHASES, Failure, RoundRecord

_NAMED = 10  # of the clients that are waited for


class RoundLog:
    """Holds the record of the round under way."""

    def __init__(self) -> None:
        self.record = RoundRecord(0)

    def open(self, server_round: int) -> None:
        """Begin a round's record."""
        self.record = RoundRecord(server_round, seconds=dict.fromkeys(PHASES, 0.0))

    def fail(self, client: str, reason: str, detail: str) -> None:
        """Note that a client lost its round: `reason` is counted, `detail` is a sentence."""
        log(WARNING, "Round %d: client %s: %s: %s", self.record.round, client, reason, detail)
        self.record.failures.append(Failure(client, reason, detail))

    def wait(self, answered: int, missing: Sequence[str]) -> None:
        """Say during a long exchange who has answered so far."""
        named = sorted(missing, key=natural_order)[:_NAMED]
        more = f" and {len(missing) - len(named)} more" if len(missing) > len(named) else ""
        log(
            INFO,
            "Round %d: %d of %d clients have answered; waiting for %s%s.",
            self.record.round,
            answered,
            answered + len(missing),
            ", ".join(named),
            more,
        )

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count what happens inside towards a phase of the round."""
        began = time.monotonic()
        yield
        self.record.seconds[phase] = self.record.seconds.get(phase, 0.0) + time.monotonic() - began
