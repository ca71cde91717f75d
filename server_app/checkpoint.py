"""The server's state on disk: all that a run needs to go on after its last complete round, whoever stopped it.

The files hold plain tensors, numbers and text, and are read with `weights_only=True`. They are as confidential as the
server's memory: whoever has one can generate every client's weights.
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from logging import WARNING
from pathlib import Path
from typing import Any

import torch
from flwr.common import log
from torch import Tensor

from common.errors import UserError
from common.files import link_or_copy, write_tensors

FOLDER = "checkpoints"  # in a run's folder
BEST = "best.pt"
_NAME = re.compile(r"round-[0-9]{6,}\.pt")
_FORMAT = 5
_KEPT = 2  # the newest ones; the best one is kept beside them

State = dict[str, Any]  # of tensors, numbers, text, lists and dicts


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint file holds."""

    path: Path
    server_round: int  # the last complete one
    config: dict[str, Any]  # of the run that wrote it, keys as in config.yaml
    loop: State  # of the round loop: clients, random numbers, what is not yet in the metrics
    method: State  # of the method: what it has learned


def save(run_dir: Path, server_round: int, config: Mapping[str, Any], loop: State, method: State) -> Path:
    """Write `checkpoints/round-NNNNNN.pt`, whole or not at all, and delete all but the newest two and the best.

    Raises OSError when it cannot be written.
    """
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(folder, server_round)
    content = {
        "format": _FORMAT,
        "round": server_round,
        "config": dict(config),
        "loop": loop,
        "method": method,
    }
    write_tensors(path, content)
    for old in _newest_first(folder)[_KEPT:]:
        old.unlink(missing_ok=True)
    return path


def rounds(run_dir: Path) -> list[int]:
    """The rounds of which a run's folder holds a checkpoint, the best one's perhaps not among them."""
    return [_round_in(path) for path in _newest_first(run_dir / FOLDER)]


def best_round(run_dir: Path) -> int:
    """The round of the best checkpoint; 0 where there is none that can be read."""
    try:
        # Mapped into memory: of gigabytes only the pages are read that hold the number.
        content = torch.load(run_dir / FOLDER / BEST, map_location="cpu", weights_only=True, mmap=True)
        return int(content["round"])
    except Exception:  # as in `_read`
        return 0


def copied(state: Any) -> Any:
    """A state of its own, in the server's memory: what is done to the tensors afterwards does not change it."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [copied(value) for value in state]
    return state


def mark_best(run_dir: Path, server_round: int) -> None:
    """Keep this round's checkpoint, if there is one, as `checkpoints/best.pt`. Raises OSError."""
    path = path_of(run_dir / FOLDER, server_round)
    if path.exists():
        link_or_copy(path, run_dir / FOLDER / BEST)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint file, or the newest sound one of a run's folder.

    A damaged one is passed over with a warning that names it. Raises UserError when none is left.
    """
    if path.is_dir():
        found = _newest_first(path / FOLDER)
        if not found:
            raise UserError(f"{path} has no checkpoints: name the folder of a run that wrote some (checkpoint-every).")
        for candidate in found[:-1]:
            try:
                return _read(candidate)
            except UserError as error:
                log(WARNING, "%s The one before it is used.", error)
        return _read(found[-1])
    return _read(path)


def foreign_type(state: object, name: str = "it") -> str:
    """What in a state no checkpoint can give back, in words; empty when there is nothing of the kind."""
    if isinstance(state, dict):
        found = (foreign_type(value, f"{name}[{key!r}]") for key, value in state.items())
        return next(filter(None, found), "")
    if isinstance(state, list | tuple):
        return next(filter(None, (foreign_type(value, f"{name}[{place}]") for place, value in enumerate(state))), "")
    plain = state is None or isinstance(state, Tensor) or type(state) in (bool, int, float, str)
    return "" if plain else f"{name} is of type {type(state).__name__}"


def exists(run_dir: Path) -> bool:
    """Whether a run's folder holds any checkpoint."""
    return bool(_newest_first(run_dir / FOLDER))


def _read(path: Path) -> Checkpoint:
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}; resume takes a run's folder or a file in its {FOLDER} folder.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # compares check sums, which PyTorch's reader does not always do
        content = {} if damaged else torch.load(path, map_location="cpu", weights_only=True)
        if not damaged and content["format"] == _FORMAT:
            return Checkpoint(path, content["round"], content["config"], content["loop"], content["method"])
    except Exception as error:  # damage is answered with whatever the parts of the readers raise
        raise UserError(f"The checkpoint {path} is damaged or is none.") from error
    if damaged:
        raise UserError(f"The checkpoint {path} is damaged: {damaged} was altered.")
    raise UserError(f"The checkpoint {path} has format {content['format']!r}, but this release reads {_FORMAT}.")


def _round_in(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


def path_of(folder: Path, server_round: int) -> Path:
    """Where a round's checkpoint lies in the folder of a run's checkpoints."""
    return folder / f"round-{server_round:06}.pt"


def _newest_first(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("round-*.pt") if _NAME.fullmatch(path.name))
    return sorted(found, key=_round_in, reverse=True)
