"""Writes down a run while it goes on: the files of `results/<run-name>/`, what `log-to` names, the console's lines.

The strategy hands in one `RoundRecord` a round.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.files import WriteError, append_bytes, write_bytes, write_text
from common.text import kebab, snake
from server_app.results.by_round import ClientsByRound
from server_app.results.formatting import FURTHER_TESTS, format_decimals, format_duration
from server_app.results.metrics import accuracy_key, extra_losses, finite, further_tests, round_metrics, without_start
from server_app.results.reading import ClientRow, parse_metrics, read_clients, read_run
from server_app.results.record import START, Failure, RoundRecord
from server_app.results.report import write_report
from server_app.results.sinks import Sinks
from server_app.results.sinks.base import LoggedRun

logger = logging.getLogger(__name__)

_DRAWING_PAUSE = 50  # times the length of a drawing until the next: drawing costs at most 2 percent of a run
_RECENT_ROUNDS = 10
_NAMED_FAILURES = 5


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
    log_to
        Where the numbers go besides the folder: names of sinks.
    clock
        Seconds that never go backwards.

    Raises
    ------
    UserError
        If the folder already holds a run, and in all methods for what cannot be written, as on a full disk: a run that
        nobody could read about ends. It goes on without a drawing, without parquet and without a sink.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Mapping[str, object],
        *,
        num_rounds: int,
        resume_after: int | None = None,
        log_to: Sequence[str] = ("tensorboard",),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the folder and write `config.yaml`."""
        self.run_dir = run_dir
        self.num_rounds = num_rounds
        self._config = dict(config)
        self._clock = clock
        self._rows: dict[str, ClientRow] = {}
        self._owners: dict[str, str] = {}  # by client, where the data of a simulation name them
        self._round_seconds: deque[float] = deque(maxlen=_RECENT_ROUNDS)  # between two rounds that were logged
        self._next_drawing = -math.inf
        self._metrics = run_dir / "metrics.jsonl"
        self._by_round = ClientsByRound(run_dir)
        if not self._metrics.exists():
            self._by_round.remove()
        if self._metrics.exists() and resume_after is None:
            raise UserError(f"{run_dir} already holds a run: choose another `run-name`, or go on with resume=latest.")
        with _written(run_dir / "config.yaml"):
            run_dir.mkdir(parents=True, exist_ok=True)
            write_text(run_dir / "config.yaml", yaml.safe_dump(self._config, sort_keys=False))
        self._earlier: list[dict[str, Any]] = []  # lines of the run that this one goes on with
        self._earlier_rows: dict[str, ClientRow] = {}
        if resume_after is not None:
            self._take_up(resume_after)
        run = LoggedRun(run_dir, self._config, resume_after)
        self._sinks = Sinks(log_to, run, self._earlier, self._earlier_rows)
        self._started = clock() - (self._earlier[-1]["wall-seconds"] if self._earlier else 0.0)
        self._last_logged: float | None = None

    def add_client(self, key: str, num_params: int, chunks: int | None, architecture: str, known: bool = False) -> None:
        """Add a client, once it is admitted.

        `chunks` is None for methods without chunks. `architecture` is the label under which the plots group clients;
        `known` says that the client is in the checkpoint that an adapt run started from (paper, section 4.4).
        """
        owner = self._owners.get(key, "")
        row = self._rows[key] = ClientRow(key, architecture, num_params, chunks, owner, known=known)
        if key in self._earlier_rows:
            row.train_samples = self._earlier_rows[key].train_samples
            row.test_samples = self._earlier_rows[key].test_samples
        for line in self._earlier:
            _count(row, line)

    def set_data(self, data: Mapping[str, Any], partition: Mapping[str, Any]) -> None:
        """Write `data.json` and `partition.json`, which only a simulation knows; call it before clients are added.

        What they hold is in `data.py`. The names of owners go into the rows of their clients.
        """
        self._owners = dict(partition.get("owners", {}))
        self._write_json("data.json", data)
        self._write_json("partition.json", partition)

    def log_round(self, record: RoundRecord) -> None:
        """Append the round to the run's files and to what `log-to` names, and redraw the report if it is due.

        Raises ValueError, as `round_metrics`, before anything is written.
        """
        now = self._clock()
        if self._last_logged is not None:  # before that lies the start-up
            self._round_seconds.append(now - self._last_logged)
        self._last_logged = now
        line = round_metrics(record, self._known()) | {"wall-seconds": round(now - self._started, 3)}
        for key, (_, samples) in record.train_losses.items():
            self._rows[key].train_samples = samples
        for key, evaluation in record.evaluations.items():
            self._rows[key].test_samples = evaluation.total
        for row in self._rows.values():
            _count(row, line)
        # The tables first: a folder with a line of metrics then always has the clients that the line speaks of.
        self._write_clients()
        losses = {key: finite(evaluation.loss) for key, evaluation in record.evaluations.items()}
        with _written(self._by_round.path):
            self._by_round.append(line, self._rows, losses)
        with _written(self._metrics):
            append_bytes(self._metrics, _encoded(line))
        self._sinks.add(line, self._rows)
        if self._clock() >= self._next_drawing:
            self._draw()

    def finish(self) -> dict[str, Any]:
        """Write the parquet, `summary.json`, the last drawing and everything still buffered; return the summary.

        Call it once, after at least one round.
        """
        run = read_run(self.run_dir)
        summary: dict[str, Any] = run.headline() | {
            "last-accuracy-by-architecture": {
                row.architecture: finite(row.last_accuracy) for row in run.architectures()
            },
            "wall-seconds": round(self._clock() - self._started, 3),
            "method": self._config.get("method"),
            "config": self._config,
        }
        self._write_parquet()
        self._write_json("summary.json", summary)
        self._draw()
        best = {key: value for key, value in summary.items() if key.startswith("best-")}
        self._sinks.close({key: value for key, value in best.items() if isinstance(value, int | float)})
        return summary

    def close(self) -> None:
        """Write what is still buffered; what `log-to` names is told that a run which `finish` has not ended failed."""
        self._sinks.close()

    def progress_line(self, record: RoundRecord) -> str:
        """Return the console's line for the round that was logged last."""
        line = round_metrics(record, self._known())
        if line["accuracy"] is None:
            accuracy = "not evaluated"
        else:
            beside = f"worst 10 % {line['accuracy-worst10']:.3f}, all samples {line['accuracy']:.3f}"
            accuracy = f"mean accuracy {line['accuracy-mean']:.3f} ({beside})"
        asked = record.train_losses.keys() | {failure.client for failure in record.failures}
        parts = [f"round {record.round:>3}/{self.num_rounds}", accuracy]
        for test in further_tests([line]):
            parts.append(f"{FURTHER_TESTS[test]} {format_decimals(line[f'{accuracy_key(test)}-mean'])}")
        if line.get("accuracy-known") is not None:
            parts.append(f"known clients {line['accuracy-known']:.3f}")
        parts.append(f"train loss {format_decimals(line['train-loss'])}")
        parts += [f"{name} loss {format_decimals(line[f'{name}-loss'])}" for name in extra_losses(line)]
        seconds = line["seconds"]
        start = f", of which {format_duration(seconds[START])} start-up" if START in seconds else ""
        parts += [f"{len(record.train_losses)}/{len(asked)} clients", format_duration(seconds["total"]) + start]
        if record.failures:
            parts.append("failed: " + ", ".join(_named(record.failures)))
        # A round is logged when the next one has tested what it led to, and so has been played, too.
        left = self.num_rounds - record.round - 1
        if left > 0:
            # Until two rounds have been logged, the only one is all there is to go by.
            recent = self._round_seconds or [without_start(seconds)]
            parts.append(f"{format_duration(left * sum(recent) / len(recent))} left")
        return " | ".join(parts)

    def _known(self) -> set[str]:
        return {row.client for row in self._rows.values() if row.known}

    def _take_up(self, last_round: int) -> None:
        """Read what is there, and drop the lines of rounds that are run again."""
        if not self._metrics.exists():
            return
        whole, _, _ = self._metrics.read_bytes().rpartition(b"\n")  # what a crash cut short is not a line
        lines = parse_metrics(whole.decode(), self._metrics)
        self._earlier = [line for line in lines if line["round"] <= last_round]
        self._earlier_rows = {row.client: row for row in read_clients(self.run_dir / "clients.csv")}
        with _written(self._metrics):
            write_bytes(self._metrics, b"".join(_encoded(line) for line in self._earlier))
        with _written(self._by_round.path):
            self._by_round.take_up(last_round, self._earlier, self._earlier_rows)
        (self.run_dir / "summary.json").unlink(missing_ok=True)

    def _write_clients(self) -> None:
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer)
        writer.writerow(kebab(column.name) for column in fields(ClientRow))
        writer.writerows(
            [str(value).lower() if isinstance(value, bool) else value for value in astuple(row)]
            for row in self._rows.values()
        )
        with _written(self.run_dir / "clients.csv"):
            write_text(self.run_dir / "clients.csv", buffer.getvalue())

    def _write_parquet(self) -> None:
        try:
            self._by_round.write_parquet(self._rows)
        except Exception as error:  # as with a drawing: the table itself is there
            logger.warning("%s could not be written: %s", self._by_round.parquet, error)

    def _write_json(self, name: str, content: object) -> None:
        with _written(self.run_dir / name):
            write_text(self.run_dir / name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def _draw(self) -> None:
        started = self._clock()
        try:
            write_report(self.run_dir)
        except OSError as error:
            logger.warning("%s.", WriteError(self.run_dir / "report.html", error))
            self._next_drawing = math.inf
        except Exception:
            # Hours of training are worth more than a picture, which `write_report` can draw again at any time.
            # What failed now will fail again after the next round: one warning, and one more try at the end.
            logger.warning("could not draw the report of %s", self.run_dir, exc_info=True)
            self._next_drawing = math.inf
        else:
            ended = self._clock()
            self._next_drawing = ended + _DRAWING_PAUSE * (ended - started)


def _encoded(line: dict[str, Any]) -> bytes:
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def _named(failures: Sequence[Failure]) -> list[str]:
    """The clients that failed, each once with its reasons, and how many more there are."""
    reasons: dict[str, dict[str, None]] = {}
    for failure in failures:
        reasons.setdefault(failure.client, {})[failure.reason] = None
    named = [f"{client} ({', '.join(each)})" for client, each in reasons.items()]
    more = len(named) - _NAMED_FAILURES
    return [*named[:_NAMED_FAILURES], f"{more} more"] if more > 0 else named


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Raise UserError where a file without which a run is none cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}), so the run ends: make room, and go on with "
            "resume=latest from its last checkpoint, or start it anew."
        ) from error


def _count(row: ClientRow, line: dict[str, Any]) -> None:
    """Bring a client's row up to date with a line of `metrics.jsonl`."""
    row.rounds_trained += row.client in line["client-train-loss"]
    row.failures += sum(failure["client"] == row.client for failure in line["failure-list"])
    if row.client in line.get("client-privacy", {}):
        row.epsilon, row.delta = line["client-privacy"][row.client]
    for test in further_tests([line]):
        key = accuracy_key(test)
        setattr(row, snake(key), line[f"client-{key}"].get(row.client, getattr(row, snake(key))))
    accuracy = line["client-accuracy"].get(row.client)
    if accuracy is not None:
        row.last_accuracy = accuracy
        if row.best_accuracy is None or accuracy > row.best_accuracy:
            row.best_accuracy, row.best_round = accuracy, line["round"]
