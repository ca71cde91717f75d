"""Runs that test more than weights as deployed on the test samples: what that adds, and what it leaves alone."""

import pytest
import torch
from fresh_process import new_process
from in_process import InProcessGrid
from playing import (
    FINISH,
    NUM_CLIENTS,
    PERSONAL,
    Scripted,
    assert_same_state,
    play,
    round_of,
    settings_for,
    start,
    strategy_for,
    timeless,
    told,
    with_metrics,
    without_metric,
)

from common.config import load_config
from common.evaluation import AFTER_TRAINING, EVALUATIONS, TEST, VALIDATION
from server_app import checkpoint
from server_app.results import read_run

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing", "_new_process")

AFTER = {"after-training-accuracy", "after-training-accuracy-mean", "client-after-training-accuracy"}
ON_VALIDATION = {"validation-accuracy", "validation-accuracy-mean", "client-validation-accuracy"}


def models(played):
    return [
        torch.load(played.folder / "clients" / str(i) / "personal-model.pt", weights_only=True)
        for i in range(NUM_CLIENTS)
    ]


@pytest.mark.parametrize("method", ["mh-pfedhn", "mh-pfedhn-gd", "fedavg", "local"])
def test_with_and_without_tests_after_training_a_run_is_the_same_to_the_last_bit(run_config, method):
    settings = run_config | {"models": "lenet,resnet10", "participation": 0.75, "num-rounds": 3, "batch-size": 16}
    without = play(settings_for(settings, method=method), run_name="without")
    new_process()
    with_it = play(settings_for(settings, method=method), run_name="with", evaluate_after_training=True)
    lines = [{key: line[key] for key in line if key not in AFTER} for line in with_it.lines]
    assert timeless(lines) == timeless(without.lines)
    assert all(line["client-after-training-accuracy"].keys() == set("0123") for line in with_it.lines)
    assert not any(line.keys() & AFTER for line in without.lines)
    if method != "local":
        assert_same_state(with_it, without)
    for one, other in zip(models(with_it), models(without), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(line["after-training-accuracy"] != line["accuracy"] for line in with_it.lines)


def test_what_further_tests_find_stands_in_the_line_of_the_weights_that_they_are_of(small):
    played = play(small, Scripted(tests=EVALUATIONS), num_rounds=5, evaluate_every=2, evaluate_after_training=True)
    lines = played.lines
    # A scripted test tells the round of its request, and weights of round r go out for round r + 1.
    assert [line["accuracy"] for line in lines] == [None, 0.03, None, 0.05, 0.06]
    assert [line.get("after-training-accuracy-mean") for line in lines] == [None, 0.53, None, 0.55, 0.56]
    assert [line.get("validation-accuracy-mean") for line in lines] == [None, 0.87, None, 0.85, 0.84]
    assert not (lines[0].keys() | lines[2].keys()) & (AFTER | ON_VALIDATION)
    assert lines[1]["client-validation-accuracy"] == dict.fromkeys("0123", 0.87)
    assert lines[1]["client-after-training-accuracy"] == dict.fromkeys("0123", 0.53)
    asked = {round_of(message): told(message).tests for _, message in (*played.sent(), *played.sent(FINISH))}
    assert asked == {1: (), 2: (), 3: EVALUATIONS, 4: (), 5: EVALUATIONS, 6: EVALUATIONS}


def test_without_the_key_nothing_is_tested_after_training(small):
    played = play(small, Scripted(tests=EVALUATIONS))
    assert {told(message).tests for _, message in played.sent(FINISH)} == {(TEST, VALIDATION)}
    assert not any(line.keys() & AFTER for line in played.lines)


def test_a_client_without_a_result_of_its_own_lacks_it_and_loses_nothing_else(small):
    special = {("1", PERSONAL, 2): without_metric("after-training-correct")}
    first, second, _ = play(small, Scripted(special, tests=EVALUATIONS), evaluate_after_training=True).lines
    assert first["client-after-training-accuracy"].keys() == set("023")
    assert first["client-accuracy"].keys() == first["client-validation-accuracy"].keys() == set("0123")
    assert second["failures"] == {}


# The best round -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tests", [EVALUATIONS, (TEST, AFTER_TRAINING)], ids=["validation", "test"])
def test_the_best_round_is_chosen_on_validation_samples_where_there_are_any(small, tests):
    played = play(small, Scripted(tests=tests), num_rounds=4, checkpoint_every=1, evaluate_after_training=True)
    best = checkpoint.load(played.folder / "checkpoints" / "best.pt").server_round
    headline = read_run(played.folder).headline()
    assert (headline["best-accuracy"], headline["best-round"]) == (0.05, 4)
    # On validation samples the scripted clients get worse, on the test samples better.
    chosen_on, round_, accuracy = (VALIDATION, 1, 0.02) if VALIDATION in tests else (TEST, 4, 0.05)
    assert best == headline["chosen-round"] == round_
    assert headline["best-chosen-on"] == chosen_on
    assert (headline["chosen-accuracy"], headline["chosen-accuracy-mean"]) == (accuracy, accuracy)


def test_a_round_with_few_validations_is_not_the_best_by_them(small):
    special = {(key, PERSONAL, 3): without_metric("validation-correct") for key in "012"}
    special["3", PERSONAL, 3] = with_metrics({"validation-correct": 100})
    played = play(small, Scripted(special, tests=EVALUATIONS), num_rounds=4, checkpoint_every=1)
    assert played.lines[1]["validation-accuracy-mean"] == 1.0
    assert checkpoint.load(played.folder / "checkpoints" / "best.pt").server_round == 1


def test_a_real_site_is_not_asked_for_validation_and_decides_nothing_by_it(small):
    """None holds samples back, so that one which says so would choose the best round alone."""
    boasts = with_metrics({"validation-correct": 100, "validation-total": 100, "validation-loss": 0.0})
    settings = settings_for(small, checkpoint_every=1, evaluate_after_training=True)
    config = load_config(settings)
    answer = Scripted({("1", PERSONAL, 2): boasts}, tests=EVALUATIONS)
    grid = InProcessGrid(answer, NUM_CLIENTS, settings)
    played = start(config, grid, strategy_for(config, nodes_may_come=True))
    assert {told(message).tests for _, message in played.sent(FINISH)} == {(TEST, AFTER_TRAINING)}
    assert not any(line.keys() & ON_VALIDATION for line in played.lines)
    assert played.lines[0].keys() >= AFTER
    assert checkpoint.load(played.folder / "checkpoints" / "best.pt").server_round == 3
