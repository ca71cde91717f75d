"""A comparison: its runs grouped over seeds, the chosen point of each grid, and the numbers of each group."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from server_app.results.comparison.compared import FINISHED, UNFINISHED, ComparedRun
from server_app.results.comparison.failing import Failing, failing
from server_app.results.comparison.figures import (
    COSTS,
    VALIDATION,
    Spread,
    costs_to,
    figures_of,
    learned_nothing,
    median_cost,
    spread,
)
from server_app.results.comparison.gain import Gain, gains_over
from server_app.results.comparison.rows import rows_of
from server_app.results.comparison.text import plain_table
from server_app.results.reading import Run

TARGET_SHARE = 0.95  # of the best method's accuracy: the target where none is given


@dataclass(frozen=True)
class Group:
    """The runs of one method in one setting with one point of its grid: as many as there are seeds."""

    setting: str
    method: str
    point: str  # empty where the method has no grid
    runs: tuple[ComparedRun, ...]

    @property
    def finished(self) -> list[ComparedRun]:
        """The runs that have finished."""
        return [run for run in self.runs if run.state == FINISHED]

    @property
    def is_provisional(self) -> bool:
        """Whether no run has finished, so that the numbers are those so far of runs that go on."""
        return not self.finished and any(run.state == UNFINISHED for run in self.runs)

    @cached_property
    def counted(self) -> list[tuple[ComparedRun, Run]]:
        """The runs that the numbers are over: those that have finished, or, while there are none, those that go on."""
        state = UNFINISHED if self.is_provisional else FINISHED
        return [(each, each.run) for each in self.runs if each.state == state and each.run is not None]

    @cached_property
    def figures(self) -> dict[str, Spread | None]:
        """Each number of `figures_of` over seeds."""
        of_runs = [figures_of(run) for _, run in self.counted]
        return {key: spread(figures[key] for figures in of_runs) for key in of_runs[0]} if of_runs else {}

    @cached_property
    def nothing_learned(self) -> dict[str, str]:
        """Of the runs that count, those that learned nothing: by name, why."""
        reasons = {each.name: learned_nothing(run) for each, run in self.counted}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    @cached_property
    def failing(self) -> list[tuple[ComparedRun, Failing]]:
        """Of the runs that have finished, whose updates failed."""
        return [(each, failing(each.run)) for each in self.finished if each.run is not None]

    @property
    def is_method_local(self) -> bool:
        """Whether these clients train alone, whatever the label says."""
        methods = {run.config.get("method") for _, run in self.counted}
        return methods == {"local"}

    def mean(self, key: str) -> float | None:
        """The mean over seeds of one number."""
        of_seeds = self.figures.get(key)
        return of_seeds.mean if of_seeds else None

    def costs_to(self, target: float) -> tuple[int, dict[str, float | None]]:
        """How many seeds come to this mean accuracy, and the median over seeds of what each of COSTS is by then."""
        of_runs = [costs_to(run, target) for _, run in self.counted]
        came = [costs for costs in of_runs if costs is not None]
        medians: dict[str, float | None] = {}
        for key in COSTS:
            unknown = any(costs[key] is None for costs in came)
            medians[key] = None if unknown else median_cost([costs[key] if costs else None for costs in of_runs])
        return len(came), medians


@dataclass(frozen=True, repr=False)
class Comparison:
    """Several runs, and what they show together.

    `folder` is where its files lie; paths of runs are shown relative to it. `target_accuracy` is the one that was asked
    for, None where each setting's follows from its results, see `targets`.
    """

    folder: Path
    name: str
    runs: tuple[ComparedRun, ...]
    description: str = ""
    target_accuracy: float | None = None
    is_planned: bool = True  # False for runs that somebody has put beside each other

    def __repr__(self) -> str:
        """Say in a line what is compared, and how much of it is there."""
        finished = sum(run.state == FINISHED for run in self.runs)
        return (
            f"<Comparison {self.name!r}: {len(self.methods)} methods, {len(self.settings)} settings, "
            f"{finished} of {len(self.runs)} runs finished>"
        )

    @cached_property
    def settings(self) -> list[str]:
        """The labels of the settings, as they came."""
        return list(dict.fromkeys(run.setting for run in self.runs))

    @cached_property
    def methods(self) -> list[str]:
        """The labels of the methods, as they came."""
        return list(dict.fromkeys(run.method for run in self.runs))

    @cached_property
    def is_validated(self) -> bool:
        """Whether validation samples choose a round: if every run that has a tested round was tested on some."""
        tested = [each.run for each in self.runs if each.run and each.run.evaluated]
        return bool(tested) and all(any(line.get(VALIDATION) is not None for line in run.metrics) for run in tested)

    @cached_property
    def groups(self) -> list[Group]:
        """One of each setting, method and point of a grid, as they came."""
        members: dict[tuple[str, str, str], list[ComparedRun]] = {}
        for run in self.runs:
            members.setdefault((run.setting, run.method, run.point), []).append(run)
        return [Group(*labels, tuple(runs)) for labels, runs in members.items()]

    def points(self, group: Group) -> list[Group]:
        """The groups of the same method in the same setting: the points of its grid, this one among them."""
        return [each for each in self.groups if (each.setting, each.method) == (group.setting, group.method)]

    def is_chosen(self, group: Group) -> bool | None:
        """Whether a group stands for its method in its setting; None where its grid has nothing to choose on.

        Of a grid that is the point with the highest mean over seeds of the last accuracy on validation samples, the
        first of those that tie; the test samples have no say.
        """
        points = self.points(group)
        if len(points) == 1:
            return True
        validated = [(mean, each) for each in points if (mean := each.mean(f"last-{VALIDATION}")) is not None]
        if not validated:
            return None
        # A point with fewer seeds, or of runs that go on, competes as well; the notes call such a choice provisional.
        return max(validated, key=lambda pair: pair[0])[1] is group

    @cached_property
    def shown(self) -> list[Group]:
        """The groups of the main tables and of the plots: all but the points of grids that were not chosen."""
        return [group for group in self.groups if self.is_chosen(group) is not False]

    def shown_in(self, setting: str) -> list[Group]:
        """Those of one setting."""
        return [group for group in self.shown if group.setting == setting]

    @property
    def has_grid(self) -> bool:
        """Whether some method has several points in a setting."""
        return any(len(self.points(group)) > 1 for group in self.groups)

    @cached_property
    def targets(self) -> dict[str, float | None]:
        """By setting, the mean accuracy over clients to which bytes and seconds are counted.

        Where none was asked for: TARGET_SHARE of the highest mean over seeds of the last accuracy, in full thousandths.
        """
        return {setting: self.target_accuracy or self._target_of(setting) for setting in self.settings}

    def _target_of(self, setting: str) -> float | None:
        means = [group.mean("last-accuracy-mean") for group in self.shown_in(setting)]
        highest = max((mean for mean in means if mean is not None), default=None)
        # What is left after the sixth digit is the arithmetic's, and must not cost a thousandth.
        return int(round(1000 * TARGET_SHARE * highest, 6)) / 1000 if highest else None

    def alone(self, setting: str) -> Group | None:
        """The group whose clients train alone in a setting, None where there is none; the first of several.

        One that has not finished any run counts as none, and so does a grid of which no point was chosen.
        """
        groups = (each for each in self.shown_in(setting) if self.is_chosen(each) and each.finished)
        return next((each for each in groups if each.is_method_local), None)

    def gain(self, group: Group) -> Gain | None:
        """What the clients of a group gain over training alone; None where there is nothing to compare with."""
        alone = self.alone(group.setting)
        if alone is None or alone is group:
            return None
        return gains_over(alone.counted, group.counted)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The numbers as in `table.csv`, one row a setting, method and point of a grid, for `pandas.DataFrame`."""
        return rows_of(self)

    def table(self) -> str:
        """The main numbers as plain text, for a console."""
        return plain_table(self)
