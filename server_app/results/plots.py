"""Draws a run: accuracy and loss, time and traffic. Which client holds what is drawn in `partition_plot.py`.

The object API of matplotlib throughout: pyplot keeps global state, and a server app runs in a thread.
"""

import io
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from common.evaluation import AFTER_TRAINING, TEST, VALIDATION
from server_app.results.drawing import COLOURS, INK, literal, new_figure, style
from server_app.results.formatting import FURTHER_TESTS, byte_unit, format_duration
from server_app.results.metrics import accuracy_key
from server_app.results.reading import Run
from server_app.results.record import PHASES, START

Seconds = npt.NDArray[np.float64]  # [rounds]

_BEST = "#f2c14e"
_FURTHER_STYLES: dict[str, Any] = {AFTER_TRAINING: "-.", VALIDATION: (0, (8, 2))}  # apart from the known clients' "--"


def draw_curves(run: Run) -> Figure:
    """Accuracy (top) and loss (bottom) against the round; known clients are dashed, as in the paper's figure 3."""
    figure = new_figure(height=8.6)
    top, bottom = figure.subplots(2, 1, height_ratios=(5, 3))
    _draw_accuracies(top, run)
    _draw_losses(bottom, run)
    return figure


def _draw_accuracies(axes: Axes, run: Run) -> None:
    # A line between two points needs no dots; a single point is invisible without.
    marker = "o" if len(run.evaluated) == 1 else ""
    subject = "new clients" if run.has_known_clients else "clients"
    of_architectures = _draw_architectures(axes, run, marker)
    handles: list[Line2D] = []
    curves = [
        ("accuracy-mean", 2.8, "-", f"mean over {subject}"),  # the headline
        ("accuracy", 1.4, ":", f"all test samples of {subject}"),
    ]
    for test in run.further_tests:
        of_what = f"mean over {subject}, {FURTHER_TESTS[test]}"
        curves.append((f"{accuracy_key(test)}-mean", 1.4, _FURTHER_STYLES[test], of_what))
    for key, width, dashes, of_what in curves:
        rounds, accuracies = _values(run, key)
        handles += axes.plot(
            rounds, accuracies, color="black", linewidth=width, linestyle=dashes, marker=marker, label=of_what
        )
    known_rounds, known_accuracies = _values(run, "accuracy-known")
    known: list[Line2D] = []
    if run.has_known_clients:
        known = axes.plot(
            known_rounds,
            known_accuracies,
            color="black",
            linewidth=1.8,
            linestyle="--",
            marker="o" if len(known_rounds) == 1 else "",
            label="all test samples of known clients",
        )
    headline = run.headline()
    best = next((line for line in run.metrics if line["round"] == headline["chosen-round"]), None)
    chosen_on = "best mean" if headline["best-chosen-on"] == TEST else "chosen on validation"
    if best is not None:
        axes.plot(
            best["round"],
            best["accuracy-mean"],
            marker="*",
            markersize=15,
            color=_BEST,
            markeredgecolor="black",
            zorder=5,
        )
        handles.append(
            Line2D(
                [],
                [],
                linestyle="",
                marker="*",
                markersize=12,
                color=_BEST,
                markeredgecolor="black",
                label=f"{chosen_on}: {best['accuracy-mean']:.3f} in round {best['round']}",
            )
        )
    if best is None and not known_accuracies:
        axes.text(0.5, 0.5, "no round has been evaluated yet", transform=axes.transAxes, ha="center", color=INK)
    style(axes, "Accuracy on the clients' test samples", "round", "accuracy (fraction correct)")
    _style_rounds(axes, run)
    axes.set_ylim(bottom=0)
    axes.legend(
        handles=[*handles, *known, *of_architectures],
        loc="upper left",
        bbox_to_anchor=(0, -0.13),
        ncols=2,
        fontsize=8.5,
        frameon=False,
    )


def _draw_architectures(axes: Axes, run: Run, marker: str) -> list[Line2D | Patch]:
    """Draw the mean of each architecture's clients; return what the legend says of them."""
    subject, suffix = ("new clients", ", new") if run.has_known_clients else ("clients", "")
    names = list(dict.fromkeys(row.architecture for row in run.new_clients))
    if len(names) > len(COLOURS):
        # No eye tells apart more colours than we have, and the legend would not fit.
        for name in names:
            _draw_architecture(axes, run.accuracies(name), "#7b8794", marker, band=False)
        label = f"each of {len(names)} architectures, mean of {subject}"
        return [Line2D([], [], color="#7b8794", linewidth=0.8, label=label)]
    handles: list[Line2D | Patch] = []
    for name, colour in zip(names, COLOURS, strict=False):
        _draw_architecture(axes, run.accuracies(name), colour, marker, band=True)
        handles.append(Line2D([], [], color=colour, linewidth=1.6, marker=marker, label=literal(name) + suffix))
    if len(run.new_clients) > len(names):
        handles.append(Patch(color="#9aa5b1", alpha=0.3, label=f"band: 10th to 90th percentile of {subject}"))
    return handles


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


def _draw_losses(axes: Axes, run: Run) -> None:
    test = "test, by test samples" + (" of new clients" if run.has_known_clients else "")
    curves = [("train-loss", "local training, by training samples", "#d9722e"), ("loss", test, "#3b6fb6")]
    for name, colour in zip(run.extra_losses, cycle(COLOURS[2:]), strict=False):
        curves.append((f"{name}-loss", f"{literal(name)}, by training samples", colour))
    for key, label, colour in curves:
        rounds, losses = _values(run, key)
        axes.plot(rounds, losses, color=colour, linewidth=1.8, marker="o" if len(rounds) == 1 else "", label=label)
    style(axes, "Loss", "round", "loss (mean a sample)")
    _style_rounds(axes, run)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.22), ncols=2, fontsize=8.5, frameon=False)


def draw_costs(run: Run) -> Figure:
    """Seconds by phase (top) and bytes (bottom) a round."""
    figure = new_figure(height=6.2)
    top, bottom = figure.subplots(2, 1)
    rounds = [line["round"] for line in run.metrics]
    base = np.zeros(len(rounds))
    for phase, colour in zip(PHASES, ("#3b6fb6", "#a9c1e0", "#3f9a5f"), strict=True):
        seconds = np.array([line["seconds"][phase] for line in run.metrics])
        top.bar(rounds, seconds, width=1.0, bottom=base, color=colour, label=phase)
        base += seconds
    start = np.array([line["seconds"].get(START, 0.0) for line in run.metrics])
    rest = (np.array([line["seconds"]["total"] for line in run.metrics]) - start - base).clip(min=0)
    top.bar(rounds, rest, width=1.0, bottom=base, color="#d9dee4", label="rest of the round")
    if start.any():
        top.bar(rounds, start, width=1.0, bottom=base + rest, color=_BEST, label="start-up")
        _cut_off_starts(top, rounds, start, base + rest)
    style(top, "Time by phase", "round", "seconds")
    _style_rounds(top, run)
    top.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=5, fontsize=8.5, frameon=False)

    scale, unit = byte_unit(max(max(line["bytes-down"], line["bytes-up"]) for line in run.metrics))
    for key, label, colour in (
        ("bytes-down", "down: server to clients", "#3b6fb6"),
        ("bytes-up", "up: clients to server", "#d9722e"),
    ):
        # Dashes let the other curve show through: without compression both have the same values.
        bottom.plot(
            rounds,
            [line[key] / scale for line in run.metrics],
            color=colour,
            linewidth=2,
            linestyle="-" if key == "bytes-down" else "--",
            marker="o" if len(rounds) == 1 else "",
            label=label,
        )
    style(bottom, "Traffic", "round", unit)
    _style_rounds(bottom, run)
    bottom.set_ylim(0, 1.1 * bottom.get_ylim()[1])
    bottom.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, fontsize=8.5, frameon=False)
    return figure


def _cut_off_starts(axes: Axes, rounds: list[int], start: Seconds, below: Seconds) -> None:
    """Where a start-up takes longer than the rounds, leave the rounds the room, and say in words how long it took."""
    limit = 1.6 * float(below.max())
    if not 0 < limit < (below + start).max():
        return
    axes.set_ylim(0, limit)
    middle = (rounds[0] + rounds[-1]) / 2
    for number, seconds in zip(rounds, start, strict=True):
        if seconds:
            side = 1 if number <= middle else -1
            axes.annotate(
                f"start-up: {format_duration(seconds)}",
                (number + 0.5 * side, limit),
                xytext=(4 * side, -4),
                textcoords="offset points",
                ha="left" if side > 0 else "right",
                va="top",
                fontsize=8.5,
                color=INK,
            )


def png(figure: Figure) -> bytes:
    """Return the figure as a file of that format."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _style_rounds(axes: Axes, run: Run) -> None:
    first, last = run.metrics[0]["round"], run.metrics[-1]["round"]
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _values(run: Run, key: str) -> tuple[list[int], list[float]]:
    """Return the rounds that have a value of `key`, and the values."""
    lines = [line for line in run.metrics if line.get(key) is not None]
    return [line["round"] for line in lines], [line[key] for line in lines]
