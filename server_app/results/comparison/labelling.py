"""Labels for runs that somebody puts beside each other without a plan: by what differs between their settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config import DATASETS, RUN_OPTIONS, SITES
from common.errors import UserError
from server_app.results.comparison.compared import ComparedRun
from server_app.results.reading import Run, read_run

# These hold the same in whichever folder they lie.
_PUBLIC_DATA = {*DATASETS} - {"parquet", "npz", SITES}
# Where a run's files lie and how its settings were put together says nothing about what it is.
_NO_LABEL = ("run-name", "seed", "results-dir", "resume", "profile", "method")


def labelled_runs(run_dirs: Sequence[Path]) -> tuple[ComparedRun, ...]:
    """Runs that can be compared: what differs in the clients and their data is the setting, the rest the method.

    Seeds of what is otherwise equal go together; runs that are equal in the seed as well are told apart by their names.

    Raises
    ------
    UserError
        If a folder is no run's, or one is given twice.
    """
    twice = [path for path, times in Counter(run_dir.resolve() for run_dir in run_dirs).items() if times > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice: a run beside itself shows nothing.")
    runs = [read_run(run_dir) for run_dir in run_dirs]
    configs = [_without_public_folder(run.config) for run in runs]
    of_data = [key for key, option in RUN_OPTIONS.items() if option.rule.fixed == "simulation" or key == "data-dir"]
    settings = _settings(configs, of_data)
    others = [key for key in dict.fromkeys(key for config in configs for key in config) if key not in of_data]
    methods = [str(config.get("method", "unknown method")) for config in configs]
    methods = _told_apart(settings, methods, configs, [key for key in others if key not in _NO_LABEL])
    names = _names(runs)
    return tuple(
        ComparedRun(
            name=name,
            method=method,
            setting=setting or str(run.config.get("dataset") or "runs"),
            seed=int(run.config.get("seed", 0)),
            grid={},
            rounds=run.config.get("num-rounds"),
            run_dir=run.run_dir,
            run=run,
        )
        for run, name, method, setting in zip(
            runs, names, _unique(names, methods, settings, configs), settings, strict=True
        )
    )


def _without_public_folder(config: Mapping[str, Any]) -> dict[str, Any]:
    is_public = config.get("dataset") in _PUBLIC_DATA
    return {key: value for key, value in config.items() if key != "data-dir" or not is_public}


def _told_apart(
    settings: Sequence[str], methods: list[str], configs: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> list[str]:
    """The methods' labels with each key added that tells apart runs which have one label so far, in one setting."""
    for key in keys:
        groups: dict[tuple[str, str], set[str]] = {}
        for setting, method, config in zip(settings, methods, configs, strict=True):
            groups.setdefault((setting, method), set()).add(repr(config.get(key)))
        ambiguous = {method for (_, method), values in groups.items() if len(values) > 1}
        methods = [
            f"{method} {key}={config[key]}" if method in ambiguous and key in config else method
            for method, config in zip(methods, configs, strict=True)
        ]
    return methods


def _settings(configs: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """The values of those keys that are not the same in all runs."""
    differing = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    return [" ".join(f"{key}={config[key]}" for key in differing if key in config) for config in configs]


def _unique(
    names: Sequence[str], methods: Sequence[str], settings: Sequence[str], configs: Sequence[Mapping[str, Any]]
) -> list[str]:
    """The methods' labels, with the run's name where a label would have one seed twice."""
    keys = [
        (setting, method, config.get("seed"))
        for setting, method, config in zip(settings, methods, configs, strict=True)
    ]
    times = Counter(keys)
    repeated = {key[:2] for key in keys if times[key] > 1}
    return [
        f"{method} {name}" if (setting, method) in repeated else method
        for name, method, setting in zip(names, methods, settings, strict=True)
    ]


def _names(runs: Sequence[Run]) -> list[str]:
    """The names of the runs' folders, with the folder above where two are the same."""
    paths = [run.run_dir.resolve() for run in runs]
    times = Counter(path.name for path in paths)
    return [path.name if times[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in paths]
