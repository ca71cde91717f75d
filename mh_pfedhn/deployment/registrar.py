"""Who may join a server: the SuperNodes that its SuperLink has registered follow the public keys in a folder."""

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from common.files import write_text
from mh_pfedhn.processes import say, tool

_LOOK_EVERY = 3.0  # seconds
_GRACE = 60.0  # seconds for which a key must be missing at every look before its site is unregistered
_REMOVED = ".pub.removed"  # what the operator renames a site's key to who means it


class Registrar:
    """Keeps the SuperNodes that a SuperLink has registered equal to the public keys in a folder.

    Flower's list of nodes tells neither key nor name, so the record keeps, for each file name, key and node id. Nodes
    that were registered in another way are not in it, and left alone.

    Flower never takes a removed key again, so a folder that was emptied by mistake would cost every site its identity.
    A key that is missing is therefore waited for, and where many are, nobody is unregistered.
    """

    def __init__(self, folder: Path, record: Path, superlink: str, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._path = record
        self._superlink = superlink
        self._environment = environment
        self._record: dict[str, dict[str, str]] = {}
        self._refused: dict[str, str] = {}  # by file name, the content that was refused and has been complained about
        self._next_look = 0.0
        self._folder_seen = True
        self._missing_since: dict[str, float] = {}  # by file name, on the monotonic clock
        self._refused_missing: list[str] = []  # the names that were too many at the last look

    def recall(self) -> None:
        """Read the record, less what the SuperLink does not know (any more): its database may be a new one."""
        try:
            self._record = json.loads(self._path.read_text()) if self._path.exists() else {}
            answer = self._flwr("list")
        except (OSError, ValueError, FlowerRefusedError) as error:
            say(f"Registrations could not be read: {error}")
            return
        known = {node["node-id"] for node in answer["nodes"] if node["status"] != "unregistered"}
        for name in [name for name, entry in self._record.items() if entry["node-id"] not in known]:
            del self._record[name]
        say(f"{len(known)} sites are registered, {len(self._record)} of them from {self._folder}.")

    def look(self) -> None:
        """Register keys that have come, unregister keys that have gone, every few seconds."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_EVERY
        # A folder that is not there, such as one that is not mounted, must not unregister everybody.
        if self._folder.is_dir() != self._folder_seen:
            self._folder_seen = not self._folder_seen
            say(f"{self._folder} is {'there' if self._folder_seen else 'missing; registrations stay as they are'}.")
        if not self._folder_seen:
            return
        files = {path.name.removesuffix(".pub"): path for path in sorted(self._folder.glob("*.pub"))}
        meant = {path.name.removesuffix(_REMOVED) for path in self._folder.glob("*" + _REMOVED)}
        try:
            for name in [name for name in self._record if name not in files and name in meant]:
                self._unregister(name)
            self._wait_for([name for name in self._record if name not in files])
            for name, path in files.items():
                self._consider(name, path)
        except (FlowerRefusedError, OSError) as error:
            say(f"Registrations could not be changed, which is tried again: {error}")

    def _wait_for(self, missing: list[str]) -> None:
        """Unregister what has been missing for long, unless so much is that it must be a mistake."""
        many = bool(missing) and (len(missing) == len(self._record) or 2 <= len(missing) >= len(self._record) / 2)
        if many and missing != self._refused_missing:
            say(
                f"{', '.join(name + '.pub' for name in missing)} missing in {self._folder}: {len(missing)} of "
                f"{len(self._record)} registered keys at once, so nobody is unregistered. Put them back; for each site "
                f"that is to go, make a file NAME{_REMOVED} there."
            )
        self._refused_missing = missing if many else []
        now = time.monotonic()
        since = {name: self._missing_since.get(name, now) for name in missing} if not many else {}
        for name in since.keys() - self._missing_since.keys():
            say(f"{name}.pub is missing in {self._folder}: {name} is unregistered in {_GRACE:.0f} s if it stays away.")
        self._missing_since = since
        for name in [name for name in since if now - since[name] >= _GRACE]:
            self._unregister(name)

    def _consider(self, name: str, path: Path) -> None:
        try:
            content = path.read_text()
            load_ssh_public_key(content.encode())
        except (OSError, ValueError):  # also cryptography's UnsupportedAlgorithm
            self._complain(name, "", f"{path} is not a public key in OpenSSH form; it is ignored.")
            return
        key = " ".join(content.split()[:2])
        if self._record.get(name, {}).get("key") == key or self._refused.get(name) == key:
            return
        if name in self._record:
            self._unregister(name)
        try:
            answer = self._flwr("register", str(path), name="--name=" + name)
        except FlowerRefusedError as error:
            if "already in use" not in str(error):
                raise
            self._complain(
                name,
                key,
                f"The key of {name} is in the database already: registered in another way, or removed before; a "
                "removed key cannot come back, make a new one.",
            )
            return
        self._record[name] = {"key": key, "node-id": str(answer["node-id"])}
        self._save()
        say(f"Registered {name} as node {answer['node-id']}.")

    def _unregister(self, name: str) -> None:
        node = self._record[name]["node-id"]
        self._flwr("unregister", node)
        del self._record[name]
        self._save()
        say(f"Unregistered {name}, node {node}.")

    def _complain(self, name: str, content: str, text: str) -> None:
        if self._refused.get(name) != content:
            self._refused[name] = content
            say(text)

    def _save(self) -> None:
        write_text(self._path, json.dumps(self._record, indent=1) + "\n")

    def _flwr(self, command: str, *arguments: str, name: str | None = None) -> dict[str, Any]:
        words = [tool("flwr"), "supernode", command, *arguments, self._superlink, "--format", "json"]
        if name:
            words.append(name)
        try:
            done = subprocess.run(
                words, env=self._environment, capture_output=True, text=True, errors="replace", timeout=60, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise FlowerRefusedError(f"`flwr supernode {command}` did not answer within 60 s.") from error
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            answer = {"success": False, "error-message": (done.stdout + done.stderr).strip()}
        if not answer.get("success"):
            raise FlowerRefusedError(" ".join(str(answer.get("error-message", answer)).split()))
        return answer


class FlowerRefusedError(Exception):
    """What a `flwr` command said when it failed."""
