"""Runs a comparison: what is finished is skipped, what was interrupted goes on, and what fails does not stop the rest.

Runs that need the same simulation are played in one, one after the other (`server_app/batch.py`). What is done is read
from the runs' folders alone, so that nothing is lost and nothing done twice, however the command ends.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from common.comparison import FAILURES, FILE
from common.config import Config
from common.config.batch import write_runs
from common.config.profiles import read_yaml
from common.data.simulation import divide, located
from common.errors import UserError
from common.files import WriteError, make_folder, write_text
from common.text import shown
from mh_pfedhn import flower_run, simulation
from mh_pfedhn.comparing.plan import Plan, PlannedRun
from mh_pfedhn.comparing.progress import Progress
from mh_pfedhn.flower_run import Ending
from mh_pfedhn.private_folder import OWNER
from mh_pfedhn.processes import say
from mh_pfedhn.runs import RunFailedError, RunInterruptedError
from server_app import batch, checkpoint

# What may differ from what a run was begun with, since no result depends on it.
_MAY_DIFFER = {
    "checkpoint-every",
    "deadline",
    "give-up-after",
    "log-to",
    "profile",
    "resume",
    "results-dir",
    "run-name",
}

# The settings of a method by which it is decided whether its data suit a global model.
_OF_GLOBAL_MODEL = ("global-model", "gd-fraction")


def in_words(failures: Mapping[str, str], plan: Plan) -> str:
    """A sentence that names the runs that have failed, each with the reason."""
    named = "; ".join(f"{name} ({reason.rstrip('.')})" for name, reason in failures.items())
    return f"{len(failures)} of {len(plan.runs)} runs failed, and are tried again by the next call: {named}."


def check(plan: Plan) -> None:
    """Find in all runs what would end one of them at its start. Raises UserError, which says in which run."""
    if (plan.folder / "metrics.jsonl").exists():
        raise UserError(f"{plan.folder} is the folder of a run: give the comparison another --name.")
    checked = set()
    with simulation.forgetting():  # once, after all: a data set of a user's own may be slow to read
        for run in plan.runs:
            config = _checked_alike(run.config)
            if config in checked:
                continue
            checked.add(config)
            with _told_of(run):
                simulation.check(run.config)
        for run in plan.runs:
            _check_same(run)


def _checked_alike(config: Config) -> Config:
    """The same for all runs in which the same is checked: of a method no more counts than the global model it has."""
    settings = {key: config.method_settings[key] for key in _OF_GLOBAL_MODEL if key in config.method_settings}
    return dataclasses.replace(config, method="", run_name="", profile="", method_settings=settings)


def finished(run: PlannedRun) -> bool:
    """Whether a run has come to its end."""
    return (run.config.run_dir / "summary.json").exists()


def run_plan(plan: Plan, *, keep_checkpoints: bool = False) -> dict[str, str]:
    """Make all runs that are not finished; return which of them failed, by name, and why.

    Raises UserError before anything starts, RunFailedError when Flower cannot be started at all, and
    RunInterruptedError.
    """
    check(plan)
    with _only_one(plan.folder):
        write_text(plan.folder / FILE, yaml.safe_dump(plan.to_dict(), sort_keys=False, allow_unicode=True))
        return _Runner(plan, keep_checkpoints).run()


class _Runner:
    def __init__(self, plan: Plan, keep_checkpoints: bool) -> None:
        self._plan = plan
        self._keep_checkpoints = keep_checkpoints
        self._failures: dict[str, str] = {}
        self._could_draw = True
        self._tidied: set[str] = set()
        done = {run.name for run in plan.runs if finished(run)}
        self._progress = Progress(plan.runs, done, self._tidy)

    def run(self) -> dict[str, str]:
        self._write_failures()
        done = [run for run in self._plan.runs if finished(run)]
        for note in self._plan.notes:
            say(note)
        say(f"{self._plan.name}: {len(self._plan.runs)} runs, {len(done)} of them finished; in {self._plan.folder}.")
        for run in done:
            self._delete_checkpoints(run)
        while left := self._left():
            arguments = simulation.federation(left[0].config)
            alike = [run for run in left if simulation.federation(run.config) == arguments]
            self._play(alike, arguments)
        if self._failures or not self._tidied:  # else the last run that was finished is in the drawing already
            self._draw()
        return self._failures

    def _left(self) -> list[PlannedRun]:
        return [run for run in self._plan.runs if not finished(run) and run.name not in self._failures]

    def _play(self, runs: Sequence[PlannedRun], arguments: list[str]) -> None:
        """Play these runs in one simulation, to the end or until one fails."""
        configs = [run.config for run in runs]
        with simulation.local_superlink(*configs) as (name, environment):
            path = Path(environment[OWNER], "runs.json")
            # What a killed command had left to itself is ended only now: it may have finished one of these.
            runs = [run for run in runs if not finished(run)]
            write_runs(path, [run.config for run in runs])
            ending = flower_run.drive_all(path, name, arguments, environment, self._progress.shown)
            failure = batch.failure(path)
        if ending.interrupted:
            raise RunInterruptedError(
                f"{self._plan.name} was interrupted; what is complete is kept, and the same command goes on.",
                self._plan.folder,
            )
        for run in runs:
            if finished(run):
                self._tidy(run)
                self._progress.end(run, finished=True)
        unfinished = [run for run in runs if not finished(run)]
        if not unfinished:
            return
        if ending.status is None:
            raise RunFailedError("Flower did not start the runs; its own words are above.", self._plan.folder)
        self._fail(unfinished[0], _reason(unfinished[0], ending, failure))

    def _fail(self, run: PlannedRun, reason: str) -> None:
        say(f"{run.name} has failed, the others go on: {reason}")
        self._failures[run.name] = reason
        self._write_failures()
        self._progress.end(run, finished=False)

    def _write_failures(self) -> None:
        write_text(self._plan.folder / FAILURES, json.dumps(self._failures, indent=2) + "\n")

    def _tidy(self, run: PlannedRun) -> None:
        """What follows a run that is finished, once: it is seen in the log, or else afterwards in its folder."""
        if run.name not in self._tidied:
            self._tidied.add(run.name)
            self._delete_checkpoints(run)
            self._draw()

    def _delete_checkpoints(self, run: PlannedRun) -> None:
        if not self._keep_checkpoints:
            shutil.rmtree(run.config.run_dir / checkpoint.FOLDER, ignore_errors=True)

    def _draw(self) -> None:
        """Write tables and pictures. Hours of training are worth more than those, which can be drawn again."""
        from server_app.results.comparison import write_comparison

        try:
            write_comparison(self._plan.folder)
        except Exception as error:
            if self._could_draw:
                say(f"The comparison could not be drawn ({type(error).__name__}: {error}); the runs go on.")
            self._could_draw = False


def _reason(run: PlannedRun, ending: Ending, failure: tuple[str, str] | None) -> str:
    if failure and failure[0] == run.name:
        return failure[1]
    if ending.silent:
        return "The run's ServerApp ended without a word: killed, or for want of memory."
    return f"The simulation ended as {ending.status}; the log says why."


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Keep every other command out of a comparison; the lock goes with the process, however it ends."""
    try:
        make_folder(folder)
    except WriteError as error:
        raise UserError(f"The comparison's folder {error}.") from error
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(
            f"{folder} is being written by another `mh-pfedhn compare`: wait until it has ended, stop it, or give "
            "this one another --name."
        ) from error


@contextlib.contextmanager
def _told_of(run: PlannedRun) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{run.title}: {error}") from error


def _check_same(run: PlannedRun) -> None:
    """Raise UserError where a run that is there, finished or not, was begun with other settings than it has now."""
    path = run.config.run_dir / "config.yaml"
    if not path.exists():
        return
    then, now = read_yaml(path), _located(run.config).to_dict()
    for key, value in now.items():
        # A key that the run does not know is one of a later release, whose default is what was before.
        if key not in _MAY_DIFFER and key in then and then[key] != value:
            raise UserError(
                f"{run.name} is there already, with {key} {shown(then[key])} instead of {shown(value)}: give the "
                f"comparison another --name, or delete {path.parent} to run it anew."
            )


def _located(config: Config) -> Config:
    """With `data-dir` as a run writes it down: where its data were found."""
    without = dataclasses.replace(config, method="", run_name="", profile="", method_settings={})
    return dataclasses.replace(config, data_dir=_found(without))


@cache
def _found(config: Config) -> str:
    return located(config, divide(config, config.num_parts(config.num_nodes))).data_dir
