"""The tables for people, before they are Markdown, LaTeX, a page or a console's text: which columns, which cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from server_app.results.comparison.figures import VALIDATION
from server_app.results.formatting import (
    NOTHING,
    format_bytes,
    format_count,
    format_decimals,
    format_duration,
    format_range,
)

if TYPE_CHECKING:
    from server_app.results.comparison.comparing import Comparison, Group

LEARNED_NOTHING = "†"
PROVISIONAL = "…"


@dataclass(frozen=True)
class Column:
    """A column of numbers: its name in a row, its head, what a number looks like, and which end is the better one."""

    key: str
    head: str
    show: Callable[[float], str]
    better: Callable[[Sequence[float]], float] | None = None  # max or min; None where neither is better
    in_brief: bool = False  # whether it stands in a console's table
    opens: bool = False  # whether a table that is too wide for paper may be cut before it


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, and by which number it is sorted, None for words.

    `is_best` marks the best of a column, `is_close` what is within one standard error of the difference from it.
    """

    text: str
    number: float | None = None
    is_best: bool = False
    is_close: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table: the first column and the second, the seeds, are words; then numbers."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_words: int = 2  # how many of the columns, from the left, are words
    cuts: tuple[int, ...] = ()  # the columns before which it may be cut where it is too wide for paper


def _gain(value: float) -> str:
    return f"{value:+.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


_GAIN = (
    Column("gain-mean", "gain", _gain, max, in_brief=True, opens=True),
    Column("gain-losing", "losing", _percent, min, in_brief=True),
    Column("gain-worst", "worst gain", _gain, max),
)
ACCURACY = (
    Column("last-accuracy-mean", "mean, last", format_decimals, max, in_brief=True),
    Column("best-accuracy-mean", "mean, best", format_decimals, max, in_brief=True),
    Column("chosen-accuracy-mean", "mean, chosen", format_decimals, max, in_brief=True),
    Column("last-after-training-accuracy-mean", "after an epoch, last", format_decimals, max, in_brief=True),
    Column("best-after-training-accuracy-mean", "after an epoch, best", format_decimals, max),
    Column("chosen-after-training-accuracy-mean", "after an epoch, chosen", format_decimals, max),
    Column("last-accuracy-worst10", "worst tenth", format_decimals, max, in_brief=True),
    *_GAIN,
    Column("last-accuracy", "all samples, last", format_decimals, max, opens=True),
    Column("best-accuracy", "all samples, best", format_decimals, max),
    Column("chosen-accuracy", "all samples, chosen", format_decimals, max),
)
_AT_TARGET = Column("to-target-seeds", "at target", str, in_brief=True)
COST_TO_TARGET = (
    _AT_TARGET,
    Column("to-target-bytes-down", "down to target", format_bytes, min),
    Column("to-target-bytes-up", "up to target", format_bytes, min),
    Column("to-target-bytes", "bytes to target", format_bytes, min, in_brief=True),
    Column("to-target-seconds", "time to target", format_duration, min),
    Column("to-target-training-seconds", "training to target", format_duration, min),
)
COST = (
    Column("bytes-down", "down", format_bytes, opens=True),
    Column("bytes-up", "up", format_bytes),
    Column("bytes", "bytes", format_bytes, in_brief=True),
    Column("seconds", "time", format_duration, in_brief=True),
    Column("training-seconds", "training", format_duration),
)
_OF_GRID = (
    Column(f"last-{VALIDATION}", "validation, last", format_decimals, max),
    Column("last-accuracy-mean", "test mean, last", format_decimals),
)
_WITH_DEVIATION = (*ACCURACY, *_OF_GRID)


def accuracy_sheet(comparison: Comparison, setting: str) -> Sheet:
    """Accuracies in one setting, and gains over training alone where they can be told."""
    rows = _rows(comparison, comparison.shown_in(setting))
    return _sheet(comparison, f"{setting}: accuracy", rows, _used(comparison, ACCURACY, rows))


def cost_sheet(comparison: Comparison, setting: str) -> Sheet:
    """Bytes and seconds in one setting, to the target and of the whole run, with rounds and K."""
    rows = _rows(comparison, comparison.shown_in(setting))
    target = comparison.targets[setting]
    what = "costs" if target is None else f"costs, to a mean accuracy of {target:g} and in all"
    columns = (*(_used(comparison, COST_TO_TARGET, rows) if target else ()), *_used(comparison, COST, rows))
    sheet = _sheet(comparison, f"{setting}: {what}", rows, columns)
    return _with_words_at_end(sheet, "rounds, K", rows)


def brief_sheet(comparison: Comparison, setting: str) -> Sheet:
    """The columns of both that a console has room for."""
    rows = _rows(comparison, comparison.shown_in(setting))
    target = comparison.targets[setting]
    brief = [column for column in (*ACCURACY, *COST_TO_TARGET, *COST) if column.in_brief]
    columns = _used(comparison, brief, rows)
    title = setting if target is None else f"{setting} (target: mean accuracy {target:g})"
    return _sheet(comparison, title, rows, columns)


def grid_sheet(comparison: Comparison) -> Sheet | None:
    """All points of all grids with the accuracy on the validation samples; None where there is no grid."""
    groups = [group for group in comparison.groups if len(comparison.points(group)) > 1]
    if not groups:
        return None
    rows = _rows(comparison, groups)
    heads = ("setting", "method", "point", "chosen", "seeds", *(column.head for column in _OF_GRID))
    cells = []
    for group, row in rows:
        chosen = {True: "yes", False: "no", None: NOTHING}[row["chosen"]]
        words = [Cell(text) for text in (group.setting, group.method, group.point, chosen, _seeds(row))]
        cells.append((*words, *(_cell(column, row) for column in _OF_GRID)))
    return Sheet("Grid: all points", heads, tuple(cells), num_words=5)


def label(comparison: Comparison, group: Group) -> str:
    """What a group is called: its method, and the point of its grid where there is one."""
    return f"{group.method} ({group.point})" if len(comparison.points(group)) > 1 else group.method


def line_name(comparison: Comparison, group: Group) -> str:
    """What a group is called in a plot: its method alone, whichever point was chosen in a setting."""
    return group.method if comparison.is_chosen(group) else label(comparison, group)


def _rows(comparison: Comparison, groups: Sequence[Group]) -> list[tuple[Group, dict[str, Any]]]:
    by_labels = {(row["setting"], row["method"], row["grid"]): row for row in comparison.rows}
    return [(group, by_labels[group.setting, group.method, group.point]) for group in groups]


def _used(
    comparison: Comparison, columns: Sequence[Column], rows: Sequence[tuple[Group, Mapping[str, Any]]]
) -> list[Column]:
    """The columns that some row has a number in, and of those of chosen and of best rounds the ones that apply."""
    apart = "best-" if comparison.is_validated else "chosen-"
    always = ("last-accuracy-mean", "to-target-bytes")
    return [
        column
        for column in columns
        if not column.key.startswith(apart)
        and (column.key in always or any(row[column.key] is not None for _, row in rows))
    ]


def _sheet(
    comparison: Comparison, title: str, rows: Sequence[tuple[Group, Mapping[str, Any]]], columns: Sequence[Column]
) -> Sheet:
    of_columns = [_marked(comparison, column, rows) for column in columns]
    cells = []
    for index, (group, row) in enumerate(rows):
        mark = f" {LEARNED_NOTHING}" if row["learned-nothing"] else ""
        words = Cell(label(comparison, group) + mark), Cell(_seeds(row))
        cells.append((*words, *(column[index] for column in of_columns)))
    heads = ("method", "seeds", *(column.head for column in columns))
    cuts = [number for number, column in enumerate(columns, start=2) if column.opens and number > 2]
    return Sheet(title, heads, tuple(cells), cuts=tuple(cuts))


def _with_words_at_end(sheet: Sheet, heads: str, rows: Sequence[tuple[Group, Mapping[str, Any]]]) -> Sheet:
    """The sheet with rounds and K, which may differ between seeds and clients."""
    cells = []
    for line, (group, row) in zip(sheet.rows, rows, strict=True):
        rounds = format_range(run.metrics[-1]["round"] for _, run in group.counted)
        sizes = format_range((row["params-min"], row["params-max"]))
        cells.append((*line, Cell(rounds, row["rounds"]), Cell(sizes, row["params-min"])))
    return replace(sheet, heads=(*sheet.heads, *heads.split(", ")), rows=tuple(cells))


def _seeds(row: Mapping[str, Any]) -> str:
    """How many seeds the numbers are over, and what became of the others: `2 of 3, 1 failed`."""
    planned, finished = row["seeds"], row["seeds-finished"]
    others = [f"{count} {state}" for state in ("unfinished", "failed", "missing") if (count := row[f"seeds-{state}"])]
    if not others:
        return format_count(finished)
    mark = f" {PROVISIONAL}" if row["provisional"] else ""
    return f"{finished} of {planned}{mark} ({', '.join(others)})"


def _cell(column: Column, row: Mapping[str, Any]) -> Cell:
    value = row[column.key]
    text = NOTHING if value is None else column.show(value)
    std = row.get(f"{column.key}-std") if column in _WITH_DEVIATION else None
    if std is not None:
        text += f" ± {_percent(std) if column.show is _percent else format_decimals(std)}"
    counted = row["seeds-unfinished" if row["provisional"] else "seeds-finished"]
    if column is _AT_TARGET:
        text = f"{value} of {counted}" if counted else NOTHING
    elif column is _GAIN[0] and 0 < row["gain-seeds"] < counted:
        text += f" ({row['gain-seeds']} of {counted})"
    return Cell(text, value)


def _marked(comparison: Comparison, column: Column, rows: Sequence[tuple[Group, Mapping[str, Any]]]) -> list[Cell]:
    """The cells of a column, the best marked, and those that are close to it.

    Numbers that runs have only so far, and those of a method that learned nothing with any seed, are never best.
    """
    cells = [_cell(column, row) for _, row in rows]
    candidates = {
        index: (group, row[column.key])
        for index, (group, row) in enumerate(rows)
        if row[column.key] is not None and not row["provisional"] and row["learned-nothing"] < row["seeds-finished"]
    }
    if column.better is None or len(candidates) < 2:
        return cells
    best = column.better([value for _, value in candidates.values()])
    best_group = next(group for group, value in candidates.values() if value == best)
    for index, (group, value) in candidates.items():
        if value == best:
            cells[index] = replace(cells[index], is_best=True)
            continue
        error = math.hypot(*(_standard_error(comparison, column, each) for each in (best_group, group)))
        if abs(value - best) <= error:  # never where a deviation is unknown: the error is no number then
            cells[index] = replace(cells[index], is_close=True)
    return cells


def _standard_error(comparison: Comparison, column: Column, group: Group) -> float:
    """Of a mean over seeds; NaN where there is none, as of one seed, of a median, or of an extreme."""
    gain = comparison.gain(group) if column in _GAIN else None
    of_gain = {"gain-mean": gain.mean, "gain-losing": gain.losing} if gain else {}
    of_seeds = (group.figures | of_gain).get(column.key)
    error = of_seeds.standard_error if of_seeds else None
    return math.nan if error is None else error
