"""Turns the folder of a run into `curves.png`, `report.html` and the table at the end of the console's output.

Works on a run that is still going on, and on one that died: nothing is read but the files in that folder.
"""

import base64
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2

from common.files import write_bytes, write_text
from server_app.results.dark import render
from server_app.results.formatting import format_bytes, format_count, format_decimals, format_duration
from server_app.results.metrics import without_start
from server_app.results.plots import draw_costs, draw_curves, draw_partition
from server_app.results.reading import Run, read_run
from server_app.results.record import PHASES, START
from server_app.results.script import SCRIPT
from server_app.results.style import STYLE
from server_app.results.template import TEMPLATE

_REFRESH_SECONDS = 15


def write_report(run_dir: Path) -> Path:
    """Draw `curves.png` and write `report.html` from the files in `run_dir`; return the page's path.

    Raises
    ------
    UserError
        If a file that every run has is missing, or a line of `metrics.jsonl` is broken.
    """
    run = read_run(run_dir)
    curves = render(draw_curves(run))
    write_bytes(run_dir / "curves.png", curves.light)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters.update(
        accuracy=format_decimals, bytes=format_bytes, duration=format_duration, image=_data_uri, count=format_count
    )
    page = environment.from_string(TEMPLATE).render(
        run=run,
        style=STYLE,
        script=SCRIPT,
        name=str(run.config.get("run-name") or run_dir.resolve().name),
        refresh_seconds=_REFRESH_SECONDS,
        planned=run.config.get("num-rounds"),
        headline=run.headline() | (run.summary or {}),
        curves=curves,
        costs=render(draw_costs(run)),
        heat_map=render(draw_partition(run.partition)) if run.partition else None,
        mean_seconds=_mean_seconds(run),
        starts=[line["seconds"][START] for line in run.metrics if START in line["seconds"]],
        failures=_failures_by_reason(run),
        capped=_capped_clients(run),
    )
    path = run_dir / "report.html"
    write_text(path, page)
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
    table: list[tuple[str, ...]] = [("architecture", "clients", "K", "chunks", "last accuracy", "best accuracy")]
    for row in run.architectures():
        accuracies = format_decimals(row.last_accuracy), format_decimals(row.best_accuracy)
        table.append((row.architecture, str(row.clients), row.num_params, row.chunks, *accuracies))
    of_all = format_decimals(headline["last-accuracy-mean"]), format_decimals(headline["best-accuracy-mean"])
    table.append(("all new" if run.has_known_clients else "all", str(len(run.new_clients)), "", "", *of_all))
    if not run.has_chunks:
        table = [row[:3] + row[4:] for row in table]
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
    new = "new " if run.has_known_clients else ""
    if run.evaluated:
        for what, accuracy, best_round in (
            (f"mean over {new}clients", "accuracy-mean", "best-mean-round"),
            (f"over all test samples{' of new clients' if new else ''}", "accuracy", "best-round"),
        ):
            text.append(
                f"{what}: best accuracy {headline[f'best-{accuracy}']:.3f} in round {headline[best_round]}, "
                f"last {headline[f'last-{accuracy}']:.3f} in round {headline['last-round']}"
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
        f"(client {headline['epsilon-client']}, the worst of {headline['noised-clients']} clients that add noise; "
        f"{headline['clients']} in all)"
    )


def _mean_seconds(run: Run) -> dict[str, float]:
    """Return the mean a round of each phase, and of the total without the start-up of a process."""
    means = {phase: fmean(line["seconds"][phase] for line in run.metrics) for phase in PHASES}
    return means | {"total": fmean(without_start(line["seconds"]) for line in run.metrics)}


def _capped_clients(run: Run) -> list[dict[str, Any]]:
    """Return the clients whose weight was cut: the largest share of the samples that they claimed, and how often."""
    shares: dict[str, list[float]] = {}
    for line in run.metrics:
        for client, share in line.get("client-capped", {}).items():
            shares.setdefault(client, []).append(share)
    return [{"client": client, "share": max(each), "rounds": len(each)} for client, each in shares.items()]


def _failures_by_reason(run: Run) -> list[dict[str, Any]]:
    """Group failures by reason, the most frequent first: count, (client, times) pairs, and which was the latest."""
    groups: dict[str, dict[str, Any]] = {}
    for line in run.metrics:
        for failure in line["failure-list"]:
            group = groups.setdefault(failure["reason"], {"reason": failure["reason"], "clients": Counter()})
            group["clients"][failure["client"]] += 1
            group.update(round=line["round"], client=failure["client"], detail=failure["detail"])
    for group in groups.values():
        group["count"] = group["clients"].total()
        group["clients"] = group["clients"].most_common()
    return sorted(groups.values(), key=lambda group: -int(group["count"]))


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
