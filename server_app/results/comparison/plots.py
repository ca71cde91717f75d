"""Draws a comparison: accuracy over rounds and over bytes with a band over seeds, and the clients' gains.

The object API of matplotlib throughout, as in `server_app/results/plots.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from server_app.results.comparison.sheets import line_name
from server_app.results.drawing import COLOURS, INK, literal, new_figure, style
from server_app.results.formatting import byte_unit

if TYPE_CHECKING:
    from server_app.results.comparison.comparing import Comparison, Group
    from server_app.results.comparison.gain import Gain

_WIDTH = 9.6  # inches
_LONGEST = 60  # of a name in a legend
_LOSING = "#c44f5c"
_BIN_WIDTHS = (0.01, 0.02, 0.05, 0.1, 0.2)  # of gains
_MAX_BINS = 40
_STYLES = ("-", "--", "-.", ":")
_DOTTED = (0, (1, 2))


@dataclass(frozen=True)
class Curve:
    """Mean accuracies over clients in the rounds that every seed has tested."""

    rounds: list[int]
    bytes: list[float]  # sent and received until then, mean over seeds
    mean: list[float]
    low: list[float]
    high: list[float]


def curve_of(group: Group) -> Curve:
    """The mean accuracy over clients of a group, its mean, minimum and maximum over seeds."""
    by_seed = []
    for _, run in group.counted:
        sums = np.cumsum([line["bytes-down"] + line["bytes-up"] for line in run.metrics])
        lines = zip(run.metrics, sums, strict=True)
        by_seed.append({line["round"]: (line["accuracy-mean"], int(sent)) for line, sent in lines})
        by_seed[-1] = {number: each for number, each in by_seed[-1].items() if each[0] is not None}
    # A mean over other seeds from one round to the next would move without anybody's accuracy moving.
    rounds = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    accuracies = [[of_seed[number][0] for of_seed in by_seed] for number in rounds]
    return Curve(
        rounds=rounds,
        bytes=[float(np.mean([of_seed[number][1] for of_seed in by_seed])) for number in rounds],
        mean=[float(np.mean(values)) for values in accuracies],
        low=[min(values) for values in accuracies],
        high=[max(values) for values in accuracies],
    )


def draw_accuracy(comparison: Comparison) -> Figure:
    """Mean accuracy over clients against rounds (left) and against bytes (right), one row of panels a setting."""
    figure = new_figure(2.9 * len(comparison.settings) + 0.6, _WIDTH)
    panels = figure.subplots(len(comparison.settings), 2, squeeze=False, sharey="row")
    styles = _styles(comparison)
    handles: dict[str, Line2D] = {}
    has_band = sends_nothing = False
    for (left, right), setting in zip(panels, comparison.settings, strict=True):
        curves = [(line_name(comparison, group), curve_of(group)) for group in comparison.shown_in(setting)]
        curves = [(name, curve) for name, curve in curves if curve.rounds]
        scale, unit = byte_unit(max((curve.bytes[-1] for _, curve in curves), default=0))
        for name, curve in curves:
            colour, dashes = styles[name]
            (handles[name],) = _draw_curve(left, curve.rounds, curve, colour, dashes, name)
            has_band |= curve.low != curve.high
            if curve.bytes[-1]:
                _draw_curve(right, [sent / scale for sent in curve.bytes], curve, colour, dashes, name)
            else:  # a level to compare with
                sends_nothing = True
                right.axhline(
                    curve.mean[-1], color=colour, linestyle=_DOTTED, linewidth=1.6, label=literal(name, _LONGEST)
                )
        if not curves:
            left.text(0.5, 0.5, "nothing was tested yet", transform=left.transAxes, ha="center", color=INK)
        style(left, literal(setting, 60), "round", "mean accuracy over clients")
        style(right, "", f"{unit} sent and received, all clients", "")
        left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        right.set_xlim(left=0)
        left.set_ylim(bottom=0)
    entries: list[Line2D | Patch] = list(handles.values())
    if has_band:
        entries.append(Patch(color="#9aa5b1", alpha=0.35, label="band: smallest to largest of the seeds"))
    if sends_nothing:
        dotted = "dotted: sends nothing, its last accuracy"
        entries.append(Line2D([], [], color="#9aa5b1", linestyle=_DOTTED, label=dotted))
    _legend(figure, entries)
    return figure


def draw_gain(comparison: Comparison) -> Figure | None:
    """A histogram of the clients' gains over training alone a method (rows) and setting (columns); None without any."""
    gains = [(group, gain) for group in comparison.shown if (gain := comparison.gain(group)) is not None]
    if not gains:
        return None
    names = list(dict.fromkeys(line_name(comparison, group) for group, _ in gains))
    settings = list(dict.fromkeys(group.setting for group, _ in gains))
    figure = new_figure(1.55 * len(names) + 0.9, _WIDTH)
    panels = figure.subplots(len(names), len(settings), squeeze=False, sharex=True, sharey="col")
    edges = gain_edges([value for _, gain in gains for value in gain.values])
    for axes in panels.flat:
        style(axes, "", "", "")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    for group, gain in gains:
        axes = panels[names.index(line_name(comparison, group))][settings.index(group.setting)]
        _draw_histogram(axes, gain, edges)
    for row, name in zip(panels, names, strict=True):
        row[0].set_ylabel("clients", color=INK)
        row[0].set_title(literal(name, 40), loc="left", fontsize=10, fontweight="bold", color=INK)
    for axes, setting in zip(panels[0], settings, strict=True):
        if len(settings) > 1:
            axes.set_title(literal(setting, 40), loc="right", fontsize=9.5, color=INK)
    for axes in panels[-1]:
        axes.set_xlabel("gain in accuracy over training alone", color=INK)
    return figure


def gain_edges(values: Sequence[float]) -> list[float]:
    """The edges of a histogram's bins: of one round width, one of them at 0, around all values."""
    low, high = min(*values, 0.0), max(*values, 0.0)
    width = next((width for width in _BIN_WIDTHS if (high - low) / width <= _MAX_BINS), _BIN_WIDTHS[-1])
    # A rounded quotient: 0.3 / 0.1 is less than 3, and a value on an edge belongs to the bin to its right.
    first, last = math.floor(round(low / width, 6)), math.floor(round(high / width, 6)) + 1
    return [number * width for number in range(first, last + 1)]


def _draw_curve(axes: Axes, places: Sequence[float], curve: Curve, colour: str, dashes: str, name: str) -> list[Line2D]:
    marker = "o" if len(places) == 1 else ""  # a single point is invisible without
    axes.fill_between(places, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    return axes.plot(
        places, curve.mean, color=colour, linestyle=dashes, linewidth=1.9, marker=marker, label=literal(name, _LONGEST)
    )


def _draw_histogram(axes: Axes, gain: Gain, edges: Sequence[float]) -> None:
    # Each value goes by its distance to an edge in whole bins, since 0.15 < 3 * 0.05 in floats.
    width = edges[1] - edges[0]
    counts = np.zeros(len(edges) - 1, dtype=int)
    for value in gain.values:
        counts[math.floor(round((value - edges[0]) / width, 6))] += 1
    colours = [_LOSING if round(edge / width) < 0 else COLOURS[0] for edge in edges[:-1]]
    axes.bar(edges[:-1], counts, width=0.92 * width, align="edge", color=colours)
    axes.axvline(0, color=INK, linewidth=1)
    assert gain.mean is not None
    assert gain.losing is not None
    share = f"{100 * gain.losing.mean:.0f} % of {len(gain.values)} lose"
    words = f"mean {gain.mean.mean:+.3f}\n{share}\nworst {gain.worst:+.3f}"
    axes.text(0.99, 0.95, words, transform=axes.transAxes, ha="right", va="top", fontsize=8.5, color=INK)


def _styles(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """A colour and a line style by label, the same in all settings; styles change where colours begin anew."""
    names = list(dict.fromkeys(line_name(comparison, group) for group in comparison.shown))
    pairs = cycle((colour, style) for style in _STYLES for colour in COLOURS)
    return dict(zip(names, pairs, strict=False))


def _legend(figure: Figure, entries: Sequence[Line2D | Patch]) -> None:
    if entries:
        figure.legend(handles=entries, loc="outside lower left", ncols=3, fontsize=8.5, frameon=False, labelcolor=INK)
