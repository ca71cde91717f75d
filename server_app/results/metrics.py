"""A round's line of `metrics.jsonl`: which numbers it has, and how those over clients are defined."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from common.evaluation import Evaluation
from server_app.results.record import PHASES, START, RoundRecord
from server_app.weights import capped_weights

METRIC_KEYS = (  # of every line
    "round",
    "accuracy",
    "accuracy-mean",
    "accuracy-std",
    "accuracy-worst10",
    "loss",
    "train-loss",
    "clients",
    "failures",
    "bytes-down",
    "bytes-up",
    "seconds",
    "wall-seconds",
    "client-accuracy",
    "client-train-loss",
    "failure-list",
)
OPTIONAL_KEYS = ("accuracy-known", "epsilon", "client-privacy", "capped-clients", "client-capped")


def round_metrics(record: RoundRecord, known: Collection[str] = ()) -> dict[str, Any]:
    """Return a round's line of `metrics.jsonl`, less its `wall-seconds`.

    `accuracy` is all correct answers over all test samples. `accuracy-mean`, `accuracy-std` (of the population) and
    `accuracy-worst10` (mean of the worst tenth, rounded down, at least one client) are over clients. Losses are means a
    sample; in those of training no client weighs more than the record's `max_client_weight`. What there is no value
    for, or no finite one, is None.

    `known` are the keys of the clients that an adapt run only evaluates. They count in `accuracy-known`, defined as
    `accuracy` and there only if a client is known, and in none of the other accuracies, nor in `loss`. `NAME-loss` and
    `NAME-clients` are there for each name in `record.extra_losses` under which a client's update was used; `epsilon`,
    the largest of any client, and `client-privacy`, each client's epsilon and delta, only if a client sent noised
    vectors; `capped-clients`, the number of clients whose weight in a mean over clients was cut, and `client-capped`,
    the share of the samples that each of them claims, only if there are any. The record's `numbers` are there under
    their own names. `seconds` has `start` in the first round of a process only.

    Raises
    ------
    ValueError
        If a name in `record.extra_losses` or `record.numbers` makes a key that means something else already.
    """
    evaluations = [evaluation for key, evaluation in record.evaluations.items() if key not in known]
    accuracies = sorted(evaluation.accuracy for evaluation in evaluations)
    line: dict[str, Any] = {
        "round": record.round,
        "accuracy": finite(_accuracy(evaluations)),
        "accuracy-mean": finite(mean(accuracies)),
        "accuracy-std": finite(_population_std(accuracies)),
        "accuracy-worst10": finite(mean(accuracies[: max(1, len(accuracies) // 10)])),
        "loss": finite(_weighted_mean((evaluation.loss, evaluation.total) for evaluation in evaluations)),
        "train-loss": finite(_mean_loss(record.train_losses, record.max_client_weight)),
        "clients": len(record.train_losses),
        "failures": dict(Counter(failure.reason for failure in record.failures)),
        "bytes-down": record.bytes_down,
        "bytes-up": record.bytes_up,
        "seconds": _seconds(record),
        "client-accuracy": {key: finite(evaluation.accuracy) for key, evaluation in record.evaluations.items()},
        "client-train-loss": {key: finite(loss) for key, (loss, _) in record.train_losses.items()},
        "failure-list": [
            {"client": failure.client, "reason": failure.reason, "detail": failure.detail}
            for failure in record.failures
        ],
    }
    if known:
        of_known = [evaluation for key, evaluation in record.evaluations.items() if key in known]
        line["accuracy-known"] = finite(_accuracy(of_known))
    _check_names(record)
    for name, losses in record.extra_losses.items():
        if losses:
            line[f"{name}-loss"] = finite(_mean_loss(losses, record.max_client_weight))
            line[f"{name}-clients"] = len(losses)
    if record.privacy:
        line["epsilon"] = finite(max(epsilon for epsilon, _ in record.privacy.values()))
        line["client-privacy"] = {key: [finite(epsilon), delta] for key, (epsilon, delta) in record.privacy.items()}
    if record.capped:
        line["capped-clients"] = len(record.capped)
        line["client-capped"] = {key: finite(share) for key, share in record.capped.items()}
    return line | {name: finite(number) for name, number in record.numbers.items()}


def extra_losses(line: Mapping[str, Any]) -> list[str]:
    """Return the names in the record's `extra_losses` that a line has a loss of."""
    names = [key.removesuffix("-loss") for key in line if key.endswith("-loss")]
    return [name for name in names if f"{name}-clients" in line]


def finite(value: float | None) -> float | None:
    """Round to six digits; None for NaN and infinity, which JSON does not have."""
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, or None of no values."""
    return sum(values) / len(values) if values else None


def without_start(seconds: Mapping[str, float]) -> float:
    """Return what a round took, less what its process needed to start; `seconds` are those of a record or a line."""
    return seconds["total"] - seconds.get(START, 0.0)


def _seconds(record: RoundRecord) -> dict[str, float]:
    seconds = {phase: record.seconds.get(phase, 0.0) for phase in (*PHASES, "total")}
    if START in record.seconds:
        seconds[START] = record.seconds[START]
    return {phase: round(each, 4) for phase, each in seconds.items()}


def _check_names(record: RoundRecord) -> None:
    """Refuse a key that has a meaning of its own, in this round or in any other."""
    taken = {*METRIC_KEYS, *OPTIONAL_KEYS}
    for name in record.extra_losses:
        for key in (f"{name}-loss", f"{name}-clients"):
            if key in taken:
                raise ValueError(f"extra_losses {name!r}: a round's metrics have a {key!r} already: use another name")
            taken.add(key)
    for name in record.numbers:
        if name in taken:
            raise ValueError(f"numbers {name!r}: a round's metrics have a {name!r} already: use another name")


def _mean_loss(losses: Mapping[str, tuple[float, int]], max_client_weight: float) -> float | None:
    """Return the mean of training losses, given by client as (loss, samples)."""
    weights = capped_weights({key: samples for key, (_, samples) in losses.items()}, max_client_weight)
    return _weighted_mean((loss, weights[key]) for key, (loss, _) in losses.items())


def _accuracy(evaluations: Iterable[Evaluation]) -> float | None:
    return _weighted_mean((evaluation.accuracy, evaluation.total) for evaluation in evaluations)


def _population_std(values: Sequence[float]) -> float | None:
    center = mean(values)
    return None if center is None else math.sqrt(sum((value - center) ** 2 for value in values) / len(values))


def _weighted_mean(pairs: Iterable[tuple[float, int | float]]) -> float | None:
    """Return the mean of values with weights, given as (value, weight)."""
    pairs = list(pairs)
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None
