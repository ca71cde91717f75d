"""What a client keeps between rounds, on its own disk: batch-norm statistics, layers and models kept local.

Flower's `context.state` dies with the SuperNode, so it is not used. Files hold plain tensors and are read with
`weights_only=True`: one a name and round, `kept.000012.pt`, and `history.json` beside them.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from client_app.history import LOST, History
from common.errors import ProtocolError
from common.files import make_folder, write_tensors, write_text
from common.instructions import Instructions
from common.lineage import Point

State = dict[str, Tensor]

PERSONAL_MODEL = "personal-model"  # name under which a finished run leaves its model
_VERSION = re.compile(r".+\.[0-9]{6,}\.pt")  # names of the files of `save`


@dataclass(frozen=True)
class Version:
    """What was kept in a round."""

    round: int  # 0: nothing was
    state: State


class ClientStore:
    """The files of one client, as one exchange sees them: what it kept on the way to where the server is now.

    The server says which lines of history led to its state, and up to which round each counts. What was kept in other
    lines, or later, is never loaded; and what should be there but is not is refused, never replaced by another round's.
    All methods but `export` raise ProtocolError for what is lost or damaged.

    Parameters
    ----------
    folder_of: where the client keeps its files of the run of this name. Only the present run's is written to.
    instructions: of the exchange. Rounds after `seen` do not count: what the server refused, or got too late, is not
        what it goes on from.
    """

    def __init__(self, folder_of: Callable[[str], Path], instructions: Instructions) -> None:
        self._folder_of = folder_of
        self._here = Point(instructions.run_name, instructions.line, instructions.server_round)
        self._lineage = (*_up_to(instructions.seen, instructions.lineage), self._here)
        self._returns_to = {*instructions.returns_to, self._here.round - 1, self._here.round}
        self._seen = instructions.seen
        self._folder = folder_of(self._here.run_name)
        self._histories: dict[str, History] = {}

    def check(self) -> None:
        """Refuse to go on where the server has learned from this client in a round that is not in its history."""
        seen = self._seen
        if seen and not self._history(seen.run_name).has(seen.line, seen.round):
            folder = self._folder_of(seen.run_name)
            raise ProtocolError(
                LOST,
                f"the server has learned from this client in round {seen.round} of run {seen.run_name!r}, of which "
                f"{folder} knows nothing: restore it from a backup made since, or take part as a new client, under "
                "another key",
            )

    def load(self, name: str) -> State:
        """The tensors kept under `name` last before this round, on the CPU; empty when there were none."""
        return self._version(name, self._here.round - 1).state

    def newest(self, name: str) -> Version:
        """What was kept under `name` last, be it in this round."""
        return self._version(name, self._here.round)

    def save(self, name: str, state: State) -> None:
        """Keep these tensors; they count from `commit` on."""
        if not state:
            return
        make_folder(self._folder)
        content = {"line": self._here.line, "round": self._here.round, "state": _on_cpu(state)}
        write_tensors(self._path(name, self._here), content)
        self._history(self._here.run_name).enter(self._here.line, self._here.round, name)

    def commit(self) -> None:
        """Enter this round in the history, with all that was saved in it; then delete what no server comes back to."""
        own = self._history(self._here.run_name)
        own.enter(self._here.line, self._here.round)
        own.write()
        needed = {self._path(name, found) for name in own.names() for found in self._found(name)}
        for path in self._folder.iterdir():
            if _VERSION.fullmatch(path.name) and path not in needed:
                path.unlink(missing_ok=True)

    def export(self, name: str, state: State) -> None:
        """Write these tensors as a file of their own, for others to read: no round, nothing to go back to."""
        make_folder(self._folder)
        write_tensors(self._folder / f"{name}.pt", _on_cpu(state))

    def describe(self, name: str, content: Mapping[str, object]) -> None:
        """Write what is to be known of an exported file beside it, as JSON; what JSON does not have stands as text."""
        write_text(self._folder / f"{name}.json", json.dumps(content, indent=2, default=str) + "\n")

    def _found(self, name: str) -> set[Point]:
        """Where the states lie that this client has at the rounds that the server may come back to."""
        return set(filter(None, (self._last(name, server_round) for server_round in self._returns_to)))

    def _last(self, name: str, until: int) -> Point | None:
        """Where something was last kept under `name`, up to and with a round of the server's lineage."""
        for end in reversed(self._lineage):
            # An earlier run counts its rounds for itself: in mode adapt this one begins anew at 1.
            last = min(end.round, until) if end.run_name == self._here.run_name else end.round
            found = self._history(end.run_name).newest(end.line, name, last)
            if found:
                return Point(end.run_name, end.line, found)
        return None

    def _version(self, name: str, until: int) -> Version:
        point = self._last(name, until)
        if point is None:
            return Version(0, {})
        path = self._path(name, point)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            # A file may also be a later try's at the same round, on another line.
            if (content["line"], content["round"]) == (point.line, point.round):
                return Version(point.round, content["state"])
            why = "holds another try at that round"
        except FileNotFoundError:
            why = "is gone"
        except Exception:  # PyTorch's reader answers damage with whatever its parts raise
            why = "is damaged"
        raise ProtocolError(
            LOST,
            f"this client kept {name!r} in round {point.round} of run {point.run_name!r}, but {path} {why}: restore "
            "it from a backup, or take part as a new client, under another key",
        )

    def _path(self, name: str, point: Point) -> Path:
        return self._folder_of(point.run_name) / f"{name}.{point.round:06}.pt"

    def _history(self, run_name: str) -> History:
        if run_name not in self._histories:
            self._histories[run_name] = history = History(self._folder_of(run_name))
            if run_name == self._here.run_name:  # what the server has refused or never got was not
                taken = self._seen.round if self._seen and self._seen.line == self._here.line else 0
                history.forget(self._here.line, taken, self._here.round)
        return self._histories[run_name]


def _up_to(seen: Point | None, lineage: tuple[Point, ...]) -> tuple[Point, ...]:
    """The closed lines of a lineage, as far as the server has taken what the client brought."""
    for place, end in enumerate(lineage):
        if seen and (seen.run_name, seen.line) == (end.run_name, end.line):
            return (*lineage[:place], seen)
    return lineage if seen else ()


def _on_cpu(state: State) -> State:
    return {key: tensor.detach().cpu() for key, tensor in state.items()}
