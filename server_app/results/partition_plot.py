"""Draws which client holds what: samples of each class or, where that would be too many cells, sizes alone."""

import math
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from server_app.results.drawing import INK, literal, new_figure, style

# Its lightest colour is no white, which stands for none.
_COUNTS = LinearSegmentedColormap.from_list("counts", ["#dbe7f5", "#8fb6dd", "#3b6fb6", "#12355f"])
# Of a heat map that still shows something: 100 clients with ten classes do, 100 writers of 62 letters are noise.
_MAX_CELLS = 5000
_MAX_ROWS = 500  # clients, or classes: a pixel or two each
_PARTS = {"train": "#3b6fb6", "validation": "#f2c14e", "test": "#a9c1e0"}


def draw_partition(partition: dict[str, Any]) -> Figure:
    """Draw what `partition.json` holds: a heat map of classes if it `shows_classes`, else the clients' sizes."""
    return _draw_classes(partition) if shows_classes(partition) else _draw_sizes(partition)


def shows_classes(partition: dict[str, Any]) -> bool:
    """Whether a heat map of clients and classes has few enough cells."""
    clients, classes = len(partition["clients"]), len(partition["class-names"])
    return clients * classes <= _MAX_CELLS and max(clients, classes) <= _MAX_ROWS


def _draw_classes(partition: dict[str, Any]) -> Figure:
    """How many samples of each class (columns) each client (rows) holds; a cell without any is white.

    Colours follow the logarithm of the count: beside a class with thousands of samples one with ten is still seen.
    """
    clients = list(partition["clients"])
    classes = [str(name) for name in partition["class-names"]]
    counts = np.array([partition["clients"][client] for client in clients])
    every_row_named = len(clients) <= 30
    figure = new_figure(height=1.6 + (0.3 * len(clients) if every_row_named else min(0.045 * len(clients), 10)))
    axes = figure.subplots()
    held = np.ma.masked_equal(counts, 0)
    fewest, most = (int(held.min()), int(held.max())) if held.count() else (1, 1)
    scale = LogNorm(fewest, max(most, 2 * fewest))  # a scale from a number to itself has no colours
    image = axes.imshow(held, aspect="auto", interpolation="nearest", cmap=_COUNTS, norm=scale)
    style(axes, "Samples of each class that each client holds", "class", "client")
    axes.grid(visible=False)
    rows = range(0, len(clients), 1 if every_row_named else _tick_step(len(clients)))
    axes.set_yticks(rows, [literal(clients[index], 14) for index in rows])
    columns = range(0, len(classes), 1 if len(classes) <= 24 else _tick_step(len(classes)))
    labels = [literal(classes[index], 14) for index in columns]
    slanted = max(map(len, labels)) > 3
    axes.set_xticks(columns, labels, rotation=45 if slanted else 0, ha="right" if slanted else "center")
    if every_row_named and len(classes) <= 12:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if scale(count) > 0.6 else INK
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(
        image, ax=axes, label="samples", fraction=0.05, pad=0.02, aspect=20 if every_row_named else 40
    )
    ticks = _count_ticks(fewest, most)
    bar.set_ticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    bar.minorticks_off()
    return figure


def _draw_sizes(partition: dict[str, Any]) -> Figure:
    """How many samples each client has, the largest first, by what they are for."""
    sizes = sorted(partition["sizes"].values(), key=lambda size: -int(sum(size.values())))
    figure = new_figure(height=4.2)
    axes = figure.subplots()
    edges = np.arange(len(sizes) + 1) + 0.5
    base = np.zeros(len(sizes))
    for part, colour in _PARTS.items():
        counts = np.array([size[part] for size in sizes])
        if counts.any():
            # One outline a part: a bar for each of thousands of clients would take seconds.
            axes.stairs(base + counts, edges, baseline=base, fill=True, color=colour, label=part)
            base = base + counts
    style(axes, "Samples of each client", "client, the largest first", "samples")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.05 * max(base.max(), 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(loc="upper right", fontsize=8.5, frameon=False)
    return figure


def _count_ticks(fewest: int, most: int) -> list[int]:
    """The two ends of a logarithmic scale, and round numbers that are not too near to them."""
    factors = (1, 2, 5) if most <= 1000 * fewest else (1,)
    between = [factor * 10**power for power in range(len(str(most))) for factor in factors]
    return [fewest, *(tick for tick in between if 1.3 * fewest < tick < most / 1.3), *([most] if most > fewest else [])]


def _tick_step(count: int) -> int:
    """Return the round number that leaves at most 25 ticks of `count` rows."""
    step = math.ceil(count / 25)
    magnitude: int = 10 ** (len(str(step)) - 1)
    return next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= step)
