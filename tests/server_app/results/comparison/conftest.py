"""A comparison of two methods, two settings and three seeds, not all of which went well."""

import pytest
from small_comparisons import write_plan, write_run

from server_app.results.comparison import read_comparison


@pytest.fixture
def folder(tmp_path):
    """In setting same all six runs have finished. In mixed one is missing, one goes on, one has failed."""
    folder = tmp_path / "small"
    settings, methods = ("same", "mixed"), ("fedavg", "alone")
    write_plan(
        folder,
        [
            (f"{method}-{setting}-{seed}", method, setting, seed)
            for seed in range(3)
            for setting in settings
            for method in methods
        ],
        failures={"fedavg-mixed-2": "the disk <is> full"},
        **{"target-accuracy": 0.55},
    )
    for seed, rounds in enumerate(
        (
            [(0.4, 0.2), (0.7, 0.5), (0.5, 0.5)],  # means 0.3, 0.6, 0.5
            [(0.2, 0.4), (0.6, 0.8), (0.8, 0.8)],  # 0.3, 0.7, 0.8
            [(0.3, 0.3), (0.5, 0.5), (0.8, 0.4)],  # 0.3, 0.5, 0.6
        )
    ):
        write_run(folder / f"fedavg-same-{seed}", rounds, seed=seed)
    for seed, last in enumerate([(0.4, 0.6), (0.5, 0.5), (0.9, 0.3)]):
        rounds = [(0.1, 0.1), None, last]
        write_run(folder / f"alone-same-{seed}", rounds, method="local", seed=seed, traffic=0)
    write_run(folder / "fedavg-mixed-0", [(0.5, 0.3), (0.6, 0.4), (0.7, 0.5)])
    write_run(folder / "fedavg-mixed-1", [(0.9, 0.9)], seed=1, finished=False, config={"num-rounds": 3})
    write_run(folder / "fedavg-mixed-2", [(0.8, 0.8)] * 2, seed=2, finished=False, config={"num-rounds": 3})
    write_run(folder / "alone-mixed-0", [(0.2, 0.2), (0.3, 0.3), (0.4, 0.6)], method="local", traffic=0)
    write_run(folder / "alone-mixed-2", [(0.2, 0.2), (0.3, 0.3), (0.5, 0.7)], method="local", seed=2, traffic=0)
    return folder


@pytest.fixture
def comparison(folder):
    return read_comparison(folder)


@pytest.fixture
def row_of(comparison):
    """Returns the row of a method in a setting."""

    def row(method, setting):
        (found,) = (row for row in comparison.rows if (row["method"], row["setting"]) == (method, setting))
        return found

    return row
