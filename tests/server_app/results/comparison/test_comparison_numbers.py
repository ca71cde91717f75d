"""The numbers of a comparison against ones that were worked out by hand."""

import math

import pytest
from small_comparisons import validated, write_plan, write_run

from server_app.results import read_run
from server_app.results.comparison import read_comparison
from server_app.results.comparison.figures import (
    costs_to,
    figures_of,
    guessing_accuracy,
    learned_nothing,
    median_cost,
    spread,
)
from server_app.results.comparison.sheets import accuracy_sheet


def test_means_and_sample_deviations_over_seeds(row_of):
    row = row_of("fedavg", "same")
    assert row["last-accuracy-mean"] == pytest.approx((0.5 + 0.8 + 0.6) / 3)
    # The squares of the distances from the mean, 1.9 / 3, over 2.
    assert row["last-accuracy-mean-std"] == pytest.approx(math.sqrt((0.4**2 + 0.5**2 + 0.1**2) / 9 / 2))
    assert row["best-accuracy-mean"] == pytest.approx((0.6 + 0.8 + 0.6) / 3)  # of rounds 2, 3 and 3
    assert row["last-accuracy"] == pytest.approx((0.5 + 0.8 + 0.5) / 3)  # of 40 samples, 10 of them a's
    assert row["last-accuracy-std"] == pytest.approx(math.sqrt((0.1**2 + 0.2**2 + 0.1**2) / 2))
    assert row["best-accuracy"] == pytest.approx((0.55 + 0.8 + 0.5) / 3)
    assert row["last-accuracy-worst10"] == pytest.approx((0.5 + 0.8 + 0.4) / 3)
    assert (row["bytes-down"], row["bytes-up"], row["bytes"]) == (300, 120, 420)
    assert (row["seconds"], row["training-seconds"], row["rounds"]) == (7.5, 6.0, 3)
    assert (row["params-min"], row["params-max"]) == (1000, 1001)
    assert (row["seeds"], row["seeds-finished"], row["provisional"]) == (3, 3, False)


def test_a_round_that_was_not_tested_is_neither_last_nor_best(row_of):
    row = row_of("alone", "same")
    assert row["last-accuracy-mean"] == pytest.approx((0.5 + 0.5 + 0.6) / 3)
    assert row["best-accuracy-mean"] == row["last-accuracy-mean"]


def test_numbers_are_over_the_runs_that_have_finished(row_of):
    row = row_of("fedavg", "mixed")
    assert [row[f"seeds-{state}"] for state in ("finished", "unfinished", "failed", "missing")] == [1, 1, 1, 0]
    assert row["last-accuracy-mean"] == pytest.approx(0.6)
    assert row["last-accuracy-mean-std"] is None
    row = row_of("alone", "mixed")
    assert [row[f"seeds-{state}"] for state in ("finished", "unfinished", "failed", "missing")] == [2, 0, 0, 1]
    assert row["last-accuracy-mean"] == pytest.approx((0.5 + 0.6) / 2)


def test_while_no_seed_has_finished_the_numbers_are_those_so_far(folder, row_of):
    (folder / "fedavg-mixed-0" / "summary.json").unlink()
    row = next(row for row in read_comparison(folder).rows if (row["method"], row["setting"]) == ("fedavg", "mixed"))
    assert row["provisional"]
    assert row["last-accuracy-mean"] == pytest.approx((0.6 + 0.9) / 2)  # and not the one that failed


def test_a_method_whose_runs_have_all_failed_has_no_numbers(tmp_path):
    folder = write_plan(tmp_path / "c", [("x", "fedavg", "same", 0)], failures={"x": "no room"})
    write_run(folder / "x", [(0.5,)], finished=False)
    (row,) = read_comparison(folder).rows
    assert (row["seeds-failed"], row["last-accuracy-mean"], row["provisional"]) == (1, None, False)


def test_costs_to_the_target_are_medians(row_of):
    row = row_of("fedavg", "same")  # in rounds 2, 2 and 3
    assert (row["target-accuracy"], row["to-target-seeds"]) == (0.55, 3)
    assert (row["to-target-bytes-down"], row["to-target-bytes-up"], row["to-target-bytes"]) == (200, 80, 280)
    assert (row["to-target-seconds"], row["to-target-training-seconds"]) == (5.5, 4.0)


def test_seconds_to_the_target_end_with_the_round_and_not_with_the_one_in_which_its_line_is_written(tmp_path):
    run = read_run(write_run(tmp_path / "x", [(0.3,), (0.5,), (0.6,), (0.7,)]))
    assert [line["wall-seconds"] for line in run.metrics] == [5.5, 7.5, 9.5, 9.5]
    costs = [costs_to(run, target) for target in (0.3, 0.5, 0.6, 0.7)]
    assert [each["seconds"] for each in costs] == [3.5, 5.5, 7.5, 9.5]
    assert [each["training-seconds"] for each in costs] == [2.0, 4.0, 6.0, 8.0]


def test_a_run_that_goes_on_has_the_bytes_and_seconds_of_the_same_rounds(tmp_path):
    figures = figures_of(read_run(write_run(tmp_path / "x", [(0.3,), (0.5,)], finished=False)))
    assert (figures["rounds"], figures["bytes"], figures["seconds"], figures["training-seconds"]) == (2, 280, 5.5, 4.0)


def test_the_start_of_a_resumed_process_is_in_the_round_that_it_played_first(tmp_path):
    # Round 2 was complete when the process died; the next one took 1 s to start, played round 3, and wrote line 2.
    seconds = {"generate": 0.0, "exchange": 2.0, "update": 0.0}
    resumed = {"seconds": seconds | {"total": 3.0, "start": 1.0}, "wall-seconds": 10.5}
    more = [{}, {"wall-seconds": 8.5}, resumed, {"wall-seconds": 10.5}]
    run = read_run(write_run(tmp_path / "x", [(0.3,), (0.5,), (0.6,), (0.7,)], more=more))
    costs = [costs_to(run, target) for target in (0.5, 0.6, 0.7)]
    assert [each["seconds"] for each in costs] == [5.5, 8.5, 10.5]
    assert [each["training-seconds"] for each in costs] == [4.0, 6.0, 8.0]


def test_a_seed_that_never_comes_to_the_target_counts_as_infinite(row_of):
    row = row_of("alone", "same")  # with the last seed alone
    assert (row["to-target-seeds"], row["to-target-bytes"], row["to-target-seconds"]) == (1, None, None)
    assert median_cost([1.0, None, 3.0]) == 3.0
    assert median_cost([1.0, None]) is None
    assert median_cost([]) is None


def test_without_a_target_it_is_95_percent_of_the_best_method_in_the_setting(folder, tmp_path):
    plan = folder / "comparison.yaml"
    plan.write_text(plan.read_text().replace("target-accuracy: 0.55\n", ""))
    comparison = read_comparison(folder)
    assert comparison.targets == {"same": 0.601, "mixed": 0.57}  # of 0.6333 and 0.6, in thousandths


def test_seconds_without_the_start_are_unknown_where_it_was_not_measured(tmp_path):
    run = read_run(write_run(tmp_path / "x", [(0.5,), (0.6,)], start=None))
    figures = figures_of(run)
    assert (figures["seconds"], figures["training-seconds"]) == (4.0, None)
    folder = write_plan(tmp_path / "c", [("x", "fedavg", "same", 0)], **{"target-accuracy": 0.5})
    write_run(folder / "x", [(0.5,), (0.6,)], start=None)
    (row,) = read_comparison(folder).rows
    assert (row["to-target-seeds"], row["to-target-bytes"], row["to-target-training-seconds"]) == (1, 140, None)


def test_after_training_has_columns_of_its_own(tmp_path):
    more = [{"after-training-accuracy-mean": mean} for mean in (0.9, 0.7)]
    run = read_run(write_run(tmp_path / "x", [(0.5,), (0.6,)], more=more))
    figures = figures_of(run)
    assert figures["last-after-training-accuracy-mean"] == 0.7
    assert figures["best-after-training-accuracy-mean"] == 0.9


def test_validation_samples_choose_a_round_if_all_runs_have_some(tmp_path):
    folder = write_plan(tmp_path / "c", [("x", "fedavg", "same", 0), ("y", "pfedhn", "same", 0)])
    write_run(folder / "x", [(0.5, 0.9), (0.9, 0.9), (0.6, 0.2)], more=validated(0.3, 0.4, 0.5))
    write_run(folder / "y", [(0.5, 0.9), (0.9, 0.9), (0.6, 0.2)], more=validated(0.5, 0.4, 0.3))
    comparison = read_comparison(folder)
    assert comparison.is_validated
    assert [row["chosen-accuracy-mean"] for row in comparison.rows] == [pytest.approx(0.4), pytest.approx(0.7)]
    assert [row["chosen-accuracy"] for row in comparison.rows] == [pytest.approx(0.3), pytest.approx(0.8)]
    assert [row["best-accuracy-mean"] for row in comparison.rows] == [0.9, 0.9]
    assert accuracy_sheet(comparison, "same").heads[2:4] == ("mean, last", "mean, chosen")
    metrics = folder / "y" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("validation", "other"))
    comparison = read_comparison(folder)
    assert not comparison.is_validated
    assert accuracy_sheet(comparison, "same").heads[2:4] == ("mean, last", "mean, best")


@pytest.mark.parametrize(
    ("last", "counts", "expected"),
    [
        ((0.5, 0.45), {"a": [5, 5], "b": [2, 8]}, True),  # guessing gets 0.65
        ((0.70, 0.72), {"a": [5, 5], "b": [2, 8]}, False),  # more than 0.65 + 0.1 * 0.35
        ((0.30, 0.30), {"a": [1, 1, 1, 1], "b": [1, 1, 1, 1]}, False),  # more than 1.1 * 0.25
        ((0.27, 0.27), {"a": [1, 1, 1, 1], "b": [1, 1, 1, 1]}, True),
        # Where a client has hardly more than one class, 1.1 times guessing would be above 1.
        ((0.99, 0.99), {"a": [19, 1], "b": [19, 1]}, False),
        ((0.95, 0.95), {"a": [19, 1], "b": [19, 1]}, True),
    ],
)
def test_a_run_that_only_guesses_has_learned_nothing(tmp_path, last, counts, expected):
    run = read_run(write_run(tmp_path / "x", [(0.1, 0.1), last], partition=counts))
    assert (learned_nothing(run) is not None) == expected


def test_guessing_is_over_the_clients_of_the_run_that_hold_something(tmp_path):
    counts = {"a": [3, 1], "b": [0, 0], "held-out": [9, 0]}
    assert guessing_accuracy(read_run(write_run(tmp_path / "x", [(0.5, 0.5)], partition=counts))) == 0.75
    assert guessing_accuracy(read_run(write_run(tmp_path / "y", [(0.5, 0.5)]))) is None


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [
        ([(0.5, 0.2)] * 3, True),
        ([(0.5, 0.2)] * 2, False),  # too few to tell
        ([(0.5, 0.2), None, (0.5, 0.2)], False),
        ([(0.5, 0.2), (0.5, 0.3), (0.5, 0.2)], False),
        ([(1.0, 1.0)] * 3, False),
    ],
)
def test_a_run_whose_clients_never_move_has_learned_nothing(tmp_path, rounds, expected):
    assert (learned_nothing(read_run(write_run(tmp_path / "x", rounds))) is not None) == expected


def test_spread_of_one_value_has_no_deviation_and_of_none_there_is_none():
    one = spread([None, 0.5])
    assert (one.mean, one.std, one.count, one.standard_error) == (0.5, None, 1, None)
    assert spread([None]) is None
    assert spread([1.0, 2.0, 3.0, 4.0]).standard_error == pytest.approx(math.sqrt(5 / 3) / 2)
