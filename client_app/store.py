"""What a client keeps between rounds, on its own disk: batch-norm statistics, layers and models kept local.

Flower's `context.state` dies with the SuperNode, so it is not used. Files hold plain tensors and are read with
`weights_only=True`.
"""

from pathlib import Path

import torch
from torch import Tensor

from common.errors import UserError
from common.files import write_tensors

State = dict[str, Tensor]


class ClientStore:
    """The files of one client in one run, under `folder`, which is made when something is kept.

    What is not there yet is read from `previous`: the client's folder in the run that this one goes on from.
    """

    def __init__(self, folder: Path, previous: Path | None = None) -> None:
        self._folder = folder
        self._previous = previous

    def load(self, name: str) -> State:
        """The tensors kept under `name`, on the CPU; empty when there are none. Raises UserError for a damaged file."""
        path = self._path(name)
        if self._previous and not path.exists():
            path = self._previous / path.name
        if not path.exists():
            return {}
        try:
            state: State = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # PyTorch's reader answers damage with whatever its parts raise
            raise UserError(f"The client's state {path} is damaged: restore it from a backup or delete it.") from error
        return state

    def save(self, name: str, state: State) -> None:
        """Keep these tensors; a crash in the middle leaves what was there before."""
        if not state:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self._path(name), {key: tensor.detach().cpu() for key, tensor in state.items()})

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.pt"
