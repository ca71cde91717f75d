"""Which settings the compared runs have in common, and in which they differ, and by what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from server_app.results.comparison.compared import ComparedRun

# What tells runs apart and not methods: the name of a run, and the seed, which the tables are over.
_OWN = ("run-name", "seed")
_NAMED = 6  # runs that stand for a value
ABSENT = "–"


@dataclass(frozen=True)
class Difference:
    """A key whose value is not the same in all runs: each value, and in words which runs have it."""

    key: str
    values: tuple[tuple[str, str], ...]


def common_settings(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """The keys that all runs have with the same value."""
    table = _by_key(runs)
    return {key: values[0] for key, values in table.items() if len(set(values)) == 1 and ABSENT not in values}


def differences(runs: Sequence[ComparedRun]) -> list[Difference]:
    """The other keys, in the order in which they stand in the runs' configurations."""
    there = [run for run in runs if run.run]
    return [Difference(key, _holders(there, values)) for key, values in _by_key(runs).items() if len(set(values)) > 1]


def _by_key(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """The value of each key in each run whose configuration is there; ABSENT where a method has no such key."""
    configs = [run.run.config for run in runs if run.run]
    keys = dict.fromkeys(key for config in configs for key in config if key not in _OWN)
    return {key: [_text(config[key]) if key in config else ABSENT for config in configs] for key in keys}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else "(empty)"


def _holders(runs: Sequence[ComparedRun], values: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Each value with who has it, named by the label on which it hangs if there is such, else by the runs."""
    for labels in (
        [run.method for run in runs],
        [run.setting for run in runs],
        [run.point for run in runs],
        [f"{run.method}, {run.setting}" for run in runs],
    ):
        by_label: dict[str, set[str]] = {}
        for label, value in zip(labels, values, strict=True):
            by_label.setdefault(label, set()).add(value)
        if all(len(each) == 1 for each in by_label.values()):
            return _grouped((label, value) for label, (value,) in by_label.items())
    return _grouped((run.name, value) for run, value in zip(runs, values, strict=True))


def _grouped(pairs: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Values with the names of those that have them, given as (name, value)."""
    names: dict[str, list[str]] = {}
    for name, value in pairs:
        names.setdefault(value, []).append(name)
    return tuple((value, _listed(each)) for value, each in names.items())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return "; ".join(names[:_NAMED]) + more
