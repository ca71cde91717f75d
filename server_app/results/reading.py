"""Reads the folder of a run back: one that has finished, one that is still going on, or one that died.

The summary, the console's table and the page all come from here, so that they cannot disagree.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from common.errors import UserError
from common.evaluation import AFTER_TRAINING, TEST, VALIDATION
from common.text import kebab
from server_app.results.formatting import format_decimals, format_range
from server_app.results.metrics import METRIC_KEYS, accuracy_key, extra_losses, further_tests


@dataclass
class ClientRow:
    """One row of `clients.csv`; a column is named as its field, with `-` for `_`, and an empty cell is None."""

    client: str
    architecture: str
    num_params: int
    chunks: int | None  # None where the method has none
    owner: str = ""  # of its samples, where they have owners: a writer, a hospital
    train_samples: int | None = None
    test_samples: int | None = None
    last_accuracy: float | None = None
    best_accuracy: float | None = None
    best_round: int | None = None
    # Of the last of each further test; None where it never made one.
    after_training_accuracy: float | None = None
    validation_accuracy: float | None = None
    rounds_trained: int = 0
    failures: int = 0
    # The guarantee that covers all that it has sent; None where nothing was noised.
    epsilon: float | None = None
    delta: float | None = None
    known: bool = False  # an adapt run's checkpoint has it: it is evaluated, but not trained


@dataclass(frozen=True)
class ArchitectureRow:
    """What the clients of one architecture have in common; accuracies are means over these clients."""

    architecture: str  # "lenet", or "lenet (known)" for those of its clients that are known
    clients: int
    num_params: str  # "239,856", or "120,000 to 239,856" where the clients' K differ
    chunks: str  # a dash where the method has none
    last_accuracy: float | None
    best_accuracy: float | None
    further: dict[str, float | None]  # the last accuracy in each further test that the run has


@dataclass(frozen=True, repr=False)
class Run:
    """The files of a run's folder, parsed. `summary` is None while the run has not finished."""

    run_dir: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]  # the lines of metrics.jsonl, one a round, at least one
    clients: list[ClientRow]
    summary: dict[str, Any] | None
    partition: dict[str, Any] | None

    def __repr__(self) -> str:
        """Say in a line which run it is and how far it came."""
        rounds, state = self.metrics[-1]["round"], "finished" if self.summary else "not finished"
        return (
            f"<Run {str(self.run_dir)!r}: {self.config.get('method', 'unknown method')}, "
            f"round {rounds}, mean accuracy {format_decimals(self.accuracy_mean)}, {state}>"
        )

    @property
    def accuracy(self) -> float | None:
        """The accuracy over all test samples after the last round that was evaluated; None before any."""
        last: float | None = self.evaluated[-1]["accuracy"] if self.evaluated else None
        return last

    @property
    def accuracy_mean(self) -> float | None:
        """The mean over clients of their accuracies after that round; None before any."""
        last: float | None = self.evaluated[-1]["accuracy-mean"] if self.evaluated else None
        return last

    @property
    def new_clients(self) -> list[ClientRow]:
        """The clients that accuracies and losses are over: all but those that an adapt run knew from its checkpoint."""
        return [row for row in self.clients if not row.known]

    @property
    def has_known_clients(self) -> bool:
        """Whether some clients are known, as in an adapt run; numbers then speak of the new ones, if not said else."""
        return any(row.known for row in self.clients)

    @property
    def has_owners(self) -> bool:
        """Whether the clients are owners of samples, with names."""
        return any(row.owner for row in self.clients)

    @property
    def has_chunks(self) -> bool:
        """Whether the method cuts some client's parameters into chunks."""
        return any(row.chunks is not None for row in self.clients)

    @property
    def extra_losses(self) -> list[str]:
        """What some round has a loss of besides the clients' own models, in the order in which they came."""
        names = dict.fromkeys(name for line in self.metrics for name in extra_losses(line))
        return [name for name in names if any(line.get(f"{name}-loss") is not None for line in self.metrics)]

    @property
    def further_tests(self) -> list[str]:
        """The names of the tests that some client made beside that of the weights as deployed on its test samples."""
        return further_tests(self.metrics)

    @property
    def evaluated(self) -> list[dict[str, Any]]:
        """The rounds after which clients that are not known were evaluated."""
        return [line for line in self.metrics if line["accuracy"] is not None]

    def best(self, key: str) -> dict[str, Any] | None:
        """Return the round with the highest value of `key`, the first one where several tie; None: no round has one."""
        lines = [line for line in self.evaluated if line.get(key) is not None]
        return max(lines, key=lambda line: float(line[key]), default=None)

    def last(self, key: str) -> dict[str, Any] | None:
        """Return the last round that has a value of `key`; None: no round has one."""
        return next((line for line in reversed(self.metrics) if line.get(key) is not None), None)

    def fewer_after_training(self, line: Mapping[str, Any] | None) -> str:
        """Return `2 of 3 clients` where of those that tested a round's weights so few did after a local epoch, too.

        The others' epoch diverged, or they do not make this test: its mean is without them. Empty where it is over all.
        """
        if line is None:
            return ""
        known = {row.client for row in self.clients if row.known}
        deployed, after = (
            line.get(f"client-{accuracy_key(test)}", {}).keys() - known for test in (TEST, AFTER_TRAINING)
        )
        return f"{len(after)} of {len(deployed)} clients" if 0 < len(after) < len(deployed) else ""

    def headline(self) -> dict[str, Any]:
        """Return the numbers that sum up the run so far, as `summary.json` names them.

        None stands for what was never evaluated. The best of a number is its maximum over rounds, so that
        `best-accuracy-mean` may be of another round than `best-accuracy`. `last-accuracy-known` is there only if
        there are known clients, and is of the last round after which any of them was evaluated. `epsilon` and `delta`
        (each the largest of any client), `epsilon-client` (whose epsilon it is) and `noised-clients` are there only if
        a client sent noised vectors.

        `chosen-round` is the round that one would keep: the best by the mean accuracy over clients on validation
        samples where there are any, else on the test samples, which `best-chosen-on` says. `chosen-accuracy` and
        `chosen-accuracy-mean` are those of that round on the test samples. For each further test, validation and after
        training, there are `best-` and `last-NAME-accuracy` and `-NAME-accuracy-mean`, only where there is such a test.
        """
        best, best_mean = self.best("accuracy"), self.best("accuracy-mean")
        last = self.evaluated[-1] if self.evaluated else None
        headline = {
            "best-accuracy": best["accuracy"] if best else None,
            "best-round": best["round"] if best else None,
            "last-accuracy": self.accuracy,
            "last-round": last["round"] if last else None,
            "best-accuracy-mean": best_mean["accuracy-mean"] if best_mean else None,
            "best-mean-round": best_mean["round"] if best_mean else None,
            "last-accuracy-mean": self.accuracy_mean,
            "last-accuracy-std": last["accuracy-std"] if last else None,
            "last-accuracy-worst10": last["accuracy-worst10"] if last else None,
            "rounds": self.metrics[-1]["round"],
            "wall-seconds": self.metrics[-1]["wall-seconds"],
            "bytes-down": sum(line["bytes-down"] for line in self.metrics),
            "bytes-up": sum(line["bytes-up"] for line in self.metrics),
            "clients": len(self.clients),
        }
        validated = self.best(f"{accuracy_key(VALIDATION)}-mean")
        chosen = validated or best_mean
        headline["best-chosen-on"] = VALIDATION if validated else TEST
        headline["chosen-round"] = chosen["round"] if chosen else None
        headline["chosen-accuracy"] = chosen["accuracy"] if chosen else None
        headline["chosen-accuracy-mean"] = chosen["accuracy-mean"] if chosen else None
        for test in self.further_tests:
            for key in (accuracy_key(test), f"{accuracy_key(test)}-mean"):
                values = [line[key] for line in self.metrics if line.get(key) is not None]
                headline[f"best-{key}"] = max(values, default=None)
                headline[f"last-{key}"] = values[-1] if values else None
        noised = [row for row in self.clients if row.epsilon is not None]
        if noised:
            worst = max(noised, key=lambda row: row.epsilon or 0.0)
            headline["epsilon"], headline["epsilon-client"] = worst.epsilon, worst.client
            headline["delta"] = max(row.delta or 0.0 for row in noised)
            headline["noised-clients"] = len(noised)
        if self.has_known_clients:
            values = [line["accuracy-known"] for line in self.metrics if line.get("accuracy-known") is not None]
            headline["last-accuracy-known"] = values[-1] if values else None
        return headline

    def accuracies(self, architecture: str, *, known: bool = False, test: str = TEST) -> list[tuple[int, list[float]]]:
        """Return (round, accuracies of the architecture's evaluated clients) for each round that has any.

        The clients are those that are known or, by default, those that are not; `test` names one of their tests.
        """
        key = f"client-{accuracy_key(test)}"
        members = {row.client for row in self.clients if (row.architecture, row.known) == (architecture, known)}
        curve = []
        for line in self.metrics:
            values = [value for client, value in line.get(key, {}).items() if client in members]
            if values:
                curve.append((line["round"], values))
        return curve

    def architectures(self) -> list[ArchitectureRow]:
        """Return one row an architecture in the order in which they came, then one for each that has known clients."""
        groups: dict[tuple[bool, str], list[ClientRow]] = {}
        for client in sorted(self.clients, key=lambda row: row.known):
            groups.setdefault((client.known, client.architecture), []).append(client)
        rows = []
        for (known, architecture), members in groups.items():
            means = [float(np.mean(values)) for _, values in self.accuracies(architecture, known=known)]
            further = {test: self.accuracies(architecture, known=known, test=test) for test in self.further_tests}
            rows.append(
                ArchitectureRow(
                    f"{architecture} (known)" if known else architecture,
                    clients=len(members),
                    num_params=format_range(row.num_params for row in members),
                    chunks=format_range(row.chunks for row in members),
                    last_accuracy=means[-1] if means else None,
                    best_accuracy=max(means, default=None),
                    further={test: float(np.mean(each[-1][1])) if each else None for test, each in further.items()},
                )
            )
        return rows


def read_run(run_dir: Path) -> Run:
    """Read the files of a run, finished or not.

    Raises
    ------
    UserError
        If a file that every run has is missing, or a line of `metrics.jsonl` is broken.
    """
    if not (run_dir / "metrics.jsonl").exists():
        raise UserError(f"{run_dir} holds no metrics.jsonl: give the folder of a run that has finished a round")
    metrics = read_metrics(run_dir / "metrics.jsonl")
    if not metrics:
        raise UserError(f"{run_dir / 'metrics.jsonl'} is empty: give the folder of a run that has finished a round")
    return Run(
        run_dir=run_dir,
        config=yaml.safe_load(_read_text(run_dir / "config.yaml")) or {},
        metrics=metrics,
        clients=read_clients(run_dir / "clients.csv"),
        summary=_read_json_if_there(run_dir / "summary.json"),
        partition=_read_json_if_there(run_dir / "partition.json"),
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`.

    Raises
    ------
    UserError
        If a line is not a JSON object with the keys of a round.
    """
    return parse_metrics(_read_text(path), path)


def parse_metrics(text: str, path: Path) -> list[dict[str, Any]]:
    """Return the lines in the text of a `metrics.jsonl`; as `read_metrics`. `path` is for the error's sentence."""
    lines: list[dict[str, Any]] = []
    for number, line_text in enumerate(text.splitlines(), start=1):
        try:
            line = json.loads(line_text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error.msg}): repair or delete the line") from error
        missing = [key for key in METRIC_KEYS if key not in line] if isinstance(line, dict) else list(METRIC_KEYS)
        if missing:
            raise UserError(
                f"{path}, line {number} is not a round's metrics (no `{missing[0]}`): repair or delete the line"
            )
        lines.append(line)
    return lines


def read_clients(path: Path) -> list[ClientRow]:
    """Read a `clients.csv`."""
    rows = []
    for row in csv.DictReader(io.StringIO(_read_text(path), newline="")):
        values: dict[str, Any] = {}
        for field in fields(ClientRow):
            if field.name == "known":
                values["known"] = row["known"] == "true"
                continue
            text = row[kebab(field.name)]
            if field.name in ("client", "architecture", "owner"):
                values[field.name] = text
            elif field.name.endswith("_accuracy") or field.name in ("epsilon", "delta"):
                values[field.name] = float(text) if text else None
            else:
                values[field.name] = int(text) if text else None
        rows.append(ClientRow(**values))
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: every run writes one, so this is not the whole folder of a run") from error


def _read_json_if_there(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
