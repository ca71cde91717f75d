"""Turns the folder of a run into `curves.png` and `report.html`, reading nothing but the files in that folder.

Works on a run that is still going on, and on one that died. `tracking.py` writes the files and reads them back through
here, so that the summary, the console's table and the page cannot disagree.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from common.errors import UserError
from server_app.report_template import TEMPLATE

METRIC_KEYS = (
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
PHASES = ("generate", "exchange", "update")

_REFRESH_SECONDS = 15
_DPI = 160  # sharp in the 880 pixels that the page gives a plot
_INK = "#1f2933"
_GRID = "#e4e7eb"
_BEST = "#f2c14e"
_COLOURS = (
    "#3b6fb6",
    "#d9722e",
    "#3f9a5f",
    "#a64d9a",
    "#b8912f",
    "#2a9db0",
    "#c44f5c",
    "#7a6ac0",
    "#8a7560",
    "#6b8e23",
)


@dataclass
class ClientRow:
    """One row of `clients.csv`; a column is named as its field, with `-` for `_`, and an empty cell is None."""

    client: str
    architecture: str
    num_params: int
    chunks: int
    train_samples: int | None = None
    test_samples: int | None = None
    last_accuracy: float | None = None
    best_accuracy: float | None = None
    best_round: int | None = None
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
    chunks: str
    last_accuracy: float | None
    best_accuracy: float | None


@dataclass(frozen=True)
class Run:
    """The files of a run's folder, parsed. `summary` is None while the run has not finished."""

    run_dir: Path
    config: dict[str, Any]
    rounds: list[dict[str, Any]]  # the lines of metrics.jsonl, at least one
    clients: list[ClientRow]
    summary: dict[str, Any] | None
    partition: dict[str, Any] | None

    @property
    def new_clients(self) -> list[ClientRow]:
        """The clients that accuracies and losses are over: all but those that an adapt run knew from its checkpoint."""
        return [row for row in self.clients if not row.known]

    @property
    def has_known_clients(self) -> bool:
        """Whether some clients are known, as in an adapt run; numbers then speak of the new ones, if not said else."""
        return any(row.known for row in self.clients)

    @property
    def evaluated(self) -> list[dict[str, Any]]:
        """The rounds after which clients that are not known were evaluated."""
        return [line for line in self.rounds if line["accuracy"] is not None]

    def best(self, key: str) -> dict[str, Any] | None:
        """Return the round with the highest value of `key`, the first one where several tie."""
        return max(self.evaluated, key=lambda line: float(line[key]), default=None)

    def headline(self) -> dict[str, Any]:
        """Return the numbers that sum up the run so far, as `summary.json` names them.

        None stands for what was never evaluated. The best of a number is its maximum over rounds, so that
        `best-accuracy-mean` may be of another round than `best-accuracy`. `last-accuracy-known` is there only if
        there are known clients, and is of the last round after which any of them was evaluated. `epsilon`, `delta`
        (each the largest of any client) and `noised-clients` are there only if a client sent noised vectors.
        """
        best, best_mean = self.best("accuracy"), self.best("accuracy-mean")
        last = self.evaluated[-1] if self.evaluated else None
        headline = {
            "best-accuracy": best["accuracy"] if best else None,
            "best-round": best["round"] if best else None,
            "last-accuracy": last["accuracy"] if last else None,
            "last-round": last["round"] if last else None,
            "best-accuracy-mean": best_mean["accuracy-mean"] if best_mean else None,
            "last-accuracy-mean": last["accuracy-mean"] if last else None,
            "last-accuracy-std": last["accuracy-std"] if last else None,
            "last-accuracy-worst10": last["accuracy-worst10"] if last else None,
            "rounds": self.rounds[-1]["round"],
            "wall-seconds": self.rounds[-1]["wall-seconds"],
            "bytes-down": sum(line["bytes-down"] for line in self.rounds),
            "bytes-up": sum(line["bytes-up"] for line in self.rounds),
            "clients": len(self.clients),
        }
        noised = [row for row in self.clients if row.epsilon is not None]
        if noised:
            headline["epsilon"] = max(row.epsilon or 0.0 for row in noised)
            headline["delta"] = max(row.delta or 0.0 for row in noised)
            headline["noised-clients"] = len(noised)
        if self.has_known_clients:
            values = [line["accuracy-known"] for line in self.rounds if line.get("accuracy-known") is not None]
            headline["last-accuracy-known"] = values[-1] if values else None
        return headline

    def accuracies(self, architecture: str, *, known: bool = False) -> list[tuple[int, list[float]]]:
        """Return (round, accuracies of the architecture's evaluated clients) for each round that has any.

        The clients are those that are known or, by default, those that are not.
        """
        members = {row.client for row in self.clients if (row.architecture, row.known) == (architecture, known)}
        curve = []
        for line in self.rounds:
            values = [value for key, value in line["client-accuracy"].items() if key in members]
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
            rows.append(
                ArchitectureRow(
                    f"{architecture} (known)" if known else architecture,
                    clients=len(members),
                    num_params=_range(row.num_params for row in members),
                    chunks=_range(row.chunks for row in members),
                    last_accuracy=means[-1] if means else None,
                    best_accuracy=max(means, default=None),
                )
            )
        return rows


def write_report(run_dir: Path) -> Path:
    """Draw `curves.png` and write `report.html` from the files in `run_dir`; return the page's path.

    Raises
    ------
    UserError
        If a file that every run has is missing, or a line of `metrics.jsonl` is broken.
    """
    run = read_run(run_dir)
    curves = _png(_draw_curves(run))
    write_atomically(run_dir / "curves.png", curves)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(
        accuracy=format_accuracy, bytes=format_bytes, duration=format_duration, image=_data_uri, count=_format_count
    )
    page = environment.from_string(TEMPLATE).render(
        run=run,
        name=str(run.config.get("run-name") or run_dir.resolve().name),
        refresh_seconds=_REFRESH_SECONDS,
        planned=run.config.get("num-rounds"),
        headline=run.headline() | (run.summary or {}),
        curves=curves,
        costs=_png(_draw_costs(run)),
        heat_map=_png(_draw_partition(run.partition)) if run.partition else None,
        mean_seconds={
            phase: sum(line["seconds"][phase] for line in run.rounds) / len(run.rounds) for phase in (*PHASES, "total")
        },
        failures=_failures_by_reason(run),
    )
    path = run_dir / "report.html"
    write_atomically(path, page.encode())
    return path


def final_table(run_dir: Path) -> str:
    """Return the plain-text table for the end of a run: a row an architecture, and the best and the last round.

    Where there are known clients, all but their own rows and their own line at the end is of the new ones.

    Raises
    ------
    UserError
        As `read_run`.
    """
    run = read_run(run_dir)
    headline = run.headline()
    table = [("architecture", "clients", "K", "chunks", "last accuracy", "best accuracy")]
    for row in run.architectures():
        accuracies = format_accuracy(row.last_accuracy), format_accuracy(row.best_accuracy)
        table.append((row.architecture, str(row.clients), row.num_params, row.chunks, *accuracies))
    table.append(
        (
            "all new" if run.has_known_clients else "all",
            str(len(run.new_clients)),
            "",
            "",
            format_accuracy(headline["last-accuracy-mean"]),
            format_accuracy(headline["best-accuracy-mean"]),
        )
    )
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    text = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    ]
    rule = "-" * len(text[0])
    text[1:1] = [rule]
    text[-1:-1] = [rule]
    text.append("(means over clients)")
    of_new = " of new clients" if run.has_known_clients else ""
    if run.evaluated:
        text.append(
            f"over all test samples{of_new}: best accuracy {headline['best-accuracy']:.3f} "
            f"in round {headline['best-round']}, "
            f"last {headline['last-accuracy']:.3f} in round {headline['last-round']}"
        )
    else:
        text.append("no new client was evaluated" if run.has_known_clients else "no round was evaluated")
    if headline.get("last-accuracy-known") is not None:
        text.append(f"over all test samples of known clients: last accuracy {headline['last-accuracy-known']:.3f}")
    if "epsilon" in headline:
        text.append(_privacy_sentence(headline))
    return "\n".join(text)


def _privacy_sentence(headline: dict[str, Any]) -> str:
    return (
        f"differential privacy of all deltas sent: epsilon {headline['epsilon']:.4g}, delta {headline['delta']:g} "
        f"(the worst of {headline['noised-clients']} clients that add noise; {headline['clients']} in all)"
    )


def read_run(run_dir: Path) -> Run:
    """Read the files of a run, finished or not.

    Raises
    ------
    UserError
        If a file that every run has is missing, or a line of `metrics.jsonl` is broken.
    """
    if not (run_dir / "metrics.jsonl").exists():
        raise UserError(f"{run_dir} holds no metrics.jsonl: give the folder of a run that has finished a round")
    rounds = read_metrics(run_dir / "metrics.jsonl")
    if not rounds:
        raise UserError(f"{run_dir / 'metrics.jsonl'} is empty: give the folder of a run that has finished a round")
    return Run(
        run_dir=run_dir,
        config=yaml.safe_load(_read_text(run_dir / "config.yaml")) or {},
        rounds=rounds,
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
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(_read_text(path).splitlines(), start=1):
        try:
            line = json.loads(text)
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
            text = row[field.name.replace("_", "-")]
            if field.name in ("client", "architecture"):
                values[field.name] = text
            elif field.name.endswith("_accuracy") or field.name in ("epsilon", "delta"):
                values[field.name] = float(text) if text else None
            else:
                values[field.name] = int(text) if text else None
        rows.append(ClientRow(**values))
    return rows


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file so that a reader sees the old content or the new, never a part."""
    # The process id keeps a run and a `report` command that draw the same folder out of each other's way.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def format_accuracy(value: float | None) -> str:
    """Format an accuracy for people: `0.512`, or a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def format_duration(seconds: float) -> str:
    """Format seconds for people: `4.1 s`, `1 min 58 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_bytes(count: float) -> str:
    """Format a number of bytes for people, in decimal units: `1.23 GB`."""
    scale, unit = _byte_unit(count)
    return f"{count / scale:.0f} {unit}" if scale == 1 else f"{count / scale:.3g} {unit}"


def _byte_unit(count: float) -> tuple[int, str]:
    # 999.5 and not 1000: three digits of 999,700 would read "1e+03 kB".
    for scale, unit in ((1, "bytes"), (10**3, "kB"), (10**6, "MB"), (10**9, "GB")):
        if count < 999.5 * scale:
            return scale, unit
    return 10**12, "TB"


def _format_count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _range(values: Iterable[int]) -> str:
    distinct = sorted(set(values))
    return f"{distinct[0]:,}" if len(distinct) == 1 else f"{distinct[0]:,} to {distinct[-1]:,}"


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


def _failures_by_reason(run: Run) -> list[dict[str, Any]]:
    """Group failures by reason, the most frequent first: count, (client, times) pairs, and which was the latest."""
    groups: dict[str, dict[str, Any]] = {}
    for line in run.rounds:
        for failure in line["failure-list"]:
            group = groups.setdefault(failure["reason"], {"reason": failure["reason"], "clients": Counter()})
            group["clients"][failure["client"]] += 1
            group.update(round=line["round"], client=failure["client"], detail=failure["detail"])
    for group in groups.values():
        group["count"] = group["clients"].total()
        group["clients"] = group["clients"].most_common()
    return sorted(groups.values(), key=lambda group: -int(group["count"]))


# --- Drawing. Object API of matplotlib throughout: pyplot keeps global state, and a server app runs in a thread. ---


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(6.6, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _literal(text: str, limit: int = 24) -> str:
    """Shorten a name for a plot and keep its dollar signs from starting a formula."""
    shortened = text if len(text) <= limit else text[: limit - 1] + "…"
    return shortened.replace("$", r"\$")


def _style(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9.5)


def _style_rounds(axes: Axes, run: Run) -> None:
    first, last = run.rounds[0]["round"], run.rounds[-1]["round"]
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _values(run: Run, key: str) -> tuple[list[int], list[float]]:
    """Return the rounds that have a value of `key`, and the values."""
    lines = [line for line in run.rounds if line.get(key) is not None]
    return [line["round"] for line in lines], [line[key] for line in lines]


def _draw_curves(run: Run) -> Figure:
    """Accuracy (top) and loss (bottom) against the round; known clients are dashed, as in the paper's figure 3."""
    figure = _figure(height=8.6)
    top, bottom = figure.subplots(2, 1, height_ratios=(5, 3))
    # A line between two points needs no dots; a single point is invisible without.
    marker = "o" if len(run.evaluated) == 1 else ""

    subject, suffix = ("new clients", ", new") if run.has_known_clients else ("clients", "")
    names = list(dict.fromkeys(row.architecture for row in run.new_clients))
    handles: list[Line2D | Patch] = []
    if len(names) <= len(_COLOURS):
        for name, colour in zip(names, _COLOURS, strict=False):
            _draw_architecture(top, run.accuracies(name), colour, marker, band=True)
            handles.append(Line2D([], [], color=colour, linewidth=1.6, marker=marker, label=_literal(name) + suffix))
        if len(run.new_clients) > len(names):
            handles.append(Patch(color="#9aa5b1", alpha=0.3, label=f"band: 10th to 90th percentile of {subject}"))
    else:
        # No eye tells apart more colours than we have, and the legend would not fit.
        for name in names:
            _draw_architecture(top, run.accuracies(name), "#7b8794", marker, band=False)
        handles.append(
            Line2D(
                [], [], color="#7b8794", linewidth=0.8, label=f"each of {len(names)} architectures, mean of {subject}"
            )
        )
    rounds, accuracies = _values(run, "accuracy")
    top.plot(rounds, accuracies, color="black", linewidth=2.8, marker=marker)
    handles.insert(
        0, Line2D([], [], color="black", linewidth=2.8, marker=marker, label=f"all {subject}, by test samples")
    )
    known_rounds, known_accuracies = _values(run, "accuracy-known")
    if run.has_known_clients:
        (dashed,) = top.plot(
            known_rounds,
            known_accuracies,
            color="black",
            linewidth=1.8,
            linestyle="--",
            marker="o" if len(known_rounds) == 1 else "",
            label="all known clients, by test samples",
        )
        handles.insert(1, dashed)
    best = run.best("accuracy")
    if best is not None:
        top.plot(
            best["round"],
            best["accuracy"],
            marker="*",
            markersize=15,
            color=_BEST,
            markeredgecolor="black",
            zorder=5,
        )
        handles.insert(
            1,
            Line2D(
                [],
                [],
                linestyle="",
                marker="*",
                markersize=12,
                color=_BEST,
                markeredgecolor="black",
                label=f"best: {best['accuracy']:.3f} in round {best['round']}",
            ),
        )
    elif not known_accuracies:
        top.text(0.5, 0.5, "no round has been evaluated yet", transform=top.transAxes, ha="center", color=_INK)
    _style(top, "Accuracy on the clients' test samples", "round", "accuracy (fraction correct)")
    _style_rounds(top, run)
    top.set_ylim(bottom=0)
    top.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.13), ncols=2, fontsize=8.5, frameon=False)

    for key, label, colour in (
        ("train-loss", "local training, by training samples", "#d9722e"),
        ("loss", "test, by test samples" + (" of new clients" if run.has_known_clients else ""), "#3b6fb6"),
        ("global-loss", "global model, by training samples", "#3f9a5f"),
    ):
        rounds, losses = _values(run, key)
        if key == "global-loss" and not losses:
            continue  # most methods have no global model, and their legend should not name one
        bottom.plot(rounds, losses, color=colour, linewidth=1.8, marker="o" if len(rounds) == 1 else "", label=label)
    _style(bottom, "Loss", "round", "loss (mean a sample)")
    _style_rounds(bottom, run)
    bottom.legend(loc="upper left", bbox_to_anchor=(0, -0.22), ncols=2, fontsize=8.5, frameon=False)
    return figure


def _draw_architecture(
    axes: Axes, curve: Sequence[tuple[int, list[float]]], colour: str, marker: str, *, band: bool
) -> None:
    rounds = [number for number, _ in curve]
    axes.plot(
        rounds, [np.mean(values) for _, values in curve], color=colour, linewidth=1.6 if band else 0.8, marker=marker
    )
    if band and curve:
        low, high = np.array([np.percentile(values, (10, 90)) for _, values in curve]).T
        axes.fill_between(rounds, low, high, color=colour, alpha=0.12, linewidth=0)


def _draw_costs(run: Run) -> Figure:
    """Seconds by phase (top) and bytes (bottom) a round."""
    figure = _figure(height=6.2)
    top, bottom = figure.subplots(2, 1)
    rounds = [line["round"] for line in run.rounds]
    base = np.zeros(len(rounds))
    for phase, colour in zip(PHASES, ("#3b6fb6", "#a9c1e0", "#3f9a5f"), strict=True):
        seconds = np.array([line["seconds"][phase] for line in run.rounds])
        top.bar(rounds, seconds, width=1.0, bottom=base, color=colour, label=phase)
        base += seconds
    rest = np.array([line["seconds"]["total"] for line in run.rounds]) - base
    top.bar(rounds, rest.clip(min=0), width=1.0, bottom=base, color="#d9dee4", label="rest of the round")
    _style(top, "Time by phase", "round", "seconds")
    _style_rounds(top, run)
    top.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=4, fontsize=8.5, frameon=False)

    scale, unit = _byte_unit(max(max(line["bytes-down"], line["bytes-up"]) for line in run.rounds))
    for key, label, colour in (
        ("bytes-down", "down: server to clients", "#3b6fb6"),
        ("bytes-up", "up: clients to server", "#d9722e"),
    ):
        # Dashes let the other curve show through: without compression both have the same values.
        bottom.plot(
            rounds,
            [line[key] / scale for line in run.rounds],
            color=colour,
            linewidth=2,
            linestyle="-" if key == "bytes-down" else "--",
            marker="o" if len(rounds) == 1 else "",
            label=label,
        )
    _style(bottom, "Traffic", "round", unit)
    _style_rounds(bottom, run)
    bottom.set_ylim(0, 1.1 * bottom.get_ylim()[1])
    bottom.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, fontsize=8.5, frameon=False)
    return figure


def _draw_partition(partition: dict[str, Any]) -> Figure:
    """How many samples of each class (columns) each client (rows) holds."""
    clients = list(partition["clients"])
    classes = [str(name) for name in partition["class-names"]]
    counts = np.array([partition["clients"][client] for client in clients])
    every_row_named = len(clients) <= 30
    figure = _figure(height=1.6 + (0.3 * len(clients) if every_row_named else min(0.045 * len(clients), 10)))
    axes = figure.subplots()
    image = axes.imshow(counts, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0)
    _style(axes, "Samples of each class that each client holds", "class", "client")
    axes.grid(visible=False)
    rows = range(0, len(clients), 1 if every_row_named else _tick_step(len(clients)))
    axes.set_yticks(rows, [_literal(clients[index], 14) for index in rows])
    columns = range(0, len(classes), 1 if len(classes) <= 24 else _tick_step(len(classes)))
    labels = [_literal(classes[index], 14) for index in columns]
    slanted = max(map(len, labels)) > 3
    axes.set_xticks(columns, labels, rotation=45 if slanted else 0, ha="right" if slanted else "center")
    if every_row_named and len(classes) <= 12:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if count > 0.6 * counts.max() else _INK
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes, label="samples", fraction=0.05, pad=0.02, aspect=20 if every_row_named else 40)
    return figure


def _tick_step(count: int) -> int:
    """Return the round number that leaves at most 25 ticks of `count` rows."""
    step = math.ceil(count / 25)
    magnitude: int = 10 ** (len(str(step)) - 1)
    return next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= step)
