"""How runs without a plan are told apart."""

import pytest
from small_comparisons import write_run, write_runs

from common.config import DATASETS, SITES
from common.errors import UserError
from server_app.results.comparison import labelled_runs


@pytest.fixture
def labels_of(tmp_path):
    """Returns a function from settings to the labels (setting, method, seed) of runs that have them."""

    def labels(*configs):
        folders = write_runs(tmp_path, [(0.1,), (0.2,)], configs)
        return [(run.setting, run.method, run.seed) for run in labelled_runs(folders)]

    return labels


def test_methods_and_seeds(labels_of):
    assert labels_of(
        {"method": "fedavg", "hn-lr": 1, "seed": 0, "run-name": "x"},
        {"method": "local", "seed": 0},
        {"seed": 1, "hn-lr": 1},
    ) == [("npz", "fedavg", 0), ("npz", "local", 0), ("npz", "fedavg", 1)]


def test_a_setting_tells_apart_what_the_method_does_not(labels_of):
    assert labels_of(
        {"client-lr": 0.1, "upload": "dense"},
        {"client-lr": 0.2, "upload": "dense"},
        {"method": "local", "client-lr": 0.3},
    ) == [("npz", "fedavg client-lr=0.1", 0), ("npz", "fedavg client-lr=0.2", 0), ("npz", "local", 0)]


def test_what_clients_are_and_hold_is_the_setting(labels_of):
    assert labels_of({"models": "lenet"}, {"models": "lenet,vgg8"}, {"models": "lenet", "method": "local"}) == [
        ("models=lenet", "fedavg", 0),
        ("models=lenet,vgg8", "fedavg", 0),
        ("models=lenet", "local", 0),
    ]


def test_where_the_files_lie_is_no_difference(labels_of):
    assert labels_of({"results-dir": "a", "profile": "x"}, {"results-dir": "b", "profile": "y", "seed": 1}) == [
        ("npz", "fedavg", 0),
        ("npz", "fedavg", 1),
    ]


@pytest.mark.parametrize("dataset", [name for name in DATASETS if name not in ("parquet", "npz", SITES)])
def test_a_folder_of_data_is_a_difference_only_where_the_data_are_the_users_own(labels_of, dataset):
    public = {"dataset": dataset}
    assert labels_of(
        public | {"data-dir": "/x"}, public | {"data-dir": "/y", "seed": 1}, {"data-dir": "/z", "seed": 2}
    ) == [
        (f"dataset={dataset}", "fedavg", 0),
        (f"dataset={dataset}", "fedavg", 1),
        ("dataset=npz data-dir=/z", "fedavg", 2),
    ]


def test_runs_that_are_equal_are_told_apart_by_their_names(labels_of):
    assert labels_of({}, {}, {"method": "local"}) == [
        ("npz", "fedavg run-0", 0),
        ("npz", "fedavg run-1", 0),
        ("npz", "local", 0),
    ]


def test_a_run_is_not_put_beside_itself(tmp_path):
    folder = write_run(tmp_path / "x", [(0.1,)])
    with pytest.raises(UserError, match="is given twice"):
        labelled_runs([folder, tmp_path / "y" / ".." / "x"])


def test_a_folder_that_is_no_run_is_named(tmp_path):
    folder = write_run(tmp_path / "x", [(0.1,)])
    with pytest.raises(UserError, match=r"nothing holds no metrics\.jsonl"):
        labelled_runs([folder, tmp_path / "nothing"])
