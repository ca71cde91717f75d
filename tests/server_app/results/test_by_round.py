"""The table of clients by round: what pandas reads in a line, and what crashes and resumed runs leave of it."""

import logging
import resource

import pandas as pd
import pytest
from small_runs import CONFIG, lines_of, record

from common.errors import UserError
from common.evaluation import Evaluation
from server_app.results import Failure, RoundRecord, RunTracker
from server_app.results.by_round import rows_of
from server_app.results.reading import ClientRow

NUMBERS = ("accuracy", "loss", "train-loss", "validation-accuracy", "after-training-accuracy", "epsilon")


def table(tracker):
    return tracker.run_dir / "clients-by-round.csv"


def resumed(tracker, after):
    other = RunTracker(tracker.run_dir, CONFIG, num_rounds=4, resume_after=after)
    for key, size, tau, label in (("a", 1000, 2, "lenet"), ("b", 1000, 2, "lenet"), ("c", 2500, 5, "mlp")):
        other.add_client(key, size, tau, label)
    return other


def test_a_round_is_a_row_for_each_client_that_took_part(tracker):
    tracker.log_round(record(1, correct=(2, 6, 20), privacy={"a": (2.0, 1e-5)}))
    tracker.log_round(record(2, train_losses={"b": (1.5, 10)}, failures=[]))
    assert table(tracker).read_text().splitlines() == [
        "round,client,architecture,known,accuracy,loss,test-samples,train-loss,train-samples,validation-accuracy,"
        "after-training-accuracy,epsilon,failure",
        "1,a,lenet,false,0.2,1.0,10,1.0,30,,,2.0,",
        "1,b,lenet,false,0.6,2.0,10,2.0,10,,,,",
        "1,c,mlp,false,1.0,0.5,20,,,,,,late",
        "2,b,lenet,false,,,10,1.5,10,,,,",
    ]


def test_reasons_of_a_client_that_failed_more_than_once_are_joined_and_nodes_are_no_clients(tracker):
    failures = [Failure(client, reason, "") for client, reason in (("c", "late"), ("c", "busy"), ("c", "late"))]
    tracker.log_round(record(1, train_losses={}, failures=[*failures, Failure("node 7", "malformed", "")]))
    assert table(tracker).read_text().splitlines()[1:] == ["1,c,mlp,false,,,,,,,,,late;busy"]


def test_further_accuracies_of_a_line_have_columns():
    line = {
        "round": 3,
        "client-accuracy": {"a": 0.5},
        "client-train-loss": {},
        "client-validation-accuracy": {"a": 0.25},
        "client-after-training-accuracy": {"b": 0.75},
        "failure-list": [],
    }
    rows = list(rows_of(line, {key: ClientRow(key, "mlp", 10, None) for key in "ab"}, {}))
    assert [(row.client, row.validation_accuracy, row.after_training_accuracy) for row in rows] == [
        ("a", 0.25, None),
        ("b", None, 0.75),
    ]


@pytest.fixture
def simulated(tmp_path, drawings):
    """A finished run of three rounds with clients that are numbers; one of them never trains, one is known."""
    tracker = RunTracker(tmp_path / "simulated", CONFIG, num_rounds=3)
    for key in ("0", "1", "2"):
        tracker.add_client(key, 1000, 2, "lenet", known=key == "2")
    for number in (1, 2, 3):
        evaluations = {key: Evaluation(number, 10, float("nan")) for key in ("0", "2")}
        tracker.log_round(
            RoundRecord(
                number, evaluations, {"0": (0.1 * number, 30)}, [Failure("1", "late", "")] if number > 1 else []
            )
        )
    tracker.finish()
    return tracker


def test_pandas_reads_both_files_in_a_line_with_the_same_numbers_and_types(simulated):
    frame = pd.read_csv(table(simulated))
    stored = pd.read_parquet(simulated.run_dir / "clients-by-round.parquet")
    assert len(frame) == 8
    whole, kinds = ("round", "client"), {name: str(kind) for name, kind in frame.dtypes.items()}
    assert {kinds[name] for name in whole} == {"int64"}
    assert {kinds[name] for name in NUMBERS} == {"float64"}
    assert kinds["known"] == "bool"
    pd.testing.assert_frame_equal(frame, stored)
    assert frame[frame.client == 2].accuracy.tolist() == [0.1, 0.2, 0.3]
    assert frame.groupby("round").failure.count().tolist() == [0, 1, 1]


def test_columns_that_are_empty_keep_their_types_as_parquet(tracker):
    tracker.log_round(record(1, failures=[]))
    tracker.finish()
    stored = pd.read_parquet(tracker.run_dir / "clients-by-round.parquet")
    assert stored.client.tolist() == ["a", "b"]
    assert {str(stored[name].dtype) for name in NUMBERS} == {"float64"}
    assert pd.api.types.is_string_dtype(stored.failure) or stored.failure.dtype == object
    assert stored.failure.isna().all()


def test_names_that_pandas_takes_for_nothing_are_names_as_parquet(tmp_path, drawings):
    tracker = RunTracker(tmp_path / "run", CONFIG, num_rounds=1)
    tracker.add_client("NA", 1000, 2, "null")
    tracker.log_round(RoundRecord(1, {"NA": Evaluation(1, 2, 0.5)}))
    tracker.finish()
    stored = pd.read_parquet(tracker.run_dir / "clients-by-round.parquet")
    assert (stored.client.tolist(), stored.architecture.tolist()) == (["NA"], ["null"])


def test_a_run_in_which_no_client_did_anything_has_empty_tables(tracker):
    tracker.log_round(RoundRecord(1))
    tracker.finish()
    assert len(pd.read_parquet(tracker.run_dir / "clients-by-round.parquet")) == 0
    assert len(pd.read_csv(table(tracker))) == 0


def test_the_table_and_the_lines_of_metrics_agree_after_a_resume(tracker):
    for number in (1, 2, 3):
        tracker.log_round(record(number, correct=(number, number, number)))
    tracker.finish()
    other = resumed(tracker, 2)
    assert not (tracker.run_dir / "clients-by-round.parquet").exists()
    for number in (3, 4):
        other.log_round(record(number, correct=(9, 9, 9), failures=[]))
    other.finish()
    frame = pd.read_csv(table(tracker))
    assert not frame.duplicated(["round", "client"]).any()
    pd.testing.assert_frame_equal(frame, pd.read_parquet(tracker.run_dir / "clients-by-round.parquet"))
    for line in lines_of(other):
        rows = frame[frame["round"] == line["round"]].set_index("client")
        assert rows.accuracy.to_dict() == line["client-accuracy"]
        assert rows["train-loss"].dropna().to_dict() == line["client-train-loss"]
        assert rows.failure.dropna().to_dict() == {each["client"]: each["reason"] for each in line["failure-list"]}


def test_what_a_crash_cut_short_is_dropped_when_the_run_goes_on(tracker):
    tracker.log_round(record(1, correct=(1, 1, 1)))
    whole = table(tracker).read_bytes()
    table(tracker).write_bytes(whole + b"1,a,lenet,fal")
    resumed(tracker, 1)
    assert table(tracker).read_bytes() == whole


def test_rows_without_a_line_of_metrics_are_dropped_when_the_run_starts_anew(tracker):
    tracker.log_round(record(1, correct=(1, 1, 1)))
    whole = table(tracker).read_bytes()
    (tracker.run_dir / "metrics.jsonl").unlink()
    resumed(tracker, 0).log_round(record(1, correct=(1, 1, 1)))
    assert table(tracker).read_bytes() == whole


@pytest.mark.parametrize("content", [None, b"", b"round,client\n1,a\n"])
def test_a_table_that_is_missing_or_of_another_kind_is_made_from_the_lines_of_metrics(tracker, content):
    for number in (1, 2):
        tracker.log_round(record(number, correct=(number, number, number)))
    expected = pd.read_csv(table(tracker))
    table(tracker).unlink()
    if content is not None:
        table(tracker).write_bytes(content)
    resumed(tracker, 1)
    rebuilt = pd.read_csv(table(tracker))
    first = expected[expected["round"] == 1].assign(loss=float("nan"))
    pd.testing.assert_frame_equal(rebuilt, first, check_dtype=False)


def test_half_a_round_is_taken_back_when_the_disk_is_full(tracker):
    tracker.log_round(record(1, correct=(1, 1, 1)))
    whole = table(tracker).read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    tracker._write_clients = lambda: None
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, before[1]))
    try:
        with pytest.raises(UserError, match=r"clients-by-round\.csv cannot be written \(File too large\)"):
            tracker.log_round(record(2, correct=(1, 1, 1)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert table(tracker).read_bytes() == whole
    assert len(lines_of(tracker)) == 1


def test_a_run_ends_well_without_parquet(tracker, caplog):
    tracker.log_round(record(1, correct=(1, 1, 1)))
    with table(tracker).open("a") as file:
        file.write("not a number\n")
    with caplog.at_level(logging.WARNING):
        assert tracker.finish()["rounds"] == 1
    assert "clients-by-round.parquet could not be written" in caplog.text
