"""The sentences under a comparison's tables: what the numbers are, and what they are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from common.evaluation import AFTER_TRAINING
from server_app.results.comparison.compared import FAILED, FINISHED, MISSING, UNFINISHED
from server_app.results.comparison.figures import VALIDATION
from server_app.results.comparison.sheets import LEARNED_NOTHING, PROVISIONAL, label
from server_app.results.metrics import accuracy_key

if TYPE_CHECKING:
    from server_app.results.comparison.comparing import Comparison

_NAMED = 3  # runs or settings that a sentence names
_FAILING = 12  # runs of a setting with a line of their own on clients that failed


def notes(comparison: Comparison) -> list[str]:
    """All that apply, in the order of the tables' columns."""
    return [
        *_of_numbers(comparison),
        *_of_targets(comparison),
        *_of_gains(comparison),
        *_of_grids(comparison),
        *_of_marks(comparison),
    ]


def _of_numbers(comparison: Comparison) -> list[str]:
    if comparison.is_validated:
        best = "chosen: after each seed's round with the highest mean accuracy on the validation samples"
    else:
        best = "best: after each seed's best round, chosen on the test samples themselves and so too favourable"
    sentences = [
        "Means over seeds ± their sample standard deviation; of one seed there is no deviation. Bold is the best of a "
        "column; underlined (in Markdown: italic) is what is within one standard error of the difference from it. "
        f"Methods of which no seed has finished ({PROVISIONAL}) or every seed has learned nothing ({LEARNED_NOTHING}) "
        "are never best; where fewer than two others have a number, nothing is bold.",
        f"mean: of the clients' accuracies on their own test samples. last: after the last round; {best}. worst "
        "tenth: mean of the worst tenth of the clients, last. all samples: correct answers over all test samples.",
    ]
    if any(row["last-after-training-accuracy-mean"] is not None for row in comparison.rows):
        after = "after an epoch: mean over clients after one more local epoch on what was deployed."
        if fewer := _with_fewer_clients(comparison):
            after += (
                " A client whose epoch diverges, or that does not make this test, is left out, so that these are not "
                f"over the same clients as the mean: {_listed(fewer)}."
            )
        sentences.append(after)
    return sentences


def _with_fewer_clients(comparison: Comparison) -> list[str]:
    """The runs of which fewer clients were tested after an epoch than before it, and how many."""
    key = f"{accuracy_key(AFTER_TRAINING)}-mean"
    which, chosen_by = ("chosen", VALIDATION) if comparison.is_validated else ("best", key)
    runs = []
    for each, run in (pair for group in comparison.groups for pair in group.counted):
        lines = {"last": run.last(key), which: run.best(chosen_by)}
        fewer = [f"{name} of {few}" for name, line in lines.items() if (few := run.fewer_after_training(line))]
        if fewer:
            runs.append(f"{each.name}: {', '.join(fewer)}")
    return runs


def _of_targets(comparison: Comparison) -> list[str]:
    if all(target is None for target in comparison.targets.values()):
        return []
    if comparison.target_accuracy is not None:
        origin = f"Target: mean accuracy {comparison.target_accuracy:g}, as asked for."
    else:
        origin = "Target: 95 % of the highest mean accuracy (last) of any method in the setting, as none was asked for."
    return [
        f"{origin} at target: how many seeds come there. Bytes and time to it are medians over seeds; one that never "
        "comes there counts as infinite, so that there is a dash unless more than half of them do. time: on the clock "
        "since the run began, tests included, and to the target until the round that comes there has been played; "
        "training: less the start of its processes."
    ]


def _of_gains(comparison: Comparison) -> list[str]:
    sentences = []
    if any(row["gain-clients"] for row in comparison.rows):
        sentences.append(
            "gain: a client's last accuracy less that of the same client training alone with the same seed, mean over "
            "clients. losing: share of the clients whose gain is below 0. worst gain: of any client with any seed. "
            "Where (n of m) stands there, only n seeds have a finished run of training alone as well."
        )
    lacking = [setting for setting in comparison.settings if comparison.alone(setting) is None]
    if lacking:
        where = "There" if len(lacking) == len(comparison.settings) else f"In {_listed(lacking)} there"
        sentences.append(f"{where} is no finished run of method local, so gains over training alone cannot be told.")
    for setting in comparison.settings:
        alone = comparison.alone(setting)
        several = [group for group in comparison.shown_in(setting) if group.is_method_local]
        if alone is not None and len(several) > 1:
            sentences.append(
                f"In {setting} are several rows of method local; gains are over {label(comparison, alone)}."
            )
    return sentences


def _of_grids(comparison: Comparison) -> list[str]:
    firsts = {(group.setting, group.method): group for group in comparison.groups}
    grids = [points for group in firsts.values() if len(points := comparison.points(group)) > 1]
    sentences = []
    if any(comparison.is_chosen(points[0]) is not None for points in grids):
        sentences.append(
            "Of each grid the point stands in the tables whose last accuracy on the validation samples (mean over "
            "clients, then over seeds) is highest; the test samples had no say."
        )
    for points in grids:
        named = f"{points[0].method} in {points[0].setting}" if len(comparison.settings) > 1 else points[0].method
        if comparison.is_chosen(points[0]) is None:
            sentences.append(
                f"The grid of {named} has no accuracy on validation samples, so nothing is chosen and all points are "
                "shown: set validation-fraction."
            )
            continue
        runs = [run for group in points for run in group.runs]
        finished = sum(run.state == FINISHED for run in runs)
        if finished < len(runs):
            sentences.append(f"The choice for {named} is provisional: {finished} of {len(runs)} runs have finished.")
    return sentences


def _of_marks(comparison: Comparison) -> list[str]:
    sentences = []
    if any(group.is_provisional for group in comparison.shown):
        sentences.append(
            f"{PROVISIONAL} No seed has finished: the numbers are those so far of runs that go on or were interrupted."
        )
    reasons = [f"{name}: {why}" for group in comparison.groups for name, why in group.nothing_learned.items()]
    if reasons:
        sentences.append(
            f"{LEARNED_NOTHING} Some seed has learned nothing, or nothing that lasted: it ends within a tenth of what "
            "always guessing each client's most frequent class gets, or no client's accuracy ever moved, or it "
            f"finished and was never tested. {_listed(reasons)}."
        )
    if any(each.never_trained for group in comparison.groups for _, each in group.failing):
        sentences.append(
            "never trained: whenever an update was asked of the client it failed, so that none was used in any round. "
            "Such clients are tested like the others, and are in the means."
        )
    return sentences


def failing_in(comparison: Comparison, setting: str) -> list[str]:
    """A line for each finished run of a setting in which clients never trained, or many updates failed."""
    lines = [
        f"{label(comparison, group)}, seed {each.seed}: {words}"
        for group in comparison.groups
        if group.setting == setting
        for each, of_run in group.failing
        if (words := of_run.words())
    ]
    more = len(lines) - _FAILING
    return [*lines[:_FAILING], f"{more} more runs: see failures in table.csv"] if more > 0 else lines


def absent(comparison: Comparison) -> list[tuple[str, str, str]]:
    """The runs that are not there whole: name, state and how far it came, and why it failed where it did.

    A run that has finished after it had failed is among them, so that no failure goes unseen.
    """
    rows = []
    for run in comparison.runs:
        if run.state != FINISHED or run.failure:
            state = {FAILED: "failed", UNFINISHED: "not finished", MISSING: "missing", FINISHED: "finished"}[run.state]
            how_far = state if run.state == MISSING else f"{state}, {run.progress}"
            rows.append((run.name, how_far, run.failure or ""))
    return rows


def _listed(words: Sequence[str]) -> str:
    more = f"; and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return "; ".join(words[:_NAMED]) + more
