"""Which client belongs to which node, for good: what a deployment with registered keys keeps beside its database.

A SuperNode that has proved its key has the same node id at every start, so a client key that was claimed through a
node once is nobody else's, across runs and restarts, until an operator unbinds it with `mh-pfedhn site forget`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from common.errors import ProtocolError, UserError
from common.files import write_text
from server_app.client import shortened

# In the environment of a ServerApp: the state folder of its server, where sites have registered keys.
STATE_FOLDER = "MH_PFEDHN_STATE"

NOT_BOUND = "not-bound"  # the reason of a registration whose binding the server cannot read or write
_LOCK_PATIENCE = 5.0  # seconds

_BINDINGS = "bindings.json"  # client key -> node id
_REGISTERED = "registered.json"  # name of a site -> its node id and more, as `mh-pfedhn server` writes it


class Bindings:
    """The bindings in a server's state folder, and the names of its sites.

    Both files are read at every call: while a run goes on, sites are registered and keys are forgotten.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / _BINDINGS
        self._sites = state / _REGISTERED

    def check(self, key: str, node_id: int) -> None:
        """Raise ProtocolError when a client key is bound to another node, or when the bindings cannot be read."""
        with _refusing(self._path):
            self._check(key, node_id, _read(self._path))

    def bind(self, key: str, node_id: int) -> None:
        """Bind a client key to the node that claims it.

        Raises ProtocolError when it is bound to another, or when the binding cannot be written down.
        """
        with _refusing(self._path):
            if _read(self._path).get(key) == node_id:
                return
            with self._locked() as nodes:
                self._check(key, node_id, nodes)
                self._write(nodes | {key: node_id})

    def forget(self, name: str) -> list[str]:
        """Unbind a client key, given whole or shortened, or all keys of a site; return what was unbound, in words.

        Raises UserError when there is none such, or more than one, and for a file that cannot be read or written.
        """
        if not self._path.parent.is_dir():
            raise UserError(f"There is no folder {self._path.parent}: name the state folder of `mh-pfedhn server`.")
        try:
            with self._locked() as nodes:
                keys = self._keys_of(name, nodes)
                self._write({key: node for key, node in nodes.items() if key not in keys})
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error.strerror or error}.") from error
        return [self._words(key, nodes[key]) for key in keys]

    def site_at(self, node_id: int) -> str:
        """The name of the site that speaks through a node; empty when it was registered in another way.

        Also when the names cannot be read: they are for those who read logs, and no run ends for want of them.
        """
        try:
            return self._names().get(node_id, "")
        except UserError:
            return ""

    def name_of(self, node_id: int) -> str:
        """The same, or which node it is."""
        return self.site_at(node_id) or f"node {node_id}"

    def _check(self, key: str, node_id: int, nodes: Mapping[str, int]) -> None:
        if nodes.get(key, node_id) != node_id:
            raise ProtocolError(
                "key-bound",
                f"the client key {next(shortened(key))} belongs to {self.name_of(nodes[key])}; "
                "`mh-pfedhn site forget KEY` on the server unbinds it",
            )

    def _keys_of(self, name: str, nodes: dict[str, int]) -> list[str]:
        begins, sites = name.removesuffix("…"), self._names()
        own = [key for key, node in nodes.items() if name and sites.get(node) == name]
        alike = [name] if name in nodes else [key for key in nodes if begins and key.startswith(begins)]
        found = own or alike
        known = ", ".join(self._words(key, node) for key, node in nodes.items()) or "none"
        if not found:
            raise UserError(f"No client key is bound that {name!r} could mean; bound are: {known}.")
        if len(found) > 1 and not own:
            raise UserError(f"{name!r} could mean {len(found)} client keys, give more of it; bound are: {known}.")
        return found

    def _words(self, key: str, node_id: int) -> str:
        return f"{next(shortened(key))} of {self.name_of(node_id)}"

    def _names(self) -> dict[int, str]:
        try:
            return {int(entry["node-id"]): name for name, entry in _read(self._sites).items()}
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self._sites} does not say which node each site is: restore it.") from error

    @contextmanager
    def _locked(self) -> Iterator[dict[str, int]]:
        """The bindings, while no other run or command reads or writes them."""
        with FileLock(self._path.with_suffix(".lock"), timeout=_LOCK_PATIENCE):
            yield _read(self._path)

    def _write(self, nodes: dict[str, int]) -> None:
        write_text(self._path, json.dumps(nodes, indent=1) + "\n", mode=0o600)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """A file that cannot be read or written, or is locked for long, costs a node its registration, not all the run."""
    try:
        yield
    except UserError as error:
        raise ProtocolError(NOT_BOUND, str(error)) from error
    except OSError as error:
        raise ProtocolError(NOT_BOUND, f"{path} cannot be written: {error.strerror or error}") from error


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it, or who owns which key is lost.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: restore it.")
    return content
