"""Profiles: YAML files of settings, in conf/ or a user's own, that build on others (`base`) and are joined by '+'."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.methods import built_in
from common.text import nearest, spelled

CONF = Path(__file__).resolve().parents[2] / "conf"
PROFILE_FOLDERS = (CONF / "profiles", CONF / "experiments")
METHODS_FOLDER = CONF / "methods"

# What a profile file may say beside settings.
PROFILE_ONLY = ("base", "description")


@dataclass(frozen=True)
class Layer:
    """Settings of one place, not yet checked. Later layers win over earlier ones."""

    origin: str  # for sentences to the user
    values: Mapping[Any, Any]
    strict: bool = False  # holds nothing but what the run's own method has


def profiles() -> Iterator[tuple[str, str]]:
    """Name and one-line description of every profile in conf/, those of data sets first."""
    for path in _files().values():
        yield path.stem, str(read_yaml(path).get("description", ""))


def names() -> list[str]:
    """The names of all profiles."""
    return list(_files())


def canonical(name: str) -> str:
    """The name of a profile, or of several joined by '+', spelled as in conf/ where it is one of those."""
    known = names()
    return "+".join(spelled(part.strip(), known) for part in name.split("+"))


def profile_layers(name: str) -> list[Layer]:
    """The files of a profile, or of several joined by '+', each after those that it builds on.

    Raises UserError for one that does not exist or cannot be read.
    """
    return [layer for part in name.split("+") for layer in _layers(part.strip(), {})]


def described_methods() -> Iterator[tuple[str, str]]:
    """Name and one-line description of every built-in method, as conf/methods says it."""
    for name in built_in():
        path = METHODS_FOLDER / f"{name}.yaml"
        yield name, str(read_yaml(path).get("description", "")) if path.is_file() else ""


def method_layer(method: str) -> list[Layer]:
    """What conf/methods says of a method, if it says anything: it lies below every profile."""
    path = METHODS_FOLDER / f"{method}.yaml"
    return [Layer(str(path), _settings(read_yaml(path)), strict=True)] if path.is_file() else []


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError when it is none."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text, a date that is none
        raise UserError(f"{path} is not readable as YAML: {_mistake(error)}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold lines of the form key: value.")
    return content


def _mistake(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark and error.problem:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())


def _files() -> dict[str, Path]:
    return {path.stem: path for folder in PROFILE_FOLDERS for path in sorted(folder.glob("*.yaml"))}


def _layers(name: str, below: Mapping[Path, str]) -> list[Layer]:
    """The layers of a profile: a name in conf/ or the path of a YAML file, over those of its `base`.

    `below` holds the files, by the names given for them, that build on this one.
    """
    known = _files()
    own = spelled(name, known)
    path = known.get(own) or Path(name)
    if own not in known and not (name.endswith((".yaml", ".yml")) and _is_file(path)):
        others = f"known profiles: {', '.join(known)}; the path of a .yaml file works too"
        raise UserError(f"There is no profile {name!r}{nearest(name, known)} ({others}).")
    if path.resolve() in below:
        raise UserError(f"Profile {own!r} is its own base: {' -> '.join((*below.values(), own))}.")
    content = read_yaml(path)
    if "profile" in content:
        raise UserError(f"profile is set in {path}, which is one itself; use base to build on another.")
    bases = content.get("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"base is {bases!r} in {path}, but must be the name of a profile or a list of names.")
    layers = []
    for base in bases:
        # A file beside this one, or a name in conf/.
        beside = str(path.parent / base) if base.endswith((".yaml", ".yml")) else base
        layers += _layers(beside, {**below, path.resolve(): own})
    return [*layers, Layer(str(path), _settings(content))]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, a folder that may not be looked into
        return False


def _settings(content: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in content.items() if key not in PROFILE_ONLY}
