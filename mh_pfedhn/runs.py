"""Runs from their settings to their results: what `mh_pfedhn.run` and `mh-pfedhn run` have in common, and `compare`."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import DEFAULT_PROFILE, Config, load_config
from common.config.profiles import read_yaml
from common.errors import UserError
from common.text import kebab
from mh_pfedhn import flower_run, simulation
from mh_pfedhn.deployment.connections import connected
from mh_pfedhn.processes import flower_environment

if TYPE_CHECKING:
    from server_app.results import Run
    from server_app.results.comparison import Comparison


class RunFailedError(Exception):
    """A run that did not start or did not complete; the message says which, and Flower's log, printed before, why.

    `run_dir` is the folder with what was computed so far, None when the run did not start.
    """

    def __init__(self, message: str, run_dir: Path | None) -> None:
        super().__init__(message)
        self.run_dir = run_dir


class RunInterruptedError(KeyboardInterrupt):
    """A run that the user's interrupt has stopped. `run_dir` is as in RunFailedError.

    It is a KeyboardInterrupt, so that a script that goes on after a failed run does not go on after this.
    """

    def __init__(self, message: str, run_dir: Path | None) -> None:
        super().__init__(message)
        self.run_dir = run_dir


def run(
    profile: str | os.PathLike[str] = DEFAULT_PROFILE, *, superlink: str | None = None, **settings: object
) -> "Run":
    """Run a federation from its first round to its last, as `mh-pfedhn run` does, and return its results.

    Parameters
    ----------
    profile
        The name of a profile (`mh-pfedhn profiles` lists them), several joined by "+", or the path of a YAML file;
        the `config.yaml` of a run repeats it.
    superlink
        A connection of Flower's config.toml to a running SuperLink. Without one, the run is simulated on this machine.
    settings
        What differs from the profile: keys with underscores, such as `num_rounds=3`. Relative paths start at the
        working folder.

    Flower's log is printed while the run goes on. Works in any thread.

    Raises
    ------
    UserError
        For a mistake in what is asked, before anything starts; or if the run has written its files on another machine.
    RunFailedError
        If the run does not complete.
    RunInterruptedError
        If the user interrupts it; a KeyboardInterrupt.
    """
    run_dir = execute({**_overrides(settings), "profile": os.fspath(profile)}, superlink, origin="the arguments")
    if superlink and not run_dir.exists():
        raise UserError(f"the run has completed, but {run_dir} is not on this machine: its files are on the server's.")
    return load_results(run_dir)


def compare(
    comparison: str | os.PathLike[str] | Mapping[str, Any],
    *,
    name: str = "",
    seeds: Sequence[int] | None = None,
    keep_checkpoints: bool = False,
    **settings: object,
) -> "Comparison":
    """Make the runs of a comparison, as `mh-pfedhn compare` does, and return their results side by side.

    What is finished is not run again, and a comparison that was interrupted goes on.

    Parameters
    ----------
    comparison
        The path of a YAML file, the name of one that comes with the project (`mh-pfedhn profiles` lists them), or what
        such a file would hold, as a dict.
    name
        That of the folder of its results; by default that of the file.
    seeds
        In the place of those that the comparison names.
    keep_checkpoints
        Keep those of finished runs, too: they are large.
    settings
        Of all runs, with underscores, such as `num_rounds=3`; they win over what the comparison says.

    Works in any thread.

    Raises
    ------
    UserError
        For a mistake in what is asked, before anything starts.
    RunFailedError
        If some of the runs did not complete, once all others are finished; `run_dir` is the comparison's folder.
    RunInterruptedError
        If the user interrupts it; a KeyboardInterrupt.
    """
    from mh_pfedhn.comparing.plan import make_plan
    from mh_pfedhn.comparing.running import in_words, run_plan
    from server_app.results.comparison import read_comparison

    origin = "the arguments"
    plan = make_plan(comparison, _overrides(settings), name=name, seeds=seeds, origin=origin)
    failures = run_plan(plan, keep_checkpoints=keep_checkpoints)
    if failures:
        raise RunFailedError(in_words(failures, plan), plan.folder)
    return read_comparison(plan.folder)


def load_results(run_dir: str | os.PathLike[str]) -> "Run":
    """Read the results of a run, finished or not, from its folder. Raises UserError if it is no run's folder."""
    from server_app.results import read_run

    return read_run(Path(run_dir).expanduser())


def load_comparison(folder: str | os.PathLike[str]) -> "Comparison":
    """Read the results of a comparison, finished or not, from its folder. Raises UserError if it is no comparison's."""
    from server_app.results.comparison import read_comparison

    return read_comparison(Path(folder).expanduser())


def _overrides(settings: Mapping[str, object]) -> dict[str, object]:
    """Arguments of Python as settings under their keys."""
    return {
        kebab(name): os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in settings.items()
    }


def execute(overrides: Mapping[str, object], superlink: str | None, origin: str = "the command line") -> Path:
    """Run a federation with these settings (kebab-case keys) to its end; return the folder of its results.

    `origin` says in sentences about mistakes where the settings stand.

    Raises UserError before anything starts, and RunFailedError or RunInterruptedError afterwards.
    """
    simulation.import_from_here()
    config = load_config(overrides, origin=origin)
    if not config.resume or config.mode == "adapt":
        config = config.named()
    if superlink:
        config = simulation.results_from_here(config)
        simulation.check_is_new(config)
        with connected(superlink, flower_environment(os.environ)) as environment:
            ending = flower_run.drive(config, superlink, [], environment)
    else:
        config = simulation.from_here(config)
        with simulation.forgetting():
            simulation.check(config)
        with simulation.local_superlink(config) as (name, environment):
            ending = flower_run.drive(config, name, simulation.federation(config), environment)
    run_dir = _run_dir(config)
    if ending.status == "finished:completed":
        return run_dir
    failed = RunInterruptedError if ending.interrupted else RunFailedError
    if ending.status is None:
        raise failed("Flower did not start the run; its own words are above.", None)
    if ending.silent:
        raise failed(
            "the run's ServerApp ended without a word: killed, or for want of memory; Flower notices after about a "
            f"minute. What is complete is kept: go on with resume=latest run-name={run_dir.name}.",
            run_dir,
        )
    raise failed(f"the run ended as {ending.status}; the log above says why.", run_dir)


def _run_dir(config: Config) -> Path:
    """The folder of the run's results. A run without a name goes on under the name of the run that it resumes."""
    return config.results_path / (config.run_name or _name_of(config.resume_path))


def _name_of(resumed: Path) -> str:
    """The name of the run whose folder or checkpoint file this is; its folder may have been renamed since."""
    from server_app import checkpoint

    folder = resumed if resumed.is_dir() else resumed.parent.parent
    with contextlib.suppress(UserError, KeyError):
        return str(read_yaml(folder / "config.yaml")["run-name"])
    with contextlib.suppress(UserError):
        return str(checkpoint.load(resumed).config["run-name"])
    return folder.name  # its files are on another machine
