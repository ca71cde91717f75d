"""What each client gains by taking part: its last accuracy less that of the same client training alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from server_app.results.comparison.compared import ComparedRun
from server_app.results.comparison.figures import Spread, spread
from server_app.results.reading import Run


@dataclass(frozen=True)
class Gain:
    """Gains in accuracy, by seed and client key. Clients that only one of the two runs has tested are not there."""

    by_seed: dict[int, dict[str, float]]

    @property
    def values(self) -> list[float]:
        """All gains, of all seeds."""
        return [gain for gains in self.by_seed.values() for gain in gains.values()]

    @cached_property
    def mean(self) -> Spread | None:
        """The mean over clients, over seeds."""
        return spread(sum(gains.values()) / len(gains) for gains in self.by_seed.values())

    @cached_property
    def losing(self) -> Spread | None:
        """The share of clients that lose by taking part (gain below 0), over seeds."""
        return spread(sum(gain < 0 for gain in gains.values()) / len(gains) for gains in self.by_seed.values())

    @property
    def worst(self) -> float:
        """The smallest gain of any client with any seed."""
        return min(self.values)


def gains_over(alone: Sequence[tuple[ComparedRun, Run]], taking_part: Sequence[tuple[ComparedRun, Run]]) -> Gain | None:
    """The gains of the runs of a method over those of training alone with the same seeds; None without a pair."""
    by_seed = {each.seed: _last_accuracies(run) for each, run in alone}
    gains: dict[int, dict[str, float]] = {}
    for each, run in taking_part:
        baseline = by_seed.get(each.seed, {})
        # Six digits, as accuracies are written: what is equal there must not become a loss of 1e-17.
        of_seed = {
            client: round(accuracy - baseline[client], 6)
            for client, accuracy in _last_accuracies(run).items()
            if client in baseline
        }
        if of_seed:
            gains[each.seed] = of_seed
    return Gain(gains) if gains else None


def _last_accuracies(run: Run) -> dict[str, float]:
    return {row.client: row.last_accuracy for row in run.new_clients if row.last_accuracy is not None}
