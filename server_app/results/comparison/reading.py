"""Reads the folder of a comparison: its plan, the runs that are there, and why those failed that did."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.comparison import FAILURES, FILE, checked_target
from common.config.profiles import read_yaml
from common.errors import UserError
from common.text import shown
from server_app.results.comparison.compared import ComparedRun
from server_app.results.comparison.comparing import Comparison
from server_app.results.reading import Run, read_run

_VALIDATION = "validation"


def is_comparison(folder: Path) -> bool:
    """Whether a folder is a comparison's."""
    return (folder / FILE).exists()


def read_comparison(folder: Path) -> Comparison:
    """Read a comparison from its folder, whether its runs have finished or not.

    A run whose files cannot be read counts as failed, with the reason.

    Raises
    ------
    UserError
        If the folder is no comparison's, or its `comparison.yaml` or `failures.json` is not what such a file is.
    """
    path = folder / FILE
    if not is_comparison(folder):
        raise UserError(f"{folder} holds no {FILE}: give the folder of a comparison, as `mh-pfedhn compare` makes it.")
    plan = read_yaml(path)
    entries = plan.get("runs")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} lists no `runs`: each is a line with name, method, setting, seed, grid and rounds.")
    failures = _read_failures(folder / FAILURES)
    runs = [_compared_run(folder, entry, failures, path) for entry in entries]
    (name, times), *_ = Counter(run.name for run in runs).most_common(1)
    if times > 1:
        raise UserError(f"{path}: {times} runs are named {name!r}; each needs a name of its own.")
    choose_on = plan.get("choose-on", _VALIDATION)
    if choose_on != _VALIDATION:
        raise UserError(f"{path}: choose-on {choose_on!r} is not supported: settings are chosen on {_VALIDATION!r}.")
    return Comparison(
        folder=folder,
        name=str(plan.get("name") or folder.resolve().name),
        description=str(plan.get("description") or ""),
        runs=tuple(runs),
        target_accuracy=checked_target(plan.get("target-accuracy"), str(path)),
    )


def _compared_run(folder: Path, entry: object, failures: Mapping[str, str], path: Path) -> ComparedRun:
    """A line of the plan, with what there is of its run."""
    if not isinstance(entry, dict):
        raise UserError(f"{path}: a line of `runs` is {shown(entry)}; it must name a run, its method and setting.")
    missing = [key for key in ("name", "method", "setting", "seed") if key not in entry]
    if missing:
        raise UserError(f"{path}: a line of `runs` has no `{missing[0]}`: {shown(entry)}.")
    if not isinstance(entry["seed"], int) or not isinstance(entry.get("grid") or {}, dict):
        raise UserError(f"{path}: run {entry['name']!r} needs a whole number as seed, and grid as keys with values.")
    name = str(entry["name"])
    run, failure = _run_if_there(folder / name)
    return ComparedRun(
        name=name,
        method=str(entry["method"]),
        setting=str(entry["setting"]),
        seed=entry["seed"],
        grid=dict(entry.get("grid") or {}),
        rounds=entry.get("rounds"),
        run_dir=folder / name,
        run=run,
        failure=failures.get(name) or failure,
    )


def _run_if_there(run_dir: Path) -> tuple[Run | None, str | None]:
    """The run in a folder, or None and, if something stands there that is no run, why that is so."""
    metrics = run_dir / "metrics.jsonl"
    if not metrics.exists() or not metrics.stat().st_size:
        return None, None
    try:
        return read_run(run_dir), None
    except UserError as error:
        return None, str(error)


def _read_failures(path: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): repair or delete it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold an object: the names of runs, each with the sentence why it failed.")
    return {str(name): str(reason) for name, reason in content.items()}
