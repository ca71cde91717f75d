"""Where a run starts: the lock on its folder, the checkpoint that it goes on from, and whether the two go together."""

import dataclasses
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from logging import INFO
from pathlib import Path

from filelock import FileLock, Timeout
from flwr.common import log

from common.config import RUN_OPTIONS, Config
from common.errors import UserError
from common.files import link_or_copy, sync_folder
from server_app import checkpoint
from server_app.checkpoint import Checkpoint
from server_app.rounds.lineage import lineage_of

SET_ASIDE = "set-aside"  # in a run's folder: checkpoints of lines of history that it has left


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
            _check_place(config, start, simulated)
        yield config, start


def is_finished(config: Config, start: Checkpoint | None) -> bool:
    """Whether there is nothing left to do."""
    if start is None or config.mode == "adapt":
        return False
    summary = config.run_dir / "summary.json"
    return start.server_round >= config.num_rounds and summary.exists()


def resume_after(config: Config, start: Checkpoint | None) -> int | None:
    """The last round whose line of the metrics is kept; None for a run that does not go on with another."""
    if start and config.mode == "train" and _goes_on(config, start):
        # The metrics of the last complete round are written when its weights have been tested, which is yet to come.
        return start.server_round - 1
    # What a run without a checkpoint left behind is begun anew.
    return 0 if config.resume == "latest" else None


def begin_line(config: Config, start: Checkpoint) -> None:
    """Make this checkpoint the newest of the run's folder: later ones are of a history that this run does not have.

    They are moved to `set-aside/after-round-NNNNNN`, with a copy of what tells of them. Raises UserError.
    """
    try:
        _begin_line(config.run_dir, start)
    except OSError as error:
        raise UserError(f"Round {start.server_round} cannot be gone back to: {error}.") from error


def _begin_line(run_dir: Path, start: Checkpoint) -> None:
    folder = run_dir / checkpoint.FOLDER
    own = checkpoint.path_of(folder, start.server_round)
    later = [folder / checkpoint.BEST] if checkpoint.best_round(run_dir) > start.server_round else []
    later += [checkpoint.path_of(folder, each) for each in checkpoint.rounds(run_dir) if each > start.server_round]
    if own.exists() and not own.samefile(start.path):  # of another line: this one comes from elsewhere
        later.append(own)
    if later:
        aside = _new_folder(run_dir / SET_ASIDE / f"after-round-{start.server_round:06}")
        for name in ("metrics.jsonl", "clients.csv", "clients-by-round.csv", "summary.json"):
            if (run_dir / name).exists():
                shutil.copyfile(run_dir / name, aside / name)
        for path in later:
            os.replace(path, aside / path.name)
        for changed in (aside, folder):
            sync_folder(changed)
        log(
            INFO,
            "Going back to round %d: %d checkpoints of another line of history are in %s.",
            start.server_round,
            len(later),
            aside,
        )
    if not own.exists():  # resume=latest must find it before this run has written one
        folder.mkdir(exist_ok=True)
        link_or_copy(start.path, own)


def _new_folder(path: Path) -> Path:
    """Make a folder of this name, or of it and a number where there is one already."""
    names = itertools.chain([path], (path.with_name(f"{path.name}-{number}") for number in itertools.count(2)))
    new = next(name for name in names if not name.exists())
    new.mkdir(parents=True)
    return new


def _goes_on(config: Config, start: Checkpoint) -> bool:
    """Whether a run goes on in its own folder, and does not branch off from another."""
    run_dir = config.run_dir
    return start.config["run-name"] == config.run_name or run_dir.resolve() in start.path.resolve().parents


@contextmanager
def _only_writer(config: Config) -> Iterator[None]:
    """Keep every other ServerApp out of a run's folder; the lock goes with the process, however it ends."""
    run_dir = config.run_dir
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
        run_dir = config.run_dir
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


def _check_place(config: Config, start: Checkpoint, simulated: bool) -> None:
    """Raise UserError where what belongs to the checkpoint is not where this run looks for it."""
    run_dir = config.run_dir
    if config.mode == "train" and (run_dir / SET_ASIDE).resolve() in start.path.resolve().parents:
        raise UserError(
            f"resume is {start.path}, which was set aside when {config.run_name} went on from an earlier round: go on "
            "from it under another run-name."
        )
    if config.mode == "train" and not _goes_on(config, start) and (run_dir / "metrics.jsonl").exists():
        raise UserError(f"{run_dir} holds a run already, which {start.path} is not of: choose another run-name.")
    for run_name in {point.run_name for point in lineage_of(start)} if simulated else ():
        expected = config.results_path / run_name
        if not (expected / "clients").is_dir():
            raise UserError(
                f"resume is {start.path}, but clients look for what they kept in {expected}, where nothing is: set "
                "results-dir to the folder that holds the run."
            )
