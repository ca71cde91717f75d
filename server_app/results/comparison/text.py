"""A comparison as plain text, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from server_app.results.comparison.notes import absent, failing_in, notes
from server_app.results.comparison.sheets import Cell, Sheet, accuracy_sheet, brief_sheet, cost_sheet, grid_sheet

if TYPE_CHECKING:
    from server_app.results.comparison.comparing import Comparison


def plain_table(comparison: Comparison) -> str:
    """The main columns for a console, then the runs that are not there whole."""
    parts = []
    for setting in comparison.settings:
        sheet = brief_sheet(comparison, setting)
        lines = [sheet.heads, *([cell.text for cell in row] for row in sheet.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(sheet.heads))]
        text = [
            "  ".join(
                cell.ljust(width) if column < sheet.num_words else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        text.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
        parts.append("\n".join([sheet.title, "", *text]))
        if failing := failing_in(comparison, setting):
            parts.append("\n".join(failing))
    rows = absent(comparison)
    if rows:
        parts.append("\n".join(f"{name}: {state}{f': {why}' if why else ''}" for name, state, why in rows))
    parts.append(f"(means over seeds ± standard deviation; {_chosen_on(comparison)})")
    return "\n\n".join(parts)


def markdown(comparison: Comparison) -> str:
    """All tables, the runs that are not there whole, and the notes, as `table.md`."""
    parts = [f"# {_escaped(comparison.name)}"]
    if comparison.description:
        parts.append(_escaped(comparison.description))
    for setting in comparison.settings:
        parts += [_markdown(accuracy_sheet(comparison, setting)), _markdown(cost_sheet(comparison, setting))]
        if failing := failing_in(comparison, setting):
            parts.append(_bullets(failing))
    grid = grid_sheet(comparison)
    if grid:
        parts.append(_markdown(grid))
    rows = absent(comparison)
    if rows:
        cells = tuple(tuple(Cell(text) for text in row) for row in rows)
        parts.append(
            _markdown(
                Sheet("Runs that have failed, or have not finished", ("run", "state", "reason"), cells, num_words=3)
            )
        )
    parts.append(_bullets(notes(comparison)))
    return "\n\n".join(parts) + "\n"


def comma_separated(comparison: Comparison) -> str:
    """`Comparison.rows` as `table.csv`: numbers in full, an empty cell for what there is not."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, comparison.rows[0], lineterminator="\n")
    writer.writeheader()
    for row in comparison.rows:
        writer.writerow({key: str(cell).lower() if isinstance(cell, bool) else cell for key, cell in row.items()})
    return buffer.getvalue()


def _chosen_on(comparison: Comparison) -> str:
    return "chosen: by validation samples" if comparison.is_validated else "best: chosen on the test samples"


def _markdown(sheet: Sheet) -> str:
    heads = "| " + " | ".join(_escaped(head) for head in sheet.heads) + " |"
    rule = "|" + "".join(" --- |" if column < sheet.num_words else " ---: |" for column in range(len(sheet.heads)))
    rows = ["| " + " | ".join(_marked(cell) for cell in row) + " |" for row in sheet.rows]
    return "\n".join([f"## {_escaped(sheet.title)}", "", heads, rule, *rows])


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {_escaped(sentence)}" for sentence in sentences)


def _marked(cell: Cell) -> str:
    text = _escaped(cell.text)
    if cell.is_best:
        return f"**{text}**"
    return f"*{text}*" if cell.is_close else text


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, in a cell and elsewhere."""
    for sign in "\\`*_[]<>|$":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
