"""A trained hypernetwork on disk: trunk, heads, embeddings, and what is known about each client.

The files hold plain tensors, numbers and text, and are read with `weights_only=True`. They are as confidential as the
server's memory: whoever has one can generate every client's weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.files import write_tensors
from server_app.hypernetwork import HyperNetwork

FOLDER = "checkpoints"  # in a run's folder
_FORMAT = 1
_KEPT = 2  # the newest ones


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint file holds."""

    path: Path
    server_round: int
    config: dict[str, Any]  # of the run that wrote it, keys as in config.yaml
    hn: HyperNetwork  # on the CPU


def save(run_dir: Path, server_round: int, config: Mapping[str, Any], hn: HyperNetwork) -> Path:
    """Write `checkpoints/round-NNNNNN.pt`, whole or not at all, and delete all but the newest two.

    Raises OSError when it cannot be written.
    """
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"round-{server_round:06}.pt"
    content = {
        "format": _FORMAT,
        "round": server_round,
        "config": dict(config),
        "settings": hn.settings,
        "members": [[key, *member] for key, member in hn.members.items()],
        "network": {name: tensor.cpu() for name, tensor in hn.state_dict().items()},
    }
    write_tensors(path, content)
    for old in _newest_first(folder)[_KEPT:]:
        old.unlink()
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint file, or the newest of a run's folder. Raises UserError for what is not there or damaged."""
    if path.is_dir():
        found = _newest_first(path / FOLDER)
        if not found:
            raise UserError(f"{path} has no checkpoints: name the folder of a run that wrote some (checkpoint-every).")
        path = found[0]
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}; resume takes a run's folder or a file in its {FOLDER} folder.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content["format"]
        if version == _FORMAT:
            hn = HyperNetwork(**content["settings"])
            for key, num_params, group in content["members"]:
                hn.register(key, num_params, group)
            hn.load_state_dict(content["network"])
            return Checkpoint(path, content["round"], content["config"], hn)
    except Exception as error:  # PyTorch's reader answers damage with whatever its parts raise
        raise UserError(f"The checkpoint {path} is damaged or is none: use another one of that folder.") from error
    raise UserError(f"The checkpoint {path} has format {version!r}, but this release reads format {_FORMAT}.")


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*.pt"), reverse=True)
