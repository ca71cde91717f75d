"""Profiles: YAML files of settings, in conf/ or a user's own, that build on others (`base`) and are joined by '+'.

The config.yaml of a run is one too, and repeats it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.methods import built_in
from common.text import nearest, shown, spelled

CONF = Path(__file__).resolve().parents[2] / "conf"
PROFILE_FOLDERS = (CONF / "profiles", CONF / "experiments")
METHODS_FOLDER = CONF / "methods"
_SUFFIXES = (".yaml", ".yml")

# What a profile file may say beside settings.
PROFILE_ONLY = ("base", "description")

# What a comparison says beside that; a file with any of these keys is one, and no profile.
COMPARISON_ONLY = ("methods", "settings", "seeds", "target-accuracy")
_IS_COMPARISON = re.compile(rf"^(?:{'|'.join(COMPARISON_ONLY)}):", re.MULTILINE)

# A file with all of these is what a run has written down: nobody sets so much of what is made up anyway.
_RECORD = {"profile", "method", "mode", "resume", "run-name"}


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


def comparisons() -> dict[str, Path]:
    """The files of all comparisons in conf/, by name."""
    return {path.stem: path for path in _all_files() if _IS_COMPARISON.search(path.read_text())}


def described_comparisons() -> Iterator[tuple[str, str]]:
    """Name and one-line description of every comparison in conf/."""
    for name, path in comparisons().items():
        yield name, str(read_yaml(path).get("description", ""))


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


def is_profile_name(name: str) -> bool:
    """Whether this names a profile in conf/, or several joined by '+', and not a file."""
    return "+" in name or spelled(name, _files()) in _files()


def is_comparison(content: Mapping[Any, Any]) -> bool:
    """Whether this is what a file says that compares runs."""
    return any(key in content for key in COMPARISON_ONLY)


def recorded(name: str) -> str:
    """The same with the config.yaml of a run, where it is to be repeated, replaced by the profile of that run."""
    parts = []
    for part in map(str.strip, name.split("+")):
        content = read_yaml(Path(part)) if is_yaml_file(part) else {}
        parts.append(str(content["profile"]) if is_record(content) else part)
    return "+".join(parts)


def described_methods() -> Iterator[tuple[str, str]]:
    """Name and one-line description of every built-in method, as conf/methods says it."""
    for name in built_in():
        path = METHODS_FOLDER / f"{name}.yaml"
        yield name, str(read_yaml(path).get("description", "")) if path.is_file() else ""


def method_layer(method: str) -> list[Layer]:
    """What conf/methods says of a method, if it says anything: it lies below every profile."""
    path = METHODS_FOLDER / f"{method}.yaml"
    return [Layer(str(path), settings_of(read_yaml(path)), strict=True)] if path.is_file() else []


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
    compared = comparisons()
    return {path.stem: path for path in _all_files() if path.stem not in compared}


def _all_files() -> list[Path]:
    return [path for folder in PROFILE_FOLDERS for path in sorted(folder.glob("*.yaml"))]


def _layers(name: str, below: Mapping[Path, str]) -> list[Layer]:
    """The layers of a profile: a name in conf/ or the path of a YAML file, over those of its `base`.

    `below` holds the files, by the names given for them, that build on this one.
    """
    known = _files()
    own = spelled(name, known)
    path = known.get(own) or Path(name)
    if own not in known and not is_yaml_file(name):
        raise _no_profile(name, known)
    if path.resolve() in below:
        raise UserError(f"Profile {own!r} is its own base: {' -> '.join((*below.values(), own))}.")
    content = read_yaml(path)
    if is_record(content):
        return [Layer(str(path), _to_repeat(content))]
    if is_comparison(content):
        raise _no_profile(name, known)
    if "profile" in content:
        raise UserError(f"profile is set in {path}, which is one itself; use base to build on another.")
    layers = []
    for base in bases_of(content, str(path), path.parent):
        layers += _layers(base, {**below, path.resolve(): own})
    return [*layers, Layer(str(path), settings_of(content))]


def bases_of(content: Mapping[Any, Any], origin: str, folder: Path) -> list[str]:
    """What a file in this folder builds on: names in conf/, or paths of files beside it. Raises UserError."""
    bases = content.get("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"base is {bases!r} in {origin}, but must be the name of a profile or a list of names.")
    return [str(folder / base) if base.endswith(_SUFFIXES) else base for base in bases]


def _no_profile(name: str, known: Iterable[str]) -> UserError:
    """What is wrong with a name that is neither a profile's nor that of a profile's file which is there."""
    if spelled(name, comparisons()) in comparisons() or is_yaml_file(name):
        return UserError(f"{name} is a comparison of several runs: start it with `mh-pfedhn compare {name}`.")
    if not name.endswith(_SUFFIXES) and "/" not in name:
        others = f"known profiles: {', '.join(known)}; the path of a .yaml file works too"
        return UserError(f"There is no profile {shown(name)}{nearest(name, [*known, *comparisons()])} ({others}).")
    wrong, path = f"profile {shown(name)} names a file, but", Path(name)
    if _holds(path.is_dir):
        of_run = "; a run is repeated by the config.yaml in its folder" if (path / "config.yaml").exists() else ""
        return UserError(f"{wrong} is a folder{of_run}.")
    if _holds(path.is_file):
        return UserError(f"{wrong} its name must end in {' or '.join(_SUFFIXES)}.")
    return UserError(f"{wrong} there is no such file{'' if path.is_absolute() else f' in {Path.cwd()}'}.")


def is_yaml_file(name: str) -> bool:
    """Whether this is the path of a YAML file that is there."""
    return name.endswith(_SUFFIXES) and _holds(Path(name).is_file)


def _holds(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # a name that is too long, a folder that may not be looked into
        return False


def is_record(content: Mapping[Any, Any]) -> bool:
    """Whether this is the config.yaml of a run."""
    return content.keys() >= _RECORD


def _to_repeat(record: Mapping[Any, Any]) -> dict[Any, Any]:
    """What a run has written down, less what another one with the same settings has of its own.

    A run in mode adapt started from `resume`, and is repeated from there; one in mode train only went on from there.
    """
    left_out = {"run-name"} if record["mode"] == "adapt" else {"run-name", "resume"}
    return {key: value for key, value in record.items() if key not in left_out}


def settings_of(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """What a file says less what is no setting."""
    return {key: value for key, value in content.items() if key not in PROFILE_ONLY}
