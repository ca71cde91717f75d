"""Which runs a comparison has, in which state, and what its folder is refused for."""

import json

import pytest
import yaml
from small_comparisons import validated, write_plan, write_run

import mh_pfedhn
from common.errors import UserError
from server_app.results.comparison import read_comparison


def test_each_run_is_in_the_state_of_its_folder(comparison):
    states = {run.name: run.state for run in comparison.runs}
    assert states == dict.fromkeys(states, "finished") | {
        "fedavg-mixed-1": "unfinished",
        "fedavg-mixed-2": "failed",
        "alone-mixed-1": "missing",
    }
    assert [run.progress for run in comparison.runs if run.state != "finished"] == [
        "round 1 of 3",
        "not begun",
        "round 2 of 3",
    ]


def test_comparison_says_in_a_line_how_far_it_is(comparison):
    assert repr(comparison) == "<Comparison 'small': 2 methods, 2 settings, 9 of 12 runs finished>"


def test_a_finished_run_of_fewer_rounds_than_planned_is_not_finished(folder):
    plan = folder / "comparison.yaml"
    plan.write_text(plan.read_text().replace("rounds: 3", "rounds: 4", 1))
    (first, *others) = read_comparison(folder).runs
    assert (first.state, first.progress) == ("unfinished", "round 3 of 4")
    assert others[0].state == "finished"


def test_a_run_that_has_finished_after_a_failure_counts_and_its_failure_stays_known(folder):
    (folder / "failures.json").write_text(json.dumps({"fedavg-same-0": "no room"}))
    first = read_comparison(folder).runs[0]
    assert (first.name, first.state, first.failure) == ("fedavg-same-0", "finished", "no room")


def test_a_run_whose_files_are_broken_has_failed_and_the_rest_is_read(folder):
    metrics = folder / "fedavg-same-1" / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-10])
    comparison = read_comparison(folder)
    (broken,) = (run for run in comparison.runs if run.name == "fedavg-same-1")
    assert broken.state == "failed"
    assert str(metrics) in broken.failure
    assert comparison.rows[0]["seeds-finished"] == 2


def test_load_comparison_takes_text_and_paths(folder):
    assert mh_pfedhn.load_comparison(str(folder)).rows == mh_pfedhn.load_comparison(folder).rows


def change(folder, **keys):
    plan = yaml.safe_load((folder / "comparison.yaml").read_text())
    (folder / "comparison.yaml").write_text(yaml.safe_dump(plan | keys))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "comparison.yaml").unlink(), "holds no comparison.yaml"),
        (lambda folder: change(folder, runs=[]), "lists no `runs`"),
        (lambda folder: change(folder, runs=["x"]), "'x'"),
        (lambda folder: change(folder, runs=[{"name": "x", "method": "m", "setting": "s"}]), "no `seed`"),
        (
            lambda folder: change(folder, runs=[{"name": "x", "method": "m", "setting": "s", "seed": "0"}]),
            "whole number",
        ),
        (
            lambda folder: change(folder, runs=[{"name": "x", "method": "m", "setting": "s", "seed": 0}] * 2),
            "named 'x'",
        ),
        (lambda folder: change(folder, **{"target-accuracy": 80}), "comparison.yaml, but must be a number above 0"),
        (lambda folder: change(folder, **{"choose-on": "test"}), "choose-on 'test'"),
        (lambda folder: (folder / "failures.json").write_text("{"), "failures.json is not JSON"),
        (lambda folder: (folder / "failures.json").write_text("[]"), "must hold an object"),
    ],
)
def test_what_is_no_comparison_is_refused_in_a_sentence(folder, spoil, words):
    spoil(folder)
    with pytest.raises(UserError) as refused:
        mh_pfedhn.load_comparison(folder)
    assert words in str(refused.value)


# Grids


def write_grid(tmp_path, validation=True, seeds=2):
    """A grid of two points: the first is better on test samples, the second on those to choose on."""
    folder = tmp_path / "grid"
    rates = (0.01, 0.1)
    runs = [("alone", "local", "same", 0)]
    runs += [
        (f"f-{seed}-{rate}", "fedavg", "same", seed, {"client-lr": rate}) for rate in rates for seed in range(seeds)
    ]
    write_plan(folder, runs)
    write_run(folder / "alone", [(0.2,), (0.4,), (0.5,)], method="local", more=validated(0.1, 0.1, 0.1), traffic=0)
    for rate, last, chosen in ((0.01, 0.9, 0.5), (0.1, 0.6, 0.7)):
        for seed in range(seeds):
            # The best round on the validation samples is no reason to be chosen: the first point's is higher.
            more = validated(1 - rate, 0.1, chosen + 0.01 * seed) if validation else ()
            write_run(folder / f"f-{seed}-{rate}", [(0.1,), (0.2,), (last,)], seed=seed, more=more)
    return folder


def test_a_point_is_chosen_by_its_last_accuracy_on_validation_samples_never_on_test(tmp_path):
    comparison = read_comparison(write_grid(tmp_path))
    rows = [row for row in comparison.rows if row["method"] == "fedavg"]
    assert [(row["grid"], row["grid-client-lr"], row["chosen"]) for row in rows] == [
        ("client-lr=0.01", 0.01, False),
        ("client-lr=0.1", 0.1, True),
    ]
    assert [row["last-validation-accuracy-mean"] for row in rows] == [pytest.approx(0.505), pytest.approx(0.705)]
    assert [(group.method, group.point) for group in comparison.shown] == [("local", ""), ("fedavg", "client-lr=0.1")]
    assert comparison.rows[0]["grid-client-lr"] is None
    # The target is of what is shown: 0.95 * 0.6.
    assert comparison.targets == {"same": 0.57}


def test_a_grid_without_validation_samples_is_shown_whole(tmp_path):
    comparison = read_comparison(write_grid(tmp_path, validation=False))
    assert [row["chosen"] for row in comparison.rows] == [True, None, None]
    assert len(comparison.shown) == 3
    assert "no accuracy on validation samples, so nothing is chosen" in comparison_notes(comparison)


def test_a_choice_from_a_grid_that_is_not_complete_is_called_provisional(tmp_path):
    folder = write_grid(tmp_path)
    assert "provisional" not in comparison_notes(read_comparison(folder))
    (folder / "f-1-0.01" / "summary.json").unlink()
    assert "The choice for fedavg is provisional: 3 of 4 runs" in comparison_notes(read_comparison(folder))


def comparison_notes(comparison):
    from server_app.results.comparison.notes import notes

    return " ".join(notes(comparison))
