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


class Registrar:
    """Keeps the SuperNodes that a SuperLink has registered equal to the public keys in a folder.

    Flower's list of nodes tells neither key nor name, so the record keeps, for each file name, key and node id. Nodes
    that were registered in another way are not in it, and left alone.
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
        try:
            for name in [name for name in self._record if name not in files]:
                self._unregister(name)
            for name, path in files.items():
                self._consider(name, path)
        except (FlowerRefusedError, OSError) as error:
            say(f"Registrations could not be changed, which is tried again: {error}")

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
