"""A comparison's numbers as rows of plain values: what `table.csv` holds and pandas reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server_app.results.comparison.compared import FAILED, FINISHED, MISSING, UNFINISHED
from server_app.results.comparison.figures import ACCURACIES, COSTS, VALIDATION, Spread

if TYPE_CHECKING:
    from server_app.results.comparison.comparing import Comparison, Group

# Numbers that a run has, each with its mean over seeds and, under the name with `-std`, their sample deviation.
_FIGURES = (
    *(f"{which}-{key}" for key in ACCURACIES for which in ("last", "best", "chosen")),
    "last-accuracy-worst10",
    f"last-{VALIDATION}",
    *COSTS,
    "rounds",
)


def rows_of(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a setting, method and point of a grid; every row has every column, None where there is no number.

    Columns, in kebab-case: the labels, and `grid-KEY` for each key of a grid; `chosen`, whether the row is in the main
    table (None: nothing to choose on); how many of the planned `seeds` are in each state, and `provisional`, whether
    the numbers are those so far of runs that go on; `learned-nothing`, how many of the runs that count did; summed over
    the runs that have finished, `clients-never-trained`, who were asked for updates of which none was used, and
    `failures`, as in `metrics.jsonl`; the numbers of each run, as means and `-std` over seeds; `to-target-…`, medians
    over seeds, and how many seeds came there; gains over training alone; the smallest and the largest K.
    """
    grid_keys = list(dict.fromkeys(key for run in comparison.runs for key in run.grid))
    return [_row(comparison, group, grid_keys) for group in comparison.groups]


def _row(comparison: Comparison, group: Group, grid_keys: list[str]) -> dict[str, Any]:
    states = [run.state for run in group.runs]
    row: dict[str, Any] = {"setting": group.setting, "method": group.method, "grid": group.point}
    row |= {f"grid-{key}": group.runs[0].grid.get(key) for key in grid_keys}
    row |= {
        "chosen": comparison.is_chosen(group),
        "seeds": len(states),
        "seeds-finished": states.count(FINISHED),
        "seeds-unfinished": states.count(UNFINISHED),
        "seeds-failed": states.count(FAILED),
        "seeds-missing": states.count(MISSING),
        "provisional": group.is_provisional,
        "learned-nothing": len(group.nothing_learned),
        "clients-never-trained": sum(len(each.never_trained) for _, each in group.failing) if group.failing else None,
        "failures": _failures(group),
    }
    for key in _FIGURES:
        row |= _with_deviation(key, group.figures.get(key))
    target = comparison.targets[group.setting]
    came, medians = group.costs_to(target) if target else (0, dict.fromkeys(COSTS))
    row |= {"target-accuracy": target, "to-target-seeds": came}
    row |= {f"to-target-{key}": medians[key] for key in COSTS}
    gain = comparison.gain(group)
    row |= _with_deviation("gain-mean", gain.mean if gain else None)
    row |= _with_deviation("gain-losing", gain.losing if gain else None)
    row |= {
        "gain-worst": gain.worst if gain else None,
        "gain-seeds": len(gain.by_seed) if gain else 0,
        "gain-clients": len(gain.values) if gain else 0,
    }
    sizes = [client.num_params for _, run in group.counted for client in run.clients]
    return row | {"params-min": min(sizes, default=None), "params-max": max(sizes, default=None)}


def _failures(group: Group) -> int | None:
    lines = [line for each in group.finished if each.run for line in each.run.metrics]
    return sum(len(line["failure-list"]) for line in lines) if lines else None


def _with_deviation(key: str, of_seeds: Spread | None) -> dict[str, float | None]:
    return {key: of_seeds.mean if of_seeds else None, f"{key}-std": of_seeds.std if of_seeds else None}
