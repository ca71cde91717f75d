"""Writes down a run while it goes on: the files of `results/<run-name>/`, TensorBoard events and the console's lines.

The strategies hand in one `RoundRecord` a round; how aggregates over clients are defined is in `round_metrics`.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter

from common.errors import UserError
from common.evaluation import Evaluation
from server_app.report import (
    PHASES,
    ClientRow,
    format_duration,
    read_clients,
    read_metrics,
    read_run,
    write_atomically,
    write_report,
)

logger = logging.getLogger(__name__)

_DRAWING_PAUSE = 50  # times the length of a drawing until the next: drawing costs at most 2 percent of a run
_RECENT_ROUNDS = 10
_NAMED_FAILURES = 5


@dataclass(frozen=True)
class Failure:
    """A client that lost its round; `reason` is a short kebab-case name such as `late` or `wrong-length`."""

    client: str
    reason: str
    detail: str


@dataclass
class RoundRecord:
    """What happened in one round."""

    round: int
    # Of the weights after this round's update, by client key; empty when the round was not evaluated.
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    # Mean loss and number of training samples of each client whose update was used.
    train_losses: dict[str, tuple[float, int]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0
    # By phase: generate, exchange, update and total; a phase that the method does not have may be left out.
    seconds: dict[str, float] = field(default_factory=dict)
    # Mean loss and number of samples of each client whose update of the global model was used; empty for methods
    # without a global model.
    global_losses: dict[str, tuple[float, int]] = field(default_factory=dict)
    # Epsilon and delta of all that a client has sent so far, of those that send noised vectors.
    privacy: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RoundRecord:
        """Undo `dataclasses.asdict`."""
        record = cls(**values)
        record.evaluations = {key: Evaluation(**value) for key, value in values["evaluations"].items()}
        record.failures = [Failure(**value) for value in values["failures"]]
        return record


class RunTracker:
    """The record of one run, kept in its folder so that nothing is lost when the process dies.

    Parameters
    ----------
    run_dir
        The run's folder; made if it does not exist.
    config
        The resolved configuration, written to `config.yaml`.
    num_rounds
        Planned number of rounds, for the estimate of the time left.
    resume_after
        Go on in a folder that holds a run already: keep its lines up to this round, drop those after it.
    clock
        Seconds that never go backwards.

    Raises
    ------
    UserError
        If the folder already holds a run.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Mapping[str, object],
        *,
        num_rounds: int,
        resume_after: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the folder and write `config.yaml`."""
        self.run_dir = run_dir
        self.num_rounds = num_rounds
        self._config = dict(config)
        self._clock = clock
        self._rows: dict[str, ClientRow] = {}
        self._round_seconds: deque[float] = deque(maxlen=_RECENT_ROUNDS)
        self._next_drawing = -math.inf
        self._metrics = run_dir / "metrics.jsonl"
        if self._metrics.exists() and resume_after is None:
            raise UserError(f"{run_dir} already holds a run: choose another `run-name`, or go on with resume=latest.")
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / "config.yaml", yaml.safe_dump(self._config, sort_keys=False).encode())
        self._earlier: list[dict[str, Any]] = []  # lines of the run that this one goes on with
        self._earlier_rows: dict[str, ClientRow] = {}
        if resume_after is not None:
            self._take_up(resume_after)
        self._events = SummaryWriter(
            str(run_dir / "tensorboard"), purge_step=None if resume_after is None else resume_after + 1
        )
        self._started = clock() - (self._earlier[-1]["wall-seconds"] if self._earlier else 0.0)
        self._last_logged: float | None = None

    def add_client(self, key: str, num_params: int, chunks: int, architecture: str, known: bool = False) -> None:
        """Add a client, once it is admitted.

        `architecture` is the label under which the plots group clients; `known` says that the client is in the
        checkpoint that an adapt run started from (paper, section 4.4).
        """
        row = self._rows[key] = ClientRow(key, architecture, num_params, chunks, known=known)
        if key in self._earlier_rows:
            row.train_samples = self._earlier_rows[key].train_samples
            row.test_samples = self._earlier_rows[key].test_samples
        for line in self._earlier:
            _count(row, line)

    def set_class_counts(self, counts: Mapping[str, Sequence[int]], class_names: Sequence[str]) -> None:
        """Write `partition.json`: how many samples of each class each client holds. Only a simulation knows this."""
        content = {"class-names": list(class_names), "clients": {key: list(row) for key, row in counts.items()}}
        self._write_json("partition.json", content)

    def log_round(self, record: RoundRecord) -> None:
        """Append the round to `metrics.jsonl` and the event files, and redraw the report if it is due."""
        now = self._clock()
        if self._last_logged is None:
            self._round_seconds.append(record.seconds.get("total", 0.0))
        else:
            if record.round == 2:
                self._round_seconds.clear()  # the first round also started the workers
            self._round_seconds.append(now - self._last_logged)
        self._last_logged = now
        line = round_metrics(record, self._known()) | {"wall-seconds": round(now - self._started, 3)}
        for key, (_, samples) in record.train_losses.items():
            self._rows[key].train_samples = samples
        for key, evaluation in record.evaluations.items():
            self._rows[key].test_samples = evaluation.total
        for row in self._rows.values():
            _count(row, line)
        # The table first: a folder with a line of metrics then always has the clients that the line speaks of.
        self._write_clients()
        # A buffer that takes the whole line makes it one write, so that a reader does not see half of it.
        with self._metrics.open("ab", buffering=1 << 20) as file:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._write_events(line)
        if self._clock() >= self._next_drawing:
            self._draw()

    def finish(self) -> dict[str, Any]:
        """Write `summary.json`, the last drawing and everything still buffered; return the summary.

        Call it once, after at least one round.
        """
        run = read_run(self.run_dir)
        summary: dict[str, Any] = run.headline() | {
            "last-accuracy-by-architecture": {
                row.architecture: _finite(row.last_accuracy) for row in run.architectures()
            },
            "wall-seconds": round(self._clock() - self._started, 3),
            "method": self._config.get("method"),
            "config": self._config,
        }
        self._write_json("summary.json", summary)
        self._events.close()
        self._draw()
        return summary

    def progress_line(self, record: RoundRecord) -> str:
        """Return the console's line for the round that was logged last."""
        line = round_metrics(record, self._known())
        if line["accuracy"] is None:
            accuracy = "not evaluated"
        else:
            mean, worst = line["accuracy-mean"], line["accuracy-worst10"]
            accuracy = f"accuracy {line['accuracy']:.3f} (mean {mean:.3f}, worst 10 % {worst:.3f})"
        asked = record.train_losses.keys() | {failure.client for failure in record.failures}
        parts = [f"round {record.round:>3}/{self.num_rounds}", accuracy]
        if line.get("accuracy-known") is not None:
            parts.append(f"known clients {line['accuracy-known']:.3f}")
        parts.append(f"train loss {_three_digits(line['train-loss'])}")
        if "global-loss" in line:
            parts.append(f"global loss {_three_digits(line['global-loss'])}")
        parts += [f"{len(record.train_losses)}/{len(asked)} clients", format_duration(line["seconds"]["total"])]
        if record.failures:
            named = [f"{failure.client} ({failure.reason})" for failure in record.failures[:_NAMED_FAILURES]]
            if len(record.failures) > _NAMED_FAILURES:
                named.append(f"{len(record.failures) - _NAMED_FAILURES} more")
            parts.append("failed: " + ", ".join(named))
        if record.round < self.num_rounds:
            mean_seconds = sum(self._round_seconds) / len(self._round_seconds)
            parts.append(f"{format_duration(mean_seconds * (self.num_rounds - record.round))} left")
        return " | ".join(parts)

    def _known(self) -> set[str]:
        return {row.client for row in self._rows.values() if row.known}

    def _take_up(self, last_round: int) -> None:
        """Read what is there, and drop the lines of rounds that are run again."""
        if not self._metrics.exists():
            return
        whole, newline, _ = self._metrics.read_bytes().rpartition(b"\n")  # what a crash cut short is not a line
        write_atomically(self._metrics, whole + newline)
        self._earlier = [line for line in read_metrics(self._metrics) if line["round"] <= last_round]
        self._earlier_rows = {row.client: row for row in read_clients(self.run_dir / "clients.csv")}
        lines = [json.dumps(line, allow_nan=False).encode() + b"\n" for line in self._earlier]
        write_atomically(self._metrics, b"".join(lines))
        (self.run_dir / "summary.json").unlink(missing_ok=True)

    def _write_clients(self) -> None:
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer)
        writer.writerow(column.name.replace("_", "-") for column in fields(ClientRow))
        writer.writerows(
            [str(value).lower() if isinstance(value, bool) else value for value in astuple(row)]
            for row in self._rows.values()
        )
        write_atomically(self.run_dir / "clients.csv", buffer.getvalue().encode())

    def _write_json(self, name: str, content: object) -> None:
        write_atomically(self.run_dir / name, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())

    def _write_events(self, line: dict[str, Any]) -> None:
        scalars = {key: line[key] for key in ("accuracy", "accuracy-mean", "accuracy-worst10", "loss", "train-loss")}
        scalars |= {key: line.get(key) for key in ("accuracy-known", "global-loss", "global-clients", "epsilon")}
        scalars |= {"bytes/down": line["bytes-down"], "bytes/up": line["bytes-up"]}
        scalars |= {f"seconds/{phase}": seconds for phase, seconds in line["seconds"].items()}
        by_architecture: dict[str, list[float]] = {}
        for key, accuracy in line["client-accuracy"].items():
            row = self._rows[key]
            group = "accuracy-known-by-architecture" if row.known else "accuracy-by-architecture"
            by_architecture.setdefault(f"{group}/{row.architecture}", []).append(accuracy)
        scalars |= {tag: _mean(values) for tag, values in by_architecture.items()}
        for tag, value in scalars.items():
            if value is not None:
                self._events.add_scalar(tag, value, line["round"])

    def _draw(self) -> None:
        started = self._clock()
        try:
            write_report(self.run_dir)
        except Exception:
            # Hours of training are worth more than a picture, which `write_report` can draw again at any time.
            # What failed now will fail again after the next round: one warning, and one more try at the end.
            logger.warning("could not draw the report of %s", self.run_dir, exc_info=True)
            self._next_drawing = math.inf
        else:
            ended = self._clock()
            self._next_drawing = ended + _DRAWING_PAUSE * (ended - started)


def _count(row: ClientRow, line: dict[str, Any]) -> None:
    """Bring a client's row up to date with a line of `metrics.jsonl`."""
    row.rounds_trained += row.client in line["client-train-loss"]
    row.failures += sum(failure["client"] == row.client for failure in line["failure-list"])
    if row.client in line.get("client-privacy", {}):
        row.epsilon, row.delta = line["client-privacy"][row.client]
    accuracy = line["client-accuracy"].get(row.client)
    if accuracy is not None:
        row.last_accuracy = accuracy
        if row.best_accuracy is None or accuracy > row.best_accuracy:
            row.best_accuracy, row.best_round = accuracy, line["round"]


def round_metrics(record: RoundRecord, known: Collection[str] = ()) -> dict[str, Any]:
    """Return a round's line of `metrics.jsonl`, less its `wall-seconds`.

    `accuracy` is all correct answers over all test samples. `accuracy-mean`, `accuracy-std` (of the population) and
    `accuracy-worst10` (mean of the worst tenth, rounded down, at least one client) are over clients. Losses are means a
    sample. What there is no value for, or no finite one, is None.

    `known` are the keys of the clients that an adapt run only evaluates. They count in `accuracy-known`, defined as
    `accuracy` and there only if a client is known, and in none of the other accuracies, nor in `loss`. `global-loss`
    and `global-clients` are there only if a client's update of the global model was used; `epsilon`, the largest of any
    client, and `client-privacy`, each client's epsilon and delta, only if a client sent noised vectors.
    """
    evaluations = [evaluation for key, evaluation in record.evaluations.items() if key not in known]
    accuracies = sorted(evaluation.accuracy for evaluation in evaluations)
    mean = _mean(accuracies)
    optional: dict[str, Any] = {}
    if known:
        of_known = [evaluation for key, evaluation in record.evaluations.items() if key in known]
        optional["accuracy-known"] = _finite(_accuracy(of_known))
    if record.global_losses:
        optional["global-loss"] = _finite(_weighted_mean(record.global_losses.values()))
        optional["global-clients"] = len(record.global_losses)
    if record.privacy:
        optional["epsilon"] = _finite(max(epsilon for epsilon, _ in record.privacy.values()))
        optional["client-privacy"] = {
            key: [_finite(epsilon), delta] for key, (epsilon, delta) in record.privacy.items()
        }
    return {
        "round": record.round,
        "accuracy": _finite(_accuracy(evaluations)),
        "accuracy-mean": _finite(mean),
        "accuracy-std": _finite(
            None if mean is None else math.sqrt(sum((a - mean) ** 2 for a in accuracies) / len(accuracies))
        ),
        "accuracy-worst10": _finite(_mean(accuracies[: max(1, len(accuracies) // 10)])),
        "loss": _finite(_weighted_mean((evaluation.loss, evaluation.total) for evaluation in evaluations)),
        "train-loss": _finite(_weighted_mean(record.train_losses.values())),
        "clients": len(record.train_losses),
        "failures": _tally(failure.reason for failure in record.failures),
        "bytes-down": record.bytes_down,
        "bytes-up": record.bytes_up,
        "seconds": {phase: round(record.seconds.get(phase, 0.0), 4) for phase in (*PHASES, "total")},
        "client-accuracy": {key: _finite(evaluation.accuracy) for key, evaluation in record.evaluations.items()},
        "client-train-loss": {key: _finite(loss) for key, (loss, _) in record.train_losses.items()},
        "failure-list": [
            {"client": failure.client, "reason": failure.reason, "detail": failure.detail}
            for failure in record.failures
        ],
    } | optional


def _accuracy(evaluations: Iterable[Evaluation]) -> float | None:
    return _weighted_mean((evaluation.accuracy, evaluation.total) for evaluation in evaluations)


def _three_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _finite(value: float | None) -> float | None:
    """Round to six digits; None for NaN and infinity, which JSON does not have."""
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _weighted_mean(pairs: Iterable[tuple[float, int]]) -> float | None:
    """Return the mean of values with weights, given as (value, weight)."""
    pairs = list(pairs)
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None


def _tally(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts
