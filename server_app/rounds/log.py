"""What happens in the round under way: its record, which all parts add to."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import INFO, WARNING

from flwr.common import log

from common.refusal import ANOTHER_CLIENT
from common.text import printable
from server_app.client import natural_order
from server_app.results import PHASES, Failure, RoundRecord
from server_app.rounds.registry import CHANGED_SIZE
from server_app.weights import capped_weights

WRONG_COUNT = "wrong-count"  # the reason of a reply whose counts are not those of the registration
_NAMED = 10  # of the clients that are waited for

# Why a client may not be the one that the server takes it for any more: its key, model or data were changed.
_DOUBTFUL = (ANOTHER_CLIENT, CHANGED_SIZE, "wrong-length", WRONG_COUNT)


class RoundLog:
    """Holds the record of the round under way.

    Parameters
    ----------
    label: makes of a client's key what is shown.
    quotes_clients: whether what clients say in words of their own may stand in it: those of a simulation, which are the
        researcher's, and no others.
    max_client_weight: the largest share that one client has of the weights of a mean over clients.

    `doubtful` are the keys of clients that have to say again who they are.
    """

    def __init__(
        self, label: Callable[[str], str] = str, quotes_clients: bool = False, max_client_weight: float = 1.0
    ) -> None:
        self.record = RoundRecord(0)
        self.doubtful: set[str] = set()
        self.quotes_clients = quotes_clients
        self._label = label
        self._max_client_weight = max_client_weight
        self._known_as_capped: set[str] = set()  # clients of which it was said that their weight is cut

    def open(self, server_round: int) -> None:
        """Begin a round's record."""
        seconds = dict.fromkeys(PHASES, 0.0)
        self.record = RoundRecord(server_round, seconds=seconds, max_client_weight=self._max_client_weight)

    def fail(self, client: str, reason: str, detail: str) -> None:
        """Note that a client, given by its key, lost its round.

        `reason` is counted, `detail` is a sentence, which may quote the client.
        """
        label, detail = self._label(client), printable(detail)
        log(WARNING, "Round %d: client %s: %s: %s", self.record.round, label, reason, detail)
        self.record.failures.append(Failure(label, reason, detail))
        if reason in _DOUBTFUL:
            self.doubtful.add(client)

    def weigh(self, counts: Mapping[str, int]) -> dict[str, int | float]:
        """Weights of clients with so many samples in a mean over them; note whose are cut, and say it once a run."""
        weights = capped_weights(counts, self._max_client_weight)
        for key in [key for key, count in counts.items() if weights[key] != count]:
            share = counts[key] / sum(counts.values())
            self.record.capped[key] = max(share, self.record.capped.get(key, 0.0))
            if key not in self._known_as_capped:
                self._known_as_capped.add(key)
                said = self.record.round, self._label(key), 100 * share, 100 * weights[key] / sum(weights.values())
                log(
                    WARNING,
                    "Round %d: client %s claims %.1f %% of the samples, counts %.1f %% (max-client-weight).",
                    *said,
                )
        return weights

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
            ", ".join(map(self._label, named)),
            more,
        )

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count what happens inside towards a phase of the round."""
        began = time.monotonic()
        yield
        self.record.seconds[phase] = self.record.seconds.get(phase, 0.0) + time.monotonic() - began
