"""The files and lines that a run leaves while it goes on."""

import errno
import json
import math
import os

import pytest
import yaml
from small_runs import CONFIG, SECONDS, further, lines_of, of_data, read_strictly, record, rows_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import UserError
from common.evaluation import Evaluation
from server_app.results import Failure, RoundRecord, RunTracker, final_table, tracking
from server_app.results.metrics import METRIC_KEYS
from server_app.results.reading import read_clients
from server_app.results.sinks import to_tensorboard

# --- Files ---


def test_a_finished_run_has_every_promised_file(tmp_path):
    tracker = RunTracker(tmp_path / "small", CONFIG, num_rounds=1)
    data, partition = of_data({"a": [3, 0]}, ["cat", "dog"], {"a": "ann"})
    tracker.set_data(data, partition)
    tracker.add_client("a", 1000, 2, "lenet")
    tracker.log_round(RoundRecord(1, {"a": Evaluation(1, 2, 0.7)}))
    tracker.finish()
    assert {path.name for path in tracker.run_dir.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "clients.csv",
        "clients-by-round.csv",
        "clients-by-round.parquet",
        "data.json",
        "partition.json",
        "summary.json",
        "curves.png",
        "report.html",
        "tensorboard",
    }
    assert yaml.safe_load((tracker.run_dir / "config.yaml").read_text()) == CONFIG
    assert read_strictly((tracker.run_dir / "data.json").read_text()) == data
    assert read_strictly((tracker.run_dir / "partition.json").read_text()) == partition
    assert rows_of(tracker)["a"]["owner"] == "ann"
    assert read_clients(tracker.run_dir / "clients.csv")[0].owner == "ann"


def test_a_line_is_on_disk_as_soon_as_its_round_is_logged(tracker, clock):
    tracker.log_round(record(1, correct=(1, 2, 3)))
    clock.now += 2.5
    tracker.log_round(record(2))
    assert [(line["round"], line["accuracy"], line["wall-seconds"]) for line in lines_of(tracker)] == [
        (1, 0.15, 0.0),
        (2, None, 2.5),
    ]


def test_clients_table(tracker):
    tracker.log_round(record(1, correct=(5, 9, 10)))
    tracker.log_round(record(2, correct=(7, 8, 10), train_losses={"b": (1.0, 12)}))
    rows = rows_of(tracker)
    assert list(rows) == ["a", "b", "c"]
    assert rows["b"] == {
        "client": "b",
        "architecture": "lenet",
        "num-params": "1000",
        "chunks": "2",
        "owner": "",
        "train-samples": "12",
        "test-samples": "10",
        "last-accuracy": "0.8",
        "best-accuracy": "0.9",
        "best-round": "1",
        "after-training-accuracy": "",
        "validation-accuracy": "",
        "rounds-trained": "2",
        "failures": "0",
        "epsilon": "",
        "delta": "",
        "known": "false",
    }
    assert (rows["a"]["best-round"], rows["a"]["rounds-trained"]) == ("2", "1")
    # Reaching the best accuracy again does not move its round.
    assert (rows["c"]["best-round"], rows["c"]["failures"], rows["c"]["train-samples"]) == ("1", "2", "")


def test_known_clients_are_marked_in_the_table(adapting):
    adapting.log_round(record(1, correct=(2, 6, 20)))
    assert {key: row["known"] for key, row in rows_of(adapting).items()} == {"a": "false", "b": "false", "c": "true"}
    rows = read_clients(adapting.run_dir / "clients.csv")
    assert [(row.client, row.known) for row in rows] == [("a", False), ("b", False), ("c", True)]


def test_lines_of_an_adapt_run_tell_known_clients_from_new_ones(adapting):
    adapting.log_round(record(1, correct=(2, 6, 15)))
    adapting.log_round(record(2))
    first, second = lines_of(adapting)
    assert (first["accuracy"], first["accuracy-known"]) == (0.4, 0.75)
    assert first["client-accuracy"] == {"a": 0.2, "b": 0.6, "c": 0.75}
    assert (second["accuracy"], second["accuracy-known"]) == (None, None)


def test_lines_of_an_ordinary_run_have_no_optional_keys(tracker):
    tracker.log_round(record(1, correct=(2, 6, 20)))
    assert set(lines_of(tracker)[0]) == set(METRIC_KEYS)


def test_a_node_that_fails_before_it_is_admitted_is_recorded(tracker):
    tracker.log_round(RoundRecord(1, failures=[Failure("node 7", "malformed", "no num-params")]))
    assert lines_of(tracker)[0]["failures"] == {"malformed": 1}
    assert "node 7" not in rows_of(tracker)


def test_summary_has_best_and_last_round(tracker, clock):
    tracker.log_round(record(1, correct=(2, 2, 4)))  # weighted 0.2, mean 0.2
    tracker.log_round(record(2, correct=(4, 4, 18)))  # weighted 0.65, mean 0.5667
    tracker.log_round(record(3, correct=(10, 6, 8)))  # weighted 0.6, mean 0.6667
    clock.now += 60
    tracker.log_round(record(4))
    summary = tracker.finish()
    assert summary == {
        "best-accuracy": 0.65,
        "best-round": 2,
        "last-accuracy": 0.6,
        "last-round": 3,
        "best-accuracy-mean": 0.666667,
        "best-mean-round": 3,
        "last-accuracy-mean": 0.666667,
        "last-accuracy-std": pytest.approx(math.sqrt((1 / 9 + 1 / 225 + 16 / 225) / 3), abs=1e-6),
        "last-accuracy-worst10": 0.4,
        "last-accuracy-by-architecture": {"lenet": 0.8, "mlp": 0.4},
        "rounds": 4,
        "wall-seconds": 60.0,
        "bytes-down": 400,
        "bytes-up": 160,
        "clients": 3,
        "best-chosen-on": "test",
        "chosen-round": 3,
        "chosen-accuracy": 0.6,
        "chosen-accuracy-mean": 0.666667,
        "method": "mh-pfedhn",
        "config": CONFIG,
    }
    assert read_strictly((tracker.run_dir / "summary.json").read_text()) == summary


def log_further(tracker):
    """Three rounds, the second of which is the best on validation samples and the last one of which tests nobody."""
    tracker.log_round(further(1, correct=(8, 6, 20), after=(10, 10, 20), held_back=(1, 1, 2)))  # means 0.8, 1.0, 0.2
    tracker.log_round(further(2, correct=(2, 6, 20), after=(4, 8), held_back=(5, 3)))  # means 0.6, 0.6, 0.8
    tracker.log_round(record(3))


def test_further_tests_are_in_every_file(tracker):
    log_further(tracker)
    summary = tracker.finish()
    expected = {
        "best-accuracy-mean": 0.8,
        "best-mean-round": 1,
        "best-chosen-on": "validation",
        "chosen-round": 2,
        "chosen-accuracy": 0.7,
        "chosen-accuracy-mean": 0.6,
        "last-validation-accuracy": 0.8,  # 8 of 10
        "last-validation-accuracy-mean": 0.8,
        "best-validation-accuracy": 0.8,
        "best-validation-accuracy-mean": 0.8,
        "last-after-training-accuracy": 0.6,  # 12 of 20
        "last-after-training-accuracy-mean": 0.6,
        "best-after-training-accuracy": 1.0,
        "best-after-training-accuracy-mean": 1.0,
    }
    assert {key: summary[key] for key in expected} == expected
    rows = rows_of(tracker)
    columns = ("after-training-accuracy", "validation-accuracy")
    assert [tuple(rows[key][column] for column in columns) for key in "abc"] == [
        ("0.4", "1.0"),
        ("0.8", "0.6"),
        ("1.0", "0.2"),  # of the round before
    ]
    read = read_clients(tracker.run_dir / "clients.csv")
    assert [(row.after_training_accuracy, row.validation_accuracy) for row in read] == [(0.4, 1), (0.8, 0.6), (1, 0.2)]
    events = EventAccumulator(str(tracker.run_dir / "tensorboard")).Reload()
    for tag, values in (("validation-accuracy-mean", [0.2, 0.8]), ("after-training-accuracy", [1.0, 0.6])):
        assert [(event.step, event.value) for event in events.Scalars(tag)] == [
            (number, pytest.approx(value)) for number, value in enumerate(values, start=1)
        ]


def test_a_resumed_run_counts_further_tests_of_the_rounds_that_it_keeps(tracker, clock):
    log_further(tracker)
    other = resumed(tracker, 1, clock)
    other.log_round(record(2))
    assert [rows_of(other)[key]["validation-accuracy"] for key in "abc"] == ["0.2", "0.2", "0.2"]


def test_epsilon_is_in_every_file_and_in_the_table(tracker):
    tracker.log_round(record(1, correct=(2, 6, 20), privacy={"a": (2.0, 1e-5), "b": (1.0, 1e-6)}))
    tracker.log_round(record(2, correct=(2, 6, 20), privacy={"b": (1.5, 1e-6)}))
    summary = tracker.finish()
    assert (summary["epsilon"], summary["epsilon-client"], summary["delta"]) == (2.0, "a", 1e-5)
    assert summary["noised-clients"] == 2
    rows = rows_of(tracker)
    assert [(rows[key]["epsilon"], rows[key]["delta"]) for key in "abc"] == [
        ("2.0", "1e-05"),
        ("1.5", "1e-06"),
        ("", ""),
    ]
    assert [row.epsilon for row in read_clients(tracker.run_dir / "clients.csv")] == [2.0, 1.5, None]
    said = "epsilon 2, delta 1e-05 (client a, the worst of 2 clients that add noise; 3 in all)"
    assert said in final_table(tracker.run_dir)
    events = EventAccumulator(str(tracker.run_dir / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("epsilon")] == [2.0, 1.5]


def test_summary_of_an_adapt_run_is_of_new_clients(adapting):
    adapting.log_round(record(1, correct=(2, 6, 20)))
    adapting.log_round(record(2, correct=(4, 8, 15)))
    adapting.log_round(record(3))
    summary = adapting.finish()
    assert (summary["best-accuracy"], summary["last-accuracy"], summary["last-accuracy-mean"]) == (0.6, 0.6, 0.6)
    assert summary["last-accuracy-known"] == 0.75
    assert summary["last-accuracy-by-architecture"] == {"lenet": 0.4, "mlp": 0.8, "mlp (known)": 0.75}
    assert summary["clients"] == 3


def test_summary_of_known_clients_that_were_never_evaluated(adapting):
    adapting.log_round(record(1))
    assert adapting.finish()["last-accuracy-known"] is None


def test_tensorboard_events(tracker):
    tracker.log_round(record(1, correct=(2, 6, 20)))
    tracker.log_round(record(2))
    tracker.finish()
    events = EventAccumulator(str(tracker.run_dir / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {
        *("accuracy", "accuracy-mean", "accuracy-worst10", "loss", "train-loss", "bytes/down", "bytes/up"),
        *("seconds/generate", "seconds/exchange", "seconds/update", "seconds/total"),
        *("accuracy-by-architecture/lenet", "accuracy-by-architecture/mlp"),
    }
    assert [(event.step, event.value) for event in events.Scalars("accuracy")] == [(1, pytest.approx(0.7))]
    assert events.Scalars("accuracy-by-architecture/lenet")[0].value == pytest.approx(0.4)
    assert len(events.Scalars("train-loss")) == 2


def test_tensorboard_events_of_known_clients_and_of_a_global_model(adapting):
    adapting.log_round(record(1, correct=(2, 6, 15), extra_losses={"global": {"a": (1.0, 30), "b": (3.0, 10)}}))
    adapting.finish()
    events = EventAccumulator(str(adapting.run_dir / "tensorboard")).Reload()
    expected = {
        "accuracy": 0.4,
        "accuracy-known": 0.75,
        "global-loss": 1.5,
        "global-clients": 2,
        "accuracy-by-architecture/mlp": 0.6,
        "accuracy-known-by-architecture/mlp": 0.75,
    }
    assert {tag: events.Scalars(tag)[0].value for tag in expected} == pytest.approx(expected)


def test_further_losses_and_numbers_of_a_method_are_in_the_file_and_in_tensorboard(tracker):
    tracker.log_round(
        record(1, extra_losses={"teacher": {"a": (1.0, 30)}}, numbers={"server-loss": 0.25, "drift": math.nan})
    )
    tracker.log_round(record(2, numbers={"server-loss": 0.125}))
    tracker.finish()
    first, second = lines_of(tracker)
    assert (first["teacher-loss"], first["server-loss"], first["drift"]) == (1.0, 0.25, None)
    assert "teacher-loss" not in second
    events = EventAccumulator(str(tracker.run_dir / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("server-loss")] == [(1, 0.25), (2, 0.125)]
    assert [event.value for event in events.Scalars("teacher-clients")] == [1]
    assert "drift" not in events.Tags()["scalars"]


def test_a_refused_name_leaves_no_trace_of_its_round(tracker):
    with pytest.raises(ValueError, match="'accuracy'"):
        tracker.log_round(record(1, numbers={"accuracy": 1.0}))
    assert not (tracker.run_dir / "metrics.jsonl").exists()
    assert not (tracker.run_dir / "clients.csv").exists()


def test_clients_of_a_method_without_chunks_have_an_empty_cell(tracker):
    tracker.add_client("d", 1000, None, "lenet")
    tracker.log_round(record(1))
    assert [row["chunks"] for row in rows_of(tracker).values()] == ["2", "2", "5", ""]
    assert [row.chunks for row in read_clients(tracker.run_dir / "clients.csv")] == [2, 2, 5, None]


# --- Folders that already hold a run ---


def test_a_second_run_does_not_append_to_the_first(tracker):
    tracker.log_round(record(1))
    before = (tracker.run_dir / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"already holds a run: choose another `run-name`"):
        RunTracker(tracker.run_dir, CONFIG | {"method": "fedavg"}, num_rounds=4)
    assert (tracker.run_dir / "config.yaml").read_text() == before
    assert len(lines_of(tracker)) == 1


def resumed(tracker, after, clock):
    other = RunTracker(tracker.run_dir, CONFIG, num_rounds=4, resume_after=after, clock=clock)
    for key, size, tau, label in (("a", 1000, 2, "lenet"), ("b", 1000, 2, "lenet"), ("c", 2500, 5, "mlp")):
        other.add_client(key, size, tau, label)
    return other


def test_a_resumed_run_keeps_the_lines_up_to_a_round_and_counts_each_once(tracker, clock):
    tracker.log_round(record(1, correct=(8, 2, 4)))
    clock.now += 10
    tracker.log_round(record(2, correct=(4, 4, 18)))
    rows = rows_of(tracker)
    clock.now += 30
    tracker.log_round(record(3, correct=(10, 10, 20)))
    before = [json.dumps(line) for line in lines_of(tracker)]
    clock.now += 1000  # nobody runs
    other = resumed(tracker, 2, clock)
    assert [json.dumps(line) for line in lines_of(other)] == before[:2]
    clock.now += 5
    other.log_round(record(3))
    again = rows_of(other)
    # The third round had tested all; now it tests nobody.
    for key in "abc":
        for name in ("last-accuracy", "best-accuracy", "best-round", "test-samples", "train-samples"):
            assert again[key][name] == rows[key][name], (key, name)
    assert [again[key]["rounds-trained"] for key in "abc"] == ["3", "3", "0"]
    assert again["c"]["failures"] == "3"
    assert [line["wall-seconds"] for line in lines_of(other)] == [0.0, 10.0, 15.0]


def test_a_resumed_run_that_has_no_lines_yet_is_a_run_like_any_other(tmp_path, clock, drawings):
    tracker = RunTracker(tmp_path / "small", CONFIG, num_rounds=4, resume_after=2, clock=clock)
    tracker.add_client("a", 1000, 2, "lenet")
    clock.now += 2
    tracker.log_round(RoundRecord(3, {"a": Evaluation(1, 2, 0.7)}))
    assert [(line["round"], line["wall-seconds"]) for line in lines_of(tracker)] == [(3, 2.0)]


def test_a_line_without_its_end_is_dropped_whatever_it_says(tracker, clock):
    tracker.log_round(record(1))
    path = tracker.run_dir / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + path.read_bytes().rstrip(b"\n"))
    assert len(lines_of(resumed(tracker, 1, clock))) == 1


def test_a_resumed_run_knows_what_clients_had_spent(tracker, clock):
    tracker.log_round(record(1, correct=(2, 6, 20), privacy={"a": (2.0, 1e-5)}))
    resumed = RunTracker(tracker.run_dir, CONFIG, num_rounds=4, clock=clock, resume_after=1)
    resumed.add_client("a", 1000, 2, "lenet")
    resumed.log_round(record(2, correct=(2,), train_losses={}, failures=[]))
    assert rows_of(resumed)["a"]["epsilon"] == "2.0"


def test_a_finished_run_that_goes_on_has_no_summary_until_it_is_finished_again(tracker, clock):
    tracker.log_round(record(1, correct=(8, 2, 4)))
    tracker.finish()
    assert (tracker.run_dir / "summary.json").exists()
    other = resumed(tracker, 1, clock)
    assert not (tracker.run_dir / "summary.json").exists()
    other.log_round(record(2, correct=(10, 10, 20)))
    other.finish()
    assert json.loads((tracker.run_dir / "summary.json").read_text())["last-round"] == 2


def test_tensorboard_shows_a_repeated_round_once(tracker, clock):
    for number in (1, 2, 3):
        tracker.log_round(record(number, correct=(number, number, number)))
    tracker.finish()
    other = resumed(tracker, 1, clock)
    for number in (2, 3):
        other.log_round(record(number, correct=(9, 9, 9)))
    other.finish()
    events = EventAccumulator(str(tracker.run_dir / "tensorboard"))
    events.Reload()
    for tag in events.Tags()["scalars"]:
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3], tag


# --- Disks that are full ---


@pytest.fixture
def full(monkeypatch):
    """From now on the disk has no room."""

    def fill():
        def fail(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)

    return fill


def test_a_round_that_cannot_be_written_down_ends_the_run_with_a_sentence(tracker):
    tracker.log_round(record(1))
    whole = (tracker.run_dir / "metrics.jsonl").read_bytes()
    (tracker.run_dir / "metrics.jsonl").unlink()
    (tracker.run_dir / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError) as ended:
        tracker.log_round(record(2))
    assert str(ended.value) == (
        f"{tracker.run_dir}/metrics.jsonl cannot be written (No space left on device), so the run ends: make room, and "
        "go on with resume=latest from its last checkpoint, or start it anew."
    )
    assert whole.endswith(b"}\n")


def test_tables_and_the_summary_that_cannot_be_written_end_the_run_with_a_sentence(tracker, full):
    tracker.log_round(record(1))
    full()
    with pytest.raises(UserError, match=r"clients\.csv cannot be written \(No space left on device\), so the run ends"):
        tracker.log_round(record(2))
    with pytest.raises(UserError, match=r"summary\.json cannot be written"):
        tracker.finish()
    with pytest.raises(UserError, match=r"data\.json cannot be written"):
        tracker.set_data(*of_data({"a": [1, 2]}, ["cat", "dog"]))


def test_a_run_whose_settings_cannot_be_written_down_does_not_start(tmp_path, full):
    full()
    with pytest.raises(UserError, match=r"config\.yaml cannot be written \(No space left on device\)"):
        RunTracker(tmp_path / "new", CONFIG, num_rounds=4)


def test_a_run_goes_on_without_events_that_cannot_be_written(tracker, caplog, monkeypatch):
    tracker.log_round(record(1))

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(to_tensorboard.SummaryWriter, "add_scalar", fail)
    tracker.log_round(record(2))
    monkeypatch.undo()
    tracker.log_round(record(3))
    assert [line["round"] for line in lines_of(tracker)] == [1, 2, 3]
    assert tracker.finish()["rounds"] == 3
    assert caplog.text.count("Nothing more goes to TensorBoard") == 1


# --- Drawing now and then ---


def test_drawing_waits_fifty_times_its_own_length(tracker, clock, drawings):
    drawings.length = 2.0
    start = clock.now
    for number in range(1, 251):
        tracker.log_round(record(number))
        clock.now += 1.0
    # Drawn from 0 to 2, then not before 2 + 100; the rounds are logged a second apart.
    assert [moment - start for moment in drawings] == [0, 102, 204]
    tracker.finish()
    assert len(drawings) == 4


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("bad"), "could not draw the report"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/r/curves.png"),
            "report.html could not be written: No space left",
        ),
    ],
)
def test_a_drawing_that_fails_does_not_end_the_run(tracker, monkeypatch, caplog, error, said):
    calls = []

    def fail(run_dir):
        calls.append(run_dir)
        raise error

    monkeypatch.setattr(tracking, "write_report", fail)
    tracker.log_round(record(1))
    tracker.log_round(record(2))
    assert len(calls) == 1
    assert said in caplog.text
    assert ("Traceback" in caplog.text) == isinstance(error, ValueError)
    assert tracker.finish()["rounds"] == 2
    assert len(calls) == 2


# --- The console ---


def test_progress_line(tracker, clock):
    first = record(1, correct=(2, 6, 20))
    tracker.log_round(first)
    assert tracker.progress_line(first) == (
        "round   1/4 | mean accuracy 0.600 (worst 10 % 0.200, all samples 0.700)"
        " | train loss 1.250 | 2/3 clients | 4.0 s | failed: c (late) | 8.0 s left"
    )
    clock.now += 60
    second = record(2, failures=[])
    tracker.log_round(second)
    # One more round of 60 s, the time since the first was logged; the third has been played when the second is logged.
    assert tracker.progress_line(second) == (
        "round   2/4 | not evaluated | train loss 1.250 | 2/2 clients | 4.0 s | 1 min 00 s left"
    )


def test_progress_line_has_the_means_of_further_tests_where_there_are_any(tracker):
    first = further(1, correct=(2, 6, 20), after=(4, 8, 20), held_back=(1, 5))
    tracker.log_round(first)
    assert tracker.progress_line(first).startswith(
        "round   1/4 | mean accuracy 0.600 (worst 10 % 0.200, all samples 0.700) | after one epoch 0.733"
        " | validation 0.600 | train loss 1.250"
    )


def test_progress_line_of_a_first_round_tells_its_start_up_apart(tracker):
    first = record(1, failures=[], seconds=SECONDS | {"total": 14.0, "start": 10.0})
    tracker.log_round(first)
    # Two more rounds of what this one took without its start-up.
    expected = (
        "round   1/4 | not evaluated | train loss 1.250 | 2/2 clients | 14 s, of which 10 s start-up | 8.0 s left"
    )
    assert tracker.progress_line(first) == expected


def test_start_up_is_in_the_line_and_the_events_of_the_round_that_has_it_alone(tracker):
    tracker.log_round(record(1, seconds=SECONDS | {"total": 14.0, "start": 10.00001}))
    tracker.log_round(record(2))
    tracker.finish()
    first, second = (line["seconds"] for line in lines_of(tracker))
    assert (first["start"], first["total"]) == (10.0, 14.0)
    assert "start" not in second
    events = EventAccumulator(str(tracker.run_dir / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("seconds/start")] == [(1, 10.0)]


def test_progress_line_of_an_adapt_run_has_known_clients(adapting):
    first = record(1, correct=(2, 6, 15), failures=[])
    adapting.log_round(first)
    assert adapting.progress_line(first) == (
        "round   1/4 | mean accuracy 0.400 (worst 10 % 0.200, all samples 0.400) | known clients 0.750"
        " | train loss 1.250 | 2/2 clients | 4.0 s | 8.0 s left"
    )
    second = record(2)
    adapting.log_round(second)
    assert "known clients" not in adapting.progress_line(second)


@pytest.mark.parametrize(("loss", "text"), [(2.31, "2.310"), (math.nan, "–")])
def test_progress_line_has_the_loss_of_the_global_model(tracker, loss, text):
    last = record(4, failures=[], extra_losses={"global": {"a": (loss, 30)}})
    tracker.log_round(last)
    assert tracker.progress_line(last) == (
        f"round   4/4 | not evaluated | train loss 1.250 | global loss {text} | 2/2 clients | 4.0 s"
    )


def test_time_left_follows_recent_rounds(tracker, clock):
    tracker.num_rounds = 1020
    for number in range(1, 21):
        clock.now += 100 if number <= 10 else 5
        latest = record(number, failures=[])
        tracker.log_round(latest)
    assert tracker.progress_line(latest).endswith("| 1 h 23 min left")  # 999 rounds of 5 s


def test_last_progress_lines_have_no_time_left(tracker):
    tracker.log_round(record(3))
    assert "left" not in tracker.progress_line(record(3))  # the fourth has been played; its weights are to be tested
    last = record(4, train_losses={}, failures=[])
    tracker.log_round(last)
    assert tracker.progress_line(last) == "round   4/4 | not evaluated | train loss – | 0/0 clients | 4.0 s"


def test_progress_line_names_only_a_few_failures(tracker):
    many = record(4, failures=[Failure(str(i), "late", "") for i in range(8)])
    tracker.log_round(many)
    assert tracker.progress_line(many).endswith("failed: 0 (late), 1 (late), 2 (late), 3 (late), 4 (late), 3 more")


def test_progress_line_names_a_client_that_failed_more_than_once_once(tracker):
    failures = [("3", "late"), ("7", "late"), ("3", "busy"), ("3", "busy")]
    twice = record(4, failures=[Failure(client, reason, "") for client, reason in failures])
    tracker.log_round(twice)
    assert tracker.progress_line(twice).endswith("failed: 3 (late, busy), 7 (late)")


def test_a_resumed_run_goes_by_its_own_rounds_and_not_by_the_time_that_nobody_ran(tracker, clock):
    tracker.log_round(record(1, failures=[]))
    clock.now += 500
    other = resumed(tracker, 1, clock)
    other.num_rounds = 5
    other.log_round(record(2, failures=[]))
    assert other.progress_line(record(2, failures=[])).endswith("| 4.0 s | 8.0 s left")
    clock.now += 7
    other.log_round(record(3, failures=[]))
    assert other.progress_line(record(3, failures=[])).endswith("| 7.0 s left")
