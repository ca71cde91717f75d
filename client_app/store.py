"""What a client keeps between rounds, on its own disk: batch-norm statistics, layers and models kept local.

Flower's `context.state` dies with the SuperNode, so it is not used. Files hold plain tensors and are read with
`weights_only=True`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.errors import UserError
from common.files import make_folder, write_tensors

State = dict[str, Tensor]

PERSONAL_MODEL = "personal-model"  # name under which a finished run leaves its model


@dataclass(frozen=True)
class Version:
    """What was kept in a round."""

    round: int  # 0: nothing was
    state: State


class ClientStore:
    """The files of one client in one run, under `folder`, which is made when something is kept.

    Beside the newest state of a name, the one before it and those at the server's last two checkpoints are kept: a
    server that is resumed goes back to its last complete round, to its last checkpoint, or to the one before where that
    is damaged, and the client goes back with it.

    Parameters
    ----------
    folder: of this client in this run.
    server_round: what is loaded is of an earlier round, what is saved is of this one.
    checkpoint_round: round of the server's last checkpoint; 0: none.
    previous: the client's folder in the run that this one goes on from, for what is not in `folder`.
    """

    def __init__(
        self, folder: Path, server_round: int, checkpoint_round: int = 0, previous: Path | None = None
    ) -> None:
        self._folder = folder
        self._round = server_round
        self._checkpoint_round = checkpoint_round
        self._previous = previous

    def load(self, name: str) -> State:
        """The tensors kept under `name` before this round, on the CPU; empty when there are none.

        Raises UserError for a damaged file.
        """
        earlier = [version for version in map(_read, self._versions(name)) if 0 < version.round < self._round]
        if earlier:
            return max(earlier, key=lambda version: version.round).state
        return _read(self._previous / f"{name}.pt").state if self._previous else {}

    def newest(self, name: str) -> Version:
        """What was kept under `name` last, be it in this round. Raises UserError for a damaged file."""
        return _read(self._path(name))

    def save(self, name: str, state: State) -> None:
        """Keep these tensors; a crash in the middle leaves what was there before."""
        if not state:
            return
        make_folder(self._folder)
        self._make_room(name)
        write_tensors(self._path(name), {"round": self._round, "state": _on_cpu(state)})

    def _make_room(self, name: str) -> None:
        """Move what must outlive the newest state out of its way."""
        newest, before, last, one_before = self._versions(name)
        for path in (before, last, one_before):
            # The server has gone back to before it.
            if _read(path).round > min(self._round - 1, self._round if path == before else self._checkpoint_round):
                path.unlink()
        at_checkpoints = max(_read(last).round, _read(one_before).round)
        for path in (newest, before):
            if at_checkpoints < _read(path).round <= min(self._checkpoint_round, self._round - 1):
                if last.exists():
                    os.replace(last, one_before)
                os.replace(path, last)
                break
        if 0 < _read(newest).round < self._round:
            os.replace(newest, before)

    def export(self, name: str, state: State) -> None:
        """Write these tensors as a file of their own, for others to read: no round, nothing to go back to."""
        make_folder(self._folder)
        write_tensors(self._path(name), _on_cpu(state))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.pt"

    def _versions(self, name: str) -> tuple[Path, Path, Path, Path]:
        """Files of the newest state, of the one before it, and of those at the last checkpoint and the one before."""
        newest, before, last, one_before = (
            self._folder / f"{name}{suffix}.pt" for suffix in ("", "-before", "-checkpoint-1", "-checkpoint-2")
        )
        return newest, before, last, one_before


def _on_cpu(state: State) -> State:
    return {key: tensor.detach().cpu() for key, tensor in state.items()}


def _read(path: Path) -> Version:
    if not path.exists():
        return Version(0, {})
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return Version(content["round"], content["state"])
    except Exception as error:  # PyTorch's reader answers damage with whatever its parts raise
        raise UserError(f"The client's state {path} is damaged: restore it from a backup or delete it.") from error
