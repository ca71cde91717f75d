"""The numbers of one run that a comparison speaks of, and their mean and deviation over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from server_app.results.reading import Run

VALIDATION = "validation-accuracy-mean"  # over clients, of the samples that are held back to choose on

ACCURACIES = ("accuracy-mean", "after-training-accuracy-mean", "accuracy")
COSTS = ("bytes-down", "bytes-up", "bytes", "seconds", "training-seconds")


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of the values that several seeds have; one value has no deviation."""

    mean: float
    std: float | None
    count: int

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None of one value."""
        return None if self.std is None else self.std / math.sqrt(self.count)


def spread(values: Iterable[float | None]) -> Spread | None:
    """The spread of those values that there are; None of none."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Spread(statistics.fmean(there), statistics.stdev(there) if len(there) > 1 else None, len(there))


def figures_of(run: Run) -> dict[str, float | None]:
    """The numbers of a run so far, by their names in `table.csv`; None for what was never measured.

    Of each of ACCURACIES `last-…` is of the last round that was tested, `best-…` of the round with the highest value,
    and `chosen-…` of the round with the highest mean accuracy over clients on the validation samples, where there are
    any. `bytes-…` and `…seconds` are of the whole run, see `costs_until`.
    """
    figures: dict[str, float | None] = {}
    candidates = [line for line in run.evaluated if line.get(VALIDATION) is not None]
    chosen = max(candidates, key=lambda line: float(line[VALIDATION]), default={})
    for key in ACCURACIES:
        values = [line[key] for line in run.metrics if line.get(key) is not None]
        figures[f"last-{key}"] = values[-1] if values else None
        figures[f"best-{key}"] = max(values, default=None)
        figures[f"chosen-{key}"] = chosen.get(key)
    last = run.evaluated[-1] if run.evaluated else {}
    figures["last-accuracy-worst10"] = last.get("accuracy-worst10")
    validated = [line[VALIDATION] for line in run.metrics if line.get(VALIDATION) is not None]
    figures[f"last-{VALIDATION}"] = validated[-1] if validated else None
    figures |= costs_until(run, len(run.metrics))
    figures["rounds"] = run.metrics[-1]["round"]
    return figures


def costs_until(run: Run, count: int) -> dict[str, float | None]:
    """What the first `count` rounds of a run cost, under the names in COSTS.

    `seconds` are those on the clock from the run's beginning until the last of these rounds had been played.
    `training-seconds` are these less what the run needed to start (nodes, workers, registration), None of a run that
    did not measure this.
    """
    lines = run.metrics[:count]
    starts = [line["seconds"]["start"] for line in lines if "start" in line["seconds"]]
    down, up = (sum(line[key] for line in lines) for key in ("bytes-down", "bytes-up"))
    seconds = _seconds_until(run, count)
    training = seconds - sum(starts) if starts else None
    return dict(zip(COSTS, (down, up, down + up, seconds, training), strict=True))


def _seconds_until(run: Run, count: int) -> float:
    """The clock when a round had been played. Its own line is written a round later, when its weights were tested.

    The last line of a finished run is not: it follows when the final weights have been handed over, as its bytes say.
    """
    if run.summary is not None and count == len(run.metrics):
        return float(run.metrics[-1]["wall-seconds"])
    if count > 1:
        return float(run.metrics[count - 2]["wall-seconds"])
    return float(run.metrics[0]["seconds"]["total"])


def costs_to(run: Run, target: float) -> dict[str, float | None] | None:
    """What a run has cost when its mean accuracy over clients first is at the target; None if it never is."""
    for number, line in enumerate(run.metrics, start=1):
        if line["accuracy-mean"] is not None and line["accuracy-mean"] >= target:
            return costs_until(run, number)
    return None


def median_cost(costs: Sequence[float | None]) -> float | None:
    """The median over seeds, None for one that never comes to the target, which counts as infinitely dear.

    Leaving such a seed out would make a method look the cheaper the fewer of its seeds come there. So there is no
    median, and None is returned, unless more than half of the seeds have come to the target.
    """
    median = statistics.median([math.inf if cost is None else cost for cost in costs]) if costs else math.inf
    return median if math.isfinite(median) else None


def guessing_accuracy(run: Run) -> float | None:
    """The mean over clients of what always guessing the client's most frequent class would get; None if unknown.

    It is known where `partition.json` tells how many samples of each class the clients hold.
    """
    counts = (run.partition or {}).get("clients", {})
    rows = [counts[row.client] for row in run.new_clients if sum(counts.get(row.client, ())) > 0]
    return statistics.fmean(max(row) / sum(row) for row in rows) if rows else None


def learned_nothing(run: Run) -> str | None:
    """Why a run's last accuracy is no result, in a clause; None if it is one.

    A run has learned nothing if its last mean accuracy is within a tenth of guessing: at most 1.1 times what always
    guessing a client's most frequent class would get, or, where that is above a half, at most a tenth of the way from
    there to 1. Or if no client's accuracy has moved over three tested rounds or more, short of all being right.
    Or if it has finished and no client that it is about was ever tested.
    """
    last, guessing = run.accuracy_mean, guessing_accuracy(run)
    if last is None:
        is_over = run.summary is not None and run.new_clients
        return "was never tested, and so is in no mean of accuracies" if is_over else None
    if guessing is not None and last <= guessing + 0.1 * min(guessing, 1 - guessing):
        return f"mean accuracy {last:.3f}, and guessing each client's most frequent class gets {guessing:.3f}"
    accuracies = [line["client-accuracy"] for line in run.evaluated]
    if len(accuracies) >= 3 and last < 1 and all(each == accuracies[0] for each in accuracies):
        return f"no client's accuracy has changed in {len(accuracies)} tested rounds"
    return None
