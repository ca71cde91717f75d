"""The numbers of a round, on cases small enough to work out by hand."""

import dataclasses
import json
import math

import pytest
from small_runs import SECONDS, further, lines_of, record

from common.evaluation import Evaluation
from server_app.results import Failure, RoundRecord
from server_app.results.metrics import METRIC_KEYS, OPTIONAL_KEYS, extra_losses, round_metrics


def test_round_metrics_of_three_clients():
    line = round_metrics(record(3, correct=(2, 6, 20)))
    assert line == {
        "round": 3,
        "accuracy": 0.7,  # 28 of 40
        "accuracy-mean": 0.6,  # of 0.2, 0.6 and 1.0
        "accuracy-std": pytest.approx(math.sqrt(0.32 / 3), abs=1e-6),  # of the population
        "accuracy-worst10": 0.2,
        "loss": 1.0,  # (10 * 1 + 10 * 2 + 20 * 0.5) / 40
        "train-loss": 1.25,  # (30 * 1 + 10 * 2) / 40
        "clients": 2,
        "failures": {"late": 1},
        "bytes-down": 100,
        "bytes-up": 40,
        "seconds": SECONDS,
        "client-accuracy": {"a": 0.2, "b": 0.6, "c": 1.0},
        "client-train-loss": {"a": 1.0, "b": 2.0},
        "failure-list": [{"client": "c", "reason": "late", "detail": "no reply within 5 s"}],
    }


def test_no_client_has_a_larger_share_of_a_mean_loss_than_max_client_weight():
    losses = {"a": (1.0, 30), "b": (2.0, 10), "c": (8.0, 10**7)}
    capped = RoundRecord(1, train_losses=losses, extra_losses={"global": losses}, max_client_weight=0.5)
    line = round_metrics(capped)
    assert line["train-loss"] == line["global-loss"] == 4.625  # (30 * 1 + 10 * 2 + 40 * 8) / 80
    assert round_metrics(RoundRecord(1, train_losses=losses))["train-loss"] == pytest.approx(8.0, abs=1e-4)


def test_clients_whose_weight_was_cut_are_counted_and_named_where_there_are_any():
    line = round_metrics(RoundRecord(1, capped={"a": 0.75, "b": 2 / 3}))
    assert (line["capped-clients"], line["client-capped"]) == (2, {"a": 0.75, "b": 0.666667})
    assert not {"capped-clients", "client-capped"} & round_metrics(RoundRecord(1)).keys()


@pytest.mark.parametrize(("clients", "expected"), [(1, 0.0), (19, 0.0), (20, 0.005), (30, 0.01)])
def test_worst_tenth_is_rounded_down_but_never_empty(clients, expected):
    evaluations = {str(i): Evaluation(i, 100, 1.0) for i in range(clients)}  # accuracies 0.00, 0.01, 0.02 ...
    assert round_metrics(RoundRecord(1, evaluations))["accuracy-worst10"] == expected


def test_round_without_evaluation_or_training_has_nulls():
    line = round_metrics(RoundRecord(2))
    empty = ("accuracy", "accuracy-mean", "accuracy-std", "accuracy-worst10", "loss", "train-loss")
    assert {key: line[key] for key in empty} == dict.fromkeys(empty)
    assert line["client-accuracy"] == {}
    assert line["seconds"] == {"generate": 0.0, "exchange": 0.0, "update": 0.0, "total": 0.0}


def test_failures_are_counted_by_reason():
    failures = [Failure("a", "late", ""), Failure("b", "not-finite", ""), Failure("c", "late", "")]
    assert round_metrics(RoundRecord(1, failures=failures))["failures"] == {"late": 2, "not-finite": 1}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_losses_that_are_not_finite_are_null_in_the_file(tracker, loss):
    tracker.log_round(
        record(1, train_losses={"a": (loss, 30)}) if loss is math.inf else RoundRecord(1, {"a": Evaluation(1, 2, loss)})
    )
    (line,) = lines_of(tracker)
    assert line["loss"] is None
    assert line["train-loss"] is None


def test_known_clients_count_in_an_accuracy_of_their_own_only():
    evaluations = {
        "a": Evaluation(2, 10, 1.0),
        "b": Evaluation(18, 30, 2.0),
        "c": Evaluation(5, 10, 8.0),
        "d": Evaluation(30, 30, 8.0),
    }
    line = round_metrics(RoundRecord(1, evaluations), known={"c", "d"})
    assert {key: line[key] for key in ("accuracy", "accuracy-mean", "accuracy-std", "accuracy-worst10", "loss")} == {
        "accuracy": 0.5,  # 20 of 40
        "accuracy-mean": 0.4,  # of 0.2 and 0.6
        "accuracy-std": 0.2,
        "accuracy-worst10": 0.2,
        "loss": 1.75,  # (10 * 1 + 30 * 2) / 40
    }
    assert line["accuracy-known"] == 0.875  # 35 of 40
    assert line["client-accuracy"] == {"a": 0.2, "b": 0.6, "c": 0.5, "d": 1.0}


def test_accuracy_of_known_clients_is_rounded_like_the_others():
    assert round_metrics(RoundRecord(1, {"c": Evaluation(1, 3, 1.0)}), known=["c"])["accuracy-known"] == 0.333333


def test_round_that_evaluated_only_known_clients_has_no_accuracy():
    line = round_metrics(RoundRecord(1, {"c": Evaluation(5, 10, 1.0)}), known={"c"})
    assert (line["accuracy"], line["accuracy-mean"], line["loss"], line["accuracy-known"]) == (None, None, None, 0.5)


def test_known_clients_that_were_not_evaluated_have_null():
    line = round_metrics(RoundRecord(1, {"a": Evaluation(5, 10, 1.0)}), known={"c"})
    assert (line["accuracy"], line["accuracy-known"]) == (0.5, None)


def test_loss_of_a_further_exchange_is_a_mean_over_samples_under_its_own_name():
    line = round_metrics(RoundRecord(1, extra_losses={"global": {"a": (1.0, 30), "b": (3.0, 10)}}))
    assert (line["global-loss"], line["global-clients"]) == (1.5, 2)
    assert (line["train-loss"], line["clients"]) == (None, 0)


def test_further_loss_that_is_not_finite_is_null():
    line = round_metrics(RoundRecord(1, extra_losses={"global": {"a": (math.inf, 30)}}))
    assert (line["global-loss"], line["global-clients"]) == (None, 1)


def test_each_further_exchange_has_a_loss_and_one_without_clients_has_none():
    several = {"global": {}, "teacher": {"a": (1.0, 30)}, "head-only": {"b": (2.0, 5), "c": (4.0, 15)}}
    line = round_metrics(RoundRecord(1, train_losses={"a": (1.0, 30)}, extra_losses=several))
    added = line.keys() - round_metrics(RoundRecord(1)).keys()
    assert {key: line[key] for key in added} == {
        "teacher-loss": 1.0,
        "teacher-clients": 1,
        "head-only-loss": 3.5,
        "head-only-clients": 2,
    }
    assert extra_losses(line) == ["teacher", "head-only"]


def test_numbers_of_a_method_stand_in_the_line_under_their_names():
    numbers = {"server-loss": 0.12345678, "synthetic-samples": 40, "temperature": math.nan, "drift": -math.inf}
    line = round_metrics(RoundRecord(1, numbers=numbers))
    added = line.keys() - round_metrics(RoundRecord(1)).keys()
    assert {key: line[key] for key in added} == {
        "server-loss": 0.123457,
        "synthetic-samples": 40,
        "temperature": None,
        "drift": None,
    }
    assert extra_losses(line) == []


@pytest.mark.parametrize("name", [*METRIC_KEYS, *OPTIONAL_KEYS, "global-loss", "global-clients"])
def test_a_number_cannot_take_the_name_of_another(name):
    with pytest.raises(ValueError, match=f"numbers '{name}'.* already"):
        round_metrics(RoundRecord(1, extra_losses={"global": {}}, numbers={name: 1.0}))


def test_a_further_loss_cannot_take_the_name_of_another():
    with pytest.raises(ValueError, match=r"extra_losses 'train': .*'train-loss' already"):
        round_metrics(RoundRecord(1, extra_losses={"train": {"a": (1.0, 30)}}))


def test_further_tests_of_a_round_have_means_over_samples_and_over_clients():
    line = round_metrics(further(1, correct=(2, 6, 20), after=(4, 8, 20), held_back=(1, 5)))
    added = line.keys() - round_metrics(record(1, correct=(2, 6, 20))).keys()
    assert {key: line[key] for key in added} == {
        "after-training-accuracy": 0.8,  # 32 of 40
        "after-training-accuracy-mean": 0.733333,  # of 0.4, 0.8 and 1.0
        "client-after-training-accuracy": {"a": 0.4, "b": 0.8, "c": 1.0},
        "validation-accuracy": 0.6,  # 6 of 10
        "validation-accuracy-mean": 0.6,  # of 0.2 and 1.0
        "client-validation-accuracy": {"a": 0.2, "b": 1.0},
    }
    assert line["accuracy-mean"] == 0.6


def test_further_tests_of_known_clients_count_in_no_mean():
    line = round_metrics(further(1, correct=(2, 6, 20), after=(4, 8, 20)), known={"a", "c"})
    assert (line["after-training-accuracy"], line["after-training-accuracy-mean"]) == (0.8, 0.8)
    assert line["client-after-training-accuracy"] == {"a": 0.4, "b": 0.8, "c": 1.0}
    none = round_metrics(further(1, correct=(2, 6, 20), after=(4, 8, 20)), known=set("abc"))
    assert (none["after-training-accuracy"], none["after-training-accuracy-mean"]) == (None, None)


def test_the_worst_epsilon_of_a_round_is_told_beside_each_clients_own():
    line = round_metrics(RoundRecord(1, privacy={"a": (2.5, 1e-5), "b": (0.25, 1e-6)}))
    assert line["epsilon"] == 2.5
    assert line["client-privacy"] == {"a": [2.5, 1e-5], "b": [0.25, 1e-6]}
    assert not {"epsilon", "client-privacy"} & round_metrics(RoundRecord(1)).keys()


def test_a_record_is_labelled_in_all_of_its_tests():
    labelled = further(1, correct=(1, 2, 3), after=(4, 5, 6)).labelled(str.upper)
    assert labelled.evaluations.keys() == labelled.extra_evaluations["after-training"].keys() == set("ABC")


def test_a_record_comes_back_from_its_fields():
    first = record(7, correct=(1, 2, 3), numbers={"server-loss": 0.25}, extra_losses={"global": {"a": (0.5, 30)}})
    values = json.loads(json.dumps(dataclasses.asdict(first)))
    again = RoundRecord.from_dict(values)
    assert round_metrics(again) == round_metrics(first)
    assert again.evaluations == first.evaluations
    assert again.failures == first.failures
    tested = further(2, correct=(1, 2, 3), after=(4, 5, 6), held_back=(1, 2, 3))
    assert RoundRecord.from_dict(json.loads(json.dumps(dataclasses.asdict(tested)))).extra_evaluations == (
        tested.extra_evaluations
    )
    assert RoundRecord.from_dict(dataclasses.asdict(first)) == first
