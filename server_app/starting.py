"""Where a run starts: the lock on its folder, the checkpoint that it goes on from, and whether the two go together."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from logging import INFO

from filelock import FileLock, Timeout
from flwr.common import log

from common.config import RUN_OPTIONS, Config
from common.errors import UserError
from server_app import checkpoint
from server_app.checkpoint import Checkpoint


@contextmanager
def opened(config: Config, simulated: bool) -> Iterator[tuple[Config, Checkpoint | None]]:
    """The config with a run-name, and the checkpoint to start from, if any; the run's folder is this process's alone.

    Raises UserError when another process writes there, and for a checkpoint that is damaged or does not fit.
    """
    # A run without a name takes that of its checkpoint; one with a name is locked before its checkpoint is read.
    start = None
    if not config.run_name:
        config, start = _start_of(config)
    with _only_writer(config):
        if start is None:
            config, start = _start_of(config)
        if start:
            _check_same(config, start, simulated)
        yield config, start


def is_finished(config: Config, start: Checkpoint | None) -> bool:
    """Whether there is nothing left to do."""
    if start is None or config.mode == "adapt":
        return False
    summary = config.results_path / config.run_name / "summary.json"
    return start.server_round >= config.num_rounds and summary.exists()


def resume_after(config: Config, start: Checkpoint | None) -> int | None:
    """The last round whose line of the metrics is kept; None for a run that does not go on with another."""
    if start and config.mode == "train":
        # The metrics of the last complete round are written when its weights have been tested, which is yet to come.
        return start.server_round - 1
    # What a run without a checkpoint left behind is begun anew.
    return 0 if config.resume == "latest" else None


@contextmanager
def _only_writer(config: Config) -> Iterator[None]:
    """Keep every other ServerApp out of a run's folder; the lock goes with the process, however it ends."""
    run_dir = config.results_path / config.run_name
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The run's folder {run_dir} cannot be made: {error.strerror}.") from error
    try:
        with FileLock(run_dir / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(
            f"{run_dir} is being written by another run: wait until it has ended, stop it, or choose another run-name."
        ) from error


def _start_of(config: Config) -> tuple[Config, Checkpoint | None]:
    """The checkpoint that `resume` names, and the config with a run-name: the checkpoint's when a run goes on."""
    if config.resume == "latest":
        run_dir = config.results_path / config.run_name
        if checkpoint.exists(run_dir):
            return config, checkpoint.load(run_dir)
        log(INFO, "%s has no checkpoint yet: starting anew.", run_dir)
        return config, None
    if not config.resume:
        return config.named(), None
    start = checkpoint.load(config.resume_path)
    if config.mode == "train" and not config.run_name:
        config = dataclasses.replace(config, run_name=start.config["run-name"])
    return config.named(), start


def _check_same(config: Config, start: Checkpoint, simulated: bool) -> None:
    """Raise UserError where this run would read the checkpoint's weights as something that they are not."""
    when = {"always"} | ({"training"} if config.mode == "train" else set()) | ({"simulation"} if simulated else set())
    settings = config.to_dict()
    for key, option in (RUN_OPTIONS | config.halves.options).items():
        if key not in start.config:
            continue  # mode adapt may take another method's run, and finds out itself whether that holds what it needs
        then, now = start.config[key], settings[key]
        if option.rule.fixed in when and then != now:
            raise UserError(f"{key} is {now!r}, but {start.path} was trained with {then!r}: use the same.")
    if simulated and config.run_name != start.config["run-name"]:
        expected = config.results_path / start.config["run-name"]
        if start.path.parents[1].resolve() != expected.resolve():
            raise UserError(
                f"resume is {start.path}, but clients look for what they kept in {expected}: set results-dir to the "
                "folder that holds the run."
            )
