"""What clients gain over training alone: the same client, seed and setting on both sides."""

import pytest
from small_comparisons import write_clients, write_plan, write_run

from server_app.results.comparison import read_comparison
from server_app.results.comparison.notes import notes
from server_app.results.comparison.sheets import accuracy_sheet


def gain_of(comparison, method, setting):
    (group,) = (each for each in comparison.groups if (each.method, each.setting) == (method, setting))
    return comparison.gain(group)


def test_gains_are_of_the_same_client_and_seed(comparison, row_of):
    gain = gain_of(comparison, "fedavg", "same")
    assert gain.by_seed == {0: {"a": 0.1, "b": -0.1}, 1: {"a": 0.3, "b": 0.3}, 2: {"a": -0.1, "b": 0.1}}
    row = row_of("fedavg", "same")
    assert row["gain-mean"] == pytest.approx(0.1)  # of 0, 0.3 and 0
    assert row["gain-mean-std"] == pytest.approx((0.03) ** 0.5)
    assert row["gain-losing"] == pytest.approx(1 / 3)  # of a half, none and a half
    assert (row["gain-worst"], row["gain-clients"]) == (-0.1, 6)


def test_seeds_without_both_runs_have_no_gains(comparison):
    # Of fedavg only seed 0 has finished; of the runs alone seed 0 and 2.
    assert gain_of(comparison, "fedavg", "mixed").by_seed == {0: {"a": 0.3, "b": -0.1}}


def test_it_is_said_where_gains_are_over_fewer_seeds_than_the_rest(folder):
    (folder / "alone-same-1" / "summary.json").unlink()
    sheet = accuracy_sheet(read_comparison(folder), "same")
    assert [
        cell.text
        for head, cell in zip(sheet.heads, sheet.rows[0], strict=True)
        if head in ("gain", "losing", "worst gain")
    ] == [
        "+0.000 ± 0.000 (2 of 3)",
        "50 % ± 0 %",
        "-0.100",
    ]


def test_those_who_train_alone_have_no_gain_over_themselves(comparison, row_of):
    assert gain_of(comparison, "alone", "same") is None
    assert row_of("alone", "same")["gain-mean"] is None


def test_equal_accuracies_are_no_loss(tmp_path):
    folder = write_plan(tmp_path / "c", [("x", "fedavg", "same", 0), ("y", "local", "same", 0)])
    write_run(folder / "x", [(0.1, 0.2), None, (0.3, 0.6)])
    write_run(folder / "y", [(0.1, 0.2), None, (0.3, 0.6)], method="local")
    assert read_comparison(folder).rows[0]["gain-losing"] == 0


def test_clients_that_only_one_run_has_tested_are_left_out(folder):
    write_clients(folder / "fedavg-same-0", {"a": 0.5, "b": None, "c": 0.9})
    assert gain_of(read_comparison(folder), "fedavg", "same").by_seed[0] == {"a": 0.1}


def test_without_a_run_of_method_local_it_is_said_that_there_are_no_gains(folder):
    for seed in range(3):
        (folder / f"alone-same-{seed}" / "summary.json").unlink()
    comparison = read_comparison(folder)
    assert gain_of(comparison, "fedavg", "same") is None
    assert gain_of(comparison, "fedavg", "mixed") is not None
    said = [note for note in notes(comparison) if "cannot be told" in note]
    assert said == ["In same there is no finished run of method local, so gains over training alone cannot be told."]


def test_the_method_counts_and_not_its_label(folder):
    plan = folder / "comparison.yaml"
    plan.write_text(plan.read_text().replace("method: fedavg", "method: local"))
    comparison = read_comparison(folder)
    assert comparison.alone("same").method == "alone"
