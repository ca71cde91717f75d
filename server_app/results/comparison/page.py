"""A comparison as one self-contained page: tables that sort, plots for a light and for a dark screen, links to runs."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from server_app.results.comparison.compared import FINISHED, MISSING, UNFINISHED, ComparedRun
from server_app.results.comparison.comparing import Comparison
from server_app.results.comparison.differences import common_settings, differences
from server_app.results.comparison.figures import learned_nothing
from server_app.results.comparison.notes import absent, failing_in, notes
from server_app.results.comparison.sheets import accuracy_sheet, cost_sheet, grid_sheet, label
from server_app.results.comparison.template import GENERATOR, TEMPLATE
from server_app.results.dark import Plot
from server_app.results.formatting import format_decimals
from server_app.results.pages import page

_REFRESH_SECONDS = 30


def render_page(comparison: Comparison, accuracy: Plot, gain: Plot | None, place: Path) -> str:
    """The page as text. `place` is the folder that it will lie in, from where it links to the runs' reports."""
    return page(
        TEMPLATE,
        comparison=comparison,
        generator=GENERATOR,
        goes_on=comparison.is_planned and any(run.state in (UNFINISHED, MISSING) for run in comparison.runs),
        refresh_seconds=_REFRESH_SECONDS,
        states=_states(comparison),
        absent=absent(comparison),
        sheets=[
            (accuracy_sheet(comparison, setting), cost_sheet(comparison, setting), failing_in(comparison, setting))
            for setting in comparison.settings
        ],
        notes=notes(comparison),
        accuracy_plot=accuracy,
        gain_plot=gain,
        in_words=_in_words(comparison),
        gains_in_words=_gains_in_words(comparison),
        grid=grid_sheet(comparison),
        runs=[_row(run, place) for run in comparison.runs],
        differences=differences(comparison.runs),
        in_common=common_settings(comparison.runs),
    )


def _row(run: ComparedRun, place: Path) -> tuple[ComparedRun, str | None, str, str]:
    """A run, the address of its report if it has one, its last accuracy, and why it learned nothing if it did."""
    report = run.run_dir / "report.html"
    link = quote(Path(os.path.relpath(report, place)).as_posix()) if report.exists() else None
    accuracy = format_decimals(run.run.accuracy_mean if run.run else None)
    return run, link, accuracy, (learned_nothing(run.run) if run.run else None) or ""


def _states(comparison: Comparison) -> str:
    states = [run.state for run in comparison.runs]
    counts = {state: states.count(state) for state in (FINISHED, *dict.fromkeys(states))}
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _in_words(comparison: Comparison) -> str:
    parts = [
        f"{label(comparison, group)} in {group.setting}: last {format_decimals(group.mean('last-accuracy-mean'))}"
        for group in comparison.shown
    ]
    return "; ".join(parts) + "."


def _gains_in_words(comparison: Comparison) -> str:
    gains = [(group, comparison.gain(group)) for group in comparison.shown]
    parts = [
        f"{label(comparison, group)} in {group.setting}: mean {gain.mean.mean:+.3f}, "
        f"{100 * gain.losing.mean:.0f} % of the clients lose"
        for group, gain in gains
        if gain and gain.mean and gain.losing
    ]
    return "; ".join(parts) + "."
