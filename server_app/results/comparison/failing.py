"""Who failed in a run so often that its numbers need a word beside them: clients that never trained, updates lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from server_app.results.reading import Run

_TOLERATED = 0.1  # the share of a run's updates that may fail without a word


@dataclass(frozen=True)
class Failing:
    """The updates that were asked for in a run, and those that failed.

    A client that failed in a round and has no training loss there was asked in vain. A line of metrics does not say
    whether it failed in training or in a test, so that of those who were not drawn a failed test counts as well. One
    that was never drawn and failed in no test is not there, nor is one that mode adapt knew: it is only tested.
    """

    num_clients: int
    trained: Counter[str]  # by client: the rounds in which its update was used
    failed: Counter[str]  # the rounds in which it was asked in vain
    reasons: Counter[tuple[str, str]]  # by client and reason: failures in those rounds

    @cached_property
    def never_trained(self) -> list[str]:
        """The clients that were asked, and none of whose updates was ever used."""
        return [client for client in self.failed if not self.trained[client]]

    def words(self) -> str | None:
        """`1 of 6 clients never trained (late)`, `12 of 60 updates failed (late)`, or both; None: neither is to say."""
        never, others = self.never_trained, [client for client in self.failed if self.trained[client]]
        failed = self.failed.total()
        asked = self.trained.total() + failed
        parts = []
        if never:
            parts.append(f"{len(never)} of {self.num_clients} clients never trained ({self._why(never)})")
        if others and failed > _TOLERATED * asked:
            parts.append(f"{failed} of {asked} updates failed ({self._why(list(self.failed))})")
        return "; ".join(parts) or None

    def _why(self, clients: Sequence[str]) -> str:
        """The reasons of these clients' failures, the most frequent first."""
        counts: Counter[str] = Counter()
        for (client, reason), times in self.reasons.items():
            if client in clients:
                counts[reason] += times
        return ", ".join(reason for reason, _ in counts.most_common())


def failing(run: Run) -> Failing:
    """Count the updates of a run. There are none where its method writes down no clients' training losses."""
    clients = {row.client for row in run.new_clients}
    trained, failed = Counter[str](), Counter[str]()
    reasons = Counter[tuple[str, str]]()
    for line in run.metrics if _tells_who_trained(run) else []:
        losses = line["client-train-loss"]
        trained.update(clients & losses.keys())
        # A node that was not admitted is no client.
        lost = [each for each in line["failure-list"] if each["client"] in clients and each["client"] not in losses]
        failed.update(dict.fromkeys((each["client"] for each in lost), 1))
        reasons.update((each["client"], each["reason"]) for each in lost)
    return Failing(len(clients), trained, failed, reasons)


def _tells_who_trained(run: Run) -> bool:
    """Whether training losses tell whose updates were used: a method may write down none, or only others.

    Then clients answer in a round without a failure, and still no loss of any is there.
    """
    if any(line["client-train-loss"] for line in run.metrics):
        return True
    return not run.extra_losses and not any(map(_went_well, run.metrics))


def _went_well(line: dict[str, Any]) -> bool:
    return line["bytes-up"] > 0 and not line["failure-list"]
