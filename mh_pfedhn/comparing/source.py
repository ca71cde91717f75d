"""What a comparison says, taken apart: for all runs, of each method, of each setting; not yet checked as settings."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.comparison import checked_target
from common.config import RUN_OPTIONS
from common.config.profiles import (
    COMPARISON_ONLY,
    Layer,
    bases_of,
    canonical,
    comparisons,
    is_profile_name,
    is_record,
    is_yaml_file,
    profile_layers,
    read_yaml,
    settings_of,
)
from common.errors import UserError
from common.methods import built_in
from common.text import nearest, shown, spelled


@dataclass(frozen=True)
class Part:
    """Settings of all runs, of a method or of a setting, and the layers of the profiles that they build on."""

    label: str
    values: Mapping[Any, Any]
    origin: str  # for sentences to the user
    base: Sequence[Layer] = ()
    base_name: str = ""  # of those profiles, joined by '+'


@dataclass(frozen=True)
class Source:
    """A comparison. Without `methods` it is of the one that its settings name, without `seeds` of theirs."""

    name: str
    description: str
    target_accuracy: float | None
    whole: Part
    settings: Mapping[str, Part]  # by label, at least one
    methods: Mapping[str, Part] = field(default_factory=dict)  # by label; each has its `method`
    seeds: Sequence[int] | None = None


def read_source(comparison: str | os.PathLike[str] | Mapping[str, Any]) -> Source:
    """Take a comparison apart: the path of a file, the name of one in conf/, a profile, or what a file would hold.

    Raises UserError.
    """
    if isinstance(comparison, Mapping):
        return _source("comparison", comparison, "the comparison", Path.cwd())
    name = os.fspath(comparison)
    known = comparisons()
    if spelled(name, known) in known:
        path = known[spelled(name, known)]
    elif is_profile_name(name) or not is_yaml_file(name):
        name = canonical(name)
        return _source(name.replace("+", "-"), {"base": name.split("+")}, name, Path.cwd())
    else:
        path = Path(name)
    content = read_yaml(path)
    if is_record(content):  # the config.yaml of a run
        return _source(path.parent.name or path.stem, {"base": path.name}, str(path), path.parent)
    return _source(path.stem, content, str(path), path.parent)


def _source(name: str, content: Mapping[Any, Any], origin: str, folder: Path) -> Source:
    own = {key: value for key, value in content.items() if key not in COMPARISON_ONLY}
    whole = _part(name, own, origin, folder)
    label = whole.base_name or name
    settings = {
        key: _part(key, value, f"setting {key!r} of {origin}", folder)
        for key, value in _mapping(content, "settings", origin).items()
    }
    return Source(
        name,
        _text(content, "description", origin),
        checked_target(content.get("target-accuracy"), origin),
        whole,
        settings or {label: Part(label, {}, origin)},
        _methods(content, origin, folder),
        _seeds(content, origin),
    )


def _part(label: str, content: Mapping[Any, Any], origin: str, folder: Path) -> Part:
    bases = bases_of(content, origin, folder)
    layers = [layer for base in bases for layer in profile_layers(base)]
    names = "+".join(part.removesuffix(".yaml").removesuffix(".yml") for part in map(_stem, bases))
    return Part(label, settings_of(content), origin, layers, names)


def _stem(base: str) -> str:
    return Path(base).name if base.endswith((".yaml", ".yml")) else canonical(base)


def _methods(content: Mapping[Any, Any], origin: str, folder: Path) -> dict[str, Part]:
    given = content.get("methods", {})
    if isinstance(given, list):
        if not all(isinstance(each, str) for each in given):
            raise UserError(
                f"methods holds {shown(next(each for each in given if not isinstance(each, str)))} in {origin}, but "
                "must be a list of names, or a mapping from labels to settings."
            )
        if len(set(given)) < len(given):
            raise UserError(f"methods names one method twice in {origin}: use labels, as in `mine: {{method: NAME}}`.")
        given = {each: {} for each in given}
    settings = _mapping({"methods": given} if "methods" in content else {}, "methods", origin)
    parts = {}
    for label, own in settings.items():
        part = _part(label, own, f"method {label!r} of {origin}", folder)
        if "method" not in part.values:
            name = spelled(label, built_in())
            if name not in built_in() and ":" not in name:
                raise UserError(
                    f"methods has {label!r} in {origin}, which is neither a method nor a label with a `method`"
                    f"{nearest(label, built_in()) or '; methods are ' + ', '.join(built_in()) + '.'}"
                )
            part = Part(label, {"method": name} | dict(part.values), part.origin, part.base, part.base_name)
        checked = RUN_OPTIONS["method"].checked(part.values["method"], part.origin)
        parts[label] = Part(label, dict(part.values) | {"method": checked}, part.origin, part.base, part.base_name)
    return parts


def _mapping(content: Mapping[Any, Any], key: str, origin: str) -> dict[str, dict[Any, Any]]:
    """The mappings under a key by their labels; nothing where there is no such key."""
    if key not in content:
        return {}
    given = content[key]
    if not isinstance(given, Mapping) or not given:
        what = "a list of names, or a mapping" if key == "methods" else "a mapping"
        given = "empty" if given in ([], {}) else shown(given)
        raise UserError(f"{key} is {given} in {origin}, but must be {what} from labels to settings.")
    found = {}
    for label, own in given.items():
        own = {} if own is None else own
        if not isinstance(own, Mapping):
            raise UserError(
                f"{key} has {shown(own)} under {str(label)!r} in {origin}, but must have settings there, such as "
                "{base: cifar100}."
            )
        found[str(label)] = dict(own)
    return found


def _seeds(content: Mapping[Any, Any], origin: str) -> list[int] | None:
    return checked_seeds(content["seeds"], origin) if "seeds" in content else None


def checked_seeds(given: object, origin: str) -> list[int]:
    """A list of seeds. Raises UserError for one that is none."""
    if not isinstance(given, list | tuple) or not given:
        raise UserError(f"seeds is {shown(given)} in {origin}, but must be a list such as [0, 1, 2].")
    seeds = [int(RUN_OPTIONS["seed"].checked(seed, f"seeds of {origin}")) for seed in given]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds is {shown(list(given))} in {origin}, but must name each seed once.")
    return seeds


def _text(content: Mapping[Any, Any], key: str, origin: str) -> str:
    given = content.get(key, "")
    if not isinstance(given, str):
        raise UserError(f"{key} is {shown(given)} in {origin}, but must be text.")
    return " ".join(given.split())
