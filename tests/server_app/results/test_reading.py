"""A run's folder read back, and what a folder is refused for."""

import json
import re

import pytest
from small_runs import record

from common.errors import UserError
from server_app.results import read_run, write_report


def test_architectures_are_means_over_their_clients(make_run):
    lenet, mlp = read_run(make_run(keys=("a", "b", "c"))).architectures()
    assert (lenet.architecture, lenet.clients, lenet.num_params, lenet.chunks) == (
        "lenet",
        2,
        "239,856 to 239,858",
        "79",
    )
    # Round 2 is best, with 2 and 4 of 1000 right; round 3 is last, with 0 and 2.
    assert (lenet.best_accuracy, lenet.last_accuracy) == (pytest.approx(0.003), pytest.approx(0.001))
    assert (mlp.best_accuracy, mlp.last_accuracy) == (0.003, 0.001)


def test_accuracies_of_an_architecture_skip_rounds_without_its_clients(make_run):
    run_dir = make_run()
    path = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[1]["client-accuracy"]["b"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_run(run_dir).accuracies("mlp") == [(1, [0.002]), (3, [0.001])]


def test_new_and_known_clients_have_rows_of_their_own(make_adapt_run):
    rows = read_run(make_adapt_run()).architectures()
    assert [(row.architecture, row.clients, row.last_accuracy, row.best_accuracy) for row in rows] == [
        ("lenet", 2, pytest.approx(0.4), pytest.approx(0.4)),  # 4 and 12 of 20
        ("mlp", 1, 0.4, 0.4),
        ("vgg8 (known)", 1, 0.9, 0.9),
        ("lenet (known)", 1, 0.72, 0.72),
    ]


def test_architectures_of_known_clients_have_accuracies_though_no_new_one_was_evaluated(make_adapt_run):
    run_dir = make_adapt_run(evaluated="kl")
    assert [row.last_accuracy for row in read_run(run_dir).architectures()] == [None, None, 0.9, 0.72]


def test_a_method_without_chunks_has_a_dash_for_them(make_run):
    run = read_run(make_run(chunks=None))
    assert not run.has_chunks
    assert [row.chunks for row in run.architectures()] == ["–", "–"]


def test_a_run_offers_its_metrics_and_its_last_accuracy(make_run):
    run = read_run(make_run())
    assert [line["round"] for line in run.metrics] == [1, 2, 3]
    assert run.accuracy == 0.0005  # 0 and 1 of 1000


def test_accuracy_is_that_of_the_last_round_that_was_evaluated(tracker):
    tracker.log_round(record(1))
    run = read_run(tracker.run_dir)
    assert (run.accuracy, run.accuracy_mean) == (None, None)
    tracker.log_round(record(2, correct=(2, 6, 20)))
    tracker.log_round(record(3))
    run = read_run(tracker.run_dir)
    assert (run.accuracy, run.accuracy_mean) == (0.7, 0.6)


def test_a_run_shows_itself_in_a_line(tracker):
    tracker.log_round(record(1))
    assert repr(read_run(tracker.run_dir)) == (
        f"<Run '{tracker.run_dir}': mh-pfedhn, round 1, mean accuracy –, not finished>"
    )
    tracker.log_round(record(2, correct=(2, 6, 20)))
    tracker.finish()
    assert repr(read_run(tracker.run_dir)).endswith("mh-pfedhn, round 2, mean accuracy 0.600, finished>")


def test_folder_without_metrics_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(UserError, match=r"metrics\.jsonl is empty"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [('{"round": 2, "accu', "is not JSON"), ("[1, 2]", "no `round`"), ('{"round": 2}', "no `accuracy`")],
)
def test_broken_line_is_named(make_run, broken, problem):
    run_dir = make_run()
    path = run_dir / "metrics.jsonl"
    first, _, third = path.read_text().splitlines()
    path.write_text("\n".join([first, broken, third]) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 ") as error:
        write_report(run_dir)
    assert problem in str(error.value)


@pytest.mark.parametrize("name", ["config.yaml", "clients.csv"])
def test_missing_file_is_named(make_run, name):
    run_dir = make_run()
    (run_dir / name).unlink()
    with pytest.raises(UserError, match=re.escape(f"{name} is missing")):
        write_report(run_dir)
