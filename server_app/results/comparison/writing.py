"""Writes what a comparison gives out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.files import write_bytes, write_text
from server_app.results.comparison.comparing import Comparison
from server_app.results.comparison.labelling import labelled_runs
from server_app.results.comparison.latex import latex
from server_app.results.comparison.page import render_page
from server_app.results.comparison.plots import draw_accuracy, draw_gain
from server_app.results.comparison.reading import read_comparison
from server_app.results.comparison.template import GENERATOR
from server_app.results.comparison.text import comma_separated, markdown
from server_app.results.dark import Plot, render

PAGE = "comparison.html"
_HEAD = 4096  # bytes of a page within which its generator is named


def write_comparison(folder: Path) -> Path:
    """Write `table.md`, `table.csv`, `table.tex`, the plots and `comparison.html` of a comparison; return the page.

    Works at any time, also while runs are missing or go on; what is drawn again replaces what was there.

    Raises
    ------
    UserError
        As `read_comparison`.
    OSError
        If a file cannot be written.
    """
    comparison = read_comparison(folder)
    write_text(folder / "table.md", markdown(comparison))
    write_text(folder / "table.csv", comma_separated(comparison))
    write_text(folder / "table.tex", latex(comparison))
    accuracy, gain = _drawn(comparison)
    write_bytes(folder / "accuracy.png", accuracy.light)
    if gain:
        write_bytes(folder / "gain.png", gain.light)
    else:
        (folder / "gain.png").unlink(missing_ok=True)  # of runs that are not there any more
    page = folder / PAGE
    write_text(page, render_page(comparison, accuracy, gain, folder))
    return page


def write_report_of(run_dirs: Sequence[Path], output: Path) -> Path:
    """Draw several runs onto one page, labelled by what differs between their settings; return the page's path.

    Raises
    ------
    UserError
        If a folder is no run's, one is given twice, or `output` is a file that is no such page.
    OSError
        If it cannot be written.
    """
    runs = labelled_runs(run_dirs)
    if output.exists() and not _is_ours(output):
        raise UserError(f"{output} is there already, and no page of this kind: name another file with --output.")
    place = output.parent
    comparison = Comparison(place, f"{len(runs)} runs beside each other", runs, is_planned=False)
    write_text(output, render_page(comparison, *_drawn(comparison), place))
    return output


def _drawn(comparison: Comparison) -> tuple[Plot, Plot | None]:
    """The plot of accuracies and that of gains, None where there are none."""
    gain = draw_gain(comparison)
    return render(draw_accuracy(comparison)), None if gain is None else render(gain)


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return f'content="{GENERATOR}"'.encode() in file.read(_HEAD)
