"""Turns the folder of a run into `curves.png`, `report.html` and the table at the end of the console's output.

Works on a run that is still going on, and on one that died: nothing is read but the files in that folder.
"""

from collections import Counter
from pathlib import Path
from statistics import fmean, median
from typing import Any

from common.evaluation import AFTER_TRAINING, VALIDATION
from common.files import write_bytes, write_text
from server_app.results.dark import render
from server_app.results.formatting import FURTHER_TESTS, format_decimals
from server_app.results.metrics import accuracy_key, without_start
from server_app.results.pages import page
from server_app.results.partition_plot import draw_partition, shows_classes
from server_app.results.plots import draw_costs, draw_curves
from server_app.results.reading import Run, read_run
from server_app.results.record import PHASES, START
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
    text = page(
        TEMPLATE,
        run=run,
        name=str(run.config.get("run-name") or run_dir.resolve().name),
        refresh_seconds=_REFRESH_SECONDS,
        planned=run.config.get("num-rounds"),
        headline=run.headline() | (run.summary or {}),
        further=[(test, accuracy_key(test), FURTHER_TESTS[test]) for test in run.further_tests],
        fewer={AFTER_TRAINING: _fewer_clients(run)},
        means_over=_means_over(run),
        curves=curves,
        costs=render(draw_costs(run)),
        partition_picture=render(draw_partition(run.partition)) if run.partition else None,
        shows_classes=run.partition is not None and shows_classes(run.partition),
        sizes=_sizes(run.partition) if run.partition else "",
        mean_seconds=_mean_seconds(run),
        starts=[line["seconds"][START] for line in run.metrics if START in line["seconds"]],
        failures=_failures_by_reason(run),
        capped=_capped_clients(run),
    )
    path = run_dir / "report.html"
    write_text(path, text)
    return path


def final_table(run_dir: Path) -> str:
    """Return the plain-text table for the end of a run: a row an architecture, and the best and the last round.

    A further test, after one epoch or on validation samples, has a column for its last round, where some client made
    it. Where there are known clients, all but their own rows and their own line at the end is of the new ones.

    Raises
    ------
    UserError
        As `read_run`.
    """
    run = read_run(run_dir)
    headline = run.headline()
    further = run.further_tests
    heads = ["architecture", "clients", "K", "chunks", "last accuracy", *(FURTHER_TESTS[test] for test in further)]
    table: list[tuple[str, ...]] = [(*heads, "best accuracy")]
    for row in run.architectures():
        accuracies = row.last_accuracy, *(row.further[test] for test in further), row.best_accuracy
        cells = row.architecture, str(row.clients), row.num_params, row.chunks
        table.append((*cells, *map(format_decimals, accuracies)))
    keys = ["last-accuracy-mean", *(f"last-{accuracy_key(test)}-mean" for test in further), "best-accuracy-mean"]
    of_all = [format_decimals(headline[key]) for key in keys]
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
    text.append(f"({_means_over(run)})")
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
    if headline["best-chosen-on"] == VALIDATION:
        text.append(
            f"chosen on validation samples: round {headline['chosen-round']}, mean over {new}clients "
            f"{headline['chosen-accuracy-mean']:.3f}, over all test samples {headline['chosen-accuracy']:.3f}"
        )
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


def _fewer_clients(run: Run) -> tuple[str, str]:
    """How many clients the last and the best mean after one epoch are over, where not over all; else empty."""
    key = f"{accuracy_key(AFTER_TRAINING)}-mean"
    return run.fewer_after_training(run.last(key)), run.fewer_after_training(run.best(key))


def _means_over(run: Run) -> str:
    """What a table's means are over."""
    last, _ = _fewer_clients(run)
    return "means over clients" + (f", {FURTHER_TESTS[AFTER_TRAINING]} over {last}" if last else "")


def _sizes(partition: dict[str, Any]) -> str:
    """How the samples are spread over clients, in a sentence."""
    totals = sorted(sum(size.values()) for size in partition["sizes"].values())
    return (
        f"{sum(totals):,} samples; the smallest client has {totals[0]:,}, the largest {totals[-1]:,}, "
        f"the median {median(totals):,.0f}."
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
