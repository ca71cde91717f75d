"""The YAML file in which an operator names a site's model and data: reading it, with every mistake in it told apart.

Its keys are those of `site_keys.py`; a complete example is in `examples/site`.
"""

import contextlib
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from client_app.privacy import Privacy
from client_app.site.site_keys import EXAMPLES, KEYS, label
from common.device import resolve_device
from common.errors import UserError
from common.factories import Factory, describe
from common.files import WriteError, make_folder, write_text
from common.inputs import ImageShape
from common.text import nearest, shown

_REQUEST_LIMIT = 4 * 3600.0  # seconds


@dataclass(frozen=True)
class SiteFile:
    """What the YAML says, as far as it is needed once model and data are there."""

    path: Path
    model: Factory
    keep_local: tuple[str, ...]
    freeze: tuple[str, ...]
    group: str
    deploy_global: bool
    input_shape: ImageShape
    num_classes: int
    state_dir: Path
    seed: int | None
    device: torch.device
    client_key: str  # empty: the one in state-dir
    privacy: Privacy | None  # of what is sent
    methods: tuple[str, ...]  # module:Class of the methods from outside this project that the site takes part in
    request_limit: float  # seconds that a trainer may work on a request

    def run_folder(self, run_name: str) -> Path:
        """Where this site keeps its files of a run."""
        return self.state_dir / "runs" / run_name

    def stored_client_key(self) -> str:
        """The key that the server knows this site by; empty before the first start. Raises UserError for a bad one."""
        if self.client_key:
            return self.client_key
        path = self._key_path
        try:
            key = path.read_text().strip() if path.exists() else ""
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({describe(error)}): put the client key back.") from error
        if path.exists():
            try:
                label(key)
            except ValueError as error:
                raise UserError(f"{path} holds {key[:80]!r}, but must hold {error}.") from error
        return key

    def claim_client_key(self) -> str:
        """The same; at the first start a random one is made and kept."""
        key = self.stored_client_key()
        if not key:
            key = str(uuid.uuid4())
            make_folder(self.state_dir)
            # For this user alone: whoever reads it could register as this site.
            write_text(self._key_path, f"{key}\n", mode=0o600)
        return key

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold `state-dir`, which is made, against every other trainer, as long as this process lives at most.

        Two would be one client to the server, each with a part of what it keeps. Raises UserError when another trainer
        holds it, WriteError when it cannot be written to.
        """
        make_folder(self.state_dir)
        path = self.state_dir / ".lock"
        lock = FileLock(path, mode=0o600)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"Another trainer uses state-dir {self.state_dir}: stop it, or give this site a state-dir of its own."
            ) from None
        except OSError as error:
            raise WriteError(path, error) from error
        try:
            yield
        finally:
            lock.release()

    @property
    def _key_path(self) -> Path:
        return self.state_dir / "client-key"


def read_site_file(path: Path) -> SiteFile:
    """Read a site's file without building anything. Raises UserError with a sentence a line for every mistake."""
    mistakes = Mistakes(path.absolute())
    values = read_keys(path.absolute(), mistakes)
    if mistakes.sentences:
        raise mistakes.error()
    return site_file_of(path.absolute(), values)


class Mistakes:
    """The sentences about what is wrong in a file, each of which begins with its path."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Note a sentence."""
        self.sentences.append(f"{self._path}: {sentence.replace('?.', '?')}")  # a hint is a question

    def error(self) -> UserError:
        """All that was noted, a sentence a line."""
        return UserError("\n".join(self.sentences))

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note a UserError of the block, and go on after it."""
        try:
            yield
        except UserError as error:
            self.add(str(error))


def read_keys(path: Path, mistakes: Mistakes) -> dict[str, Any]:
    """The values of the keys that are right; the others are mistakes."""
    try:
        content = yaml.load(path.read_text(), _Loader)  # a SafeLoader
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not readable as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold lines of the form key: value, with the keys {', '.join(KEYS)}.")
    # So that the site's own modules, beside the file, can be imported.
    if sys.path[0] != str(path.parent):
        sys.path.insert(0, str(path.parent))
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in KEYS:
            hint = nearest(str(key), list(KEYS)) or f"; known keys: {', '.join(KEYS)}"
            mistakes.add(f"there is no key {key!r}{hint}.")
            continue
        try:
            values[key] = KEYS[key](value)
        except ValueError as error:
            mistakes.add(f"{key} is {shown(value)}, but must be {error}.")
    needed = ["model", "data", "state-dir"]
    if values.get("deploy-global"):
        needed += ["input-shape", "num-classes"]
    for key in needed:
        if key not in content:
            because = " with deploy-global" if key not in needed[:3] else ""
            mistakes.add(f"{key} is missing, but must be given{because}: {EXAMPLES[key]}.")
    for key in ("model", "data", "loss", "correct"):
        if key in values:
            values[key] = Factory(key, *values[key])
    return values


def site_file_of(path: Path, values: Mapping[str, Any]) -> SiteFile:
    """What the values of `read_keys` say, with something in the place of what is missing or wrong, which is noted."""
    state_dir = path.parent / Path(values.get("state-dir", ".")).expanduser()
    privacy = values.get("privacy")
    return SiteFile(
        path=path,
        model=values.get("model", Factory("model", "", {})),
        keep_local=values.get("keep-local", ()),
        freeze=values.get("freeze", ()),
        group=values.get("group", ""),
        deploy_global=values.get("deploy-global", False) and {"input-shape", "num-classes"} <= values.keys(),
        input_shape=values.get("input-shape", (0, 0, 0)),
        num_classes=values.get("num-classes", 0),
        state_dir=state_dir,
        seed=values.get("seed"),
        device=values.get("device", resolve_device("auto")),
        client_key=values.get("client-key", ""),
        privacy=Privacy(**privacy, ledger=state_dir / "privacy.json") if privacy else None,
        methods=values.get("methods", ()),
        request_limit=values.get("request-limit", _REQUEST_LIMIT),
    )


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
