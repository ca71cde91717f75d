"""Which weights the accuracy of a line is of, and who tests them when."""

import pytest
from playing import (
    EVALUATE,
    FINISH,
    NUM_CLIENTS,
    SIZES,
    ByHand,
    Scripted,
    assert_same_network,
    cohorts,
    evaluated_by_hand,
    play,
    round_of,
    sizes_of,
    told,
)

from common.evaluation import TEST, VALIDATION

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing", "_new_process")


@pytest.mark.parametrize("schedule", ["joint", "per-client", "sequential"])
@pytest.mark.parametrize("anchor", [True, False])
def test_accuracy_of_a_line_is_that_of_the_weights_after_so_many_updates(run_config, schedule, anchor):
    played = play(run_config, num_rounds=3, schedule=schedule, anchor=anchor, hn_lr=0.02, client_lr=0.05)
    by_hand = ByHand.of(played.config, sizes_of(played))
    keys = list(sizes_of(played))
    seen = set()
    for server_round, line in enumerate(played.lines, start=1):
        deltas = played.deltas(server_round)
        if schedule == "sequential":
            for key in played.trained(server_round):
                by_hand.apply({key: deltas[key]})
        else:
            by_hand.apply(deltas)
        results = {key: evaluated_by_hand(played, key, theta, anchor) for key, theta in by_hand.theta(*keys).items()}
        assert line["round"] == server_round
        assert line["client-accuracy"] == pytest.approx(
            {key: result.accuracy for key, result in results.items()}, abs=1e-6
        )
        total = sum(result.total for result in results.values())
        assert line["accuracy"] == pytest.approx(sum(each.correct for each in results.values()) / total, abs=1e-6)
        assert line["loss"] == pytest.approx(sum(each.loss * each.total for each in results.values()) / total, abs=1e-5)
        seen.add(line["loss"])
    assert len(seen) == 3  # the weights did change, so that the wrong round's would show
    assert_same_network(played.method.hn, by_hand.hn)
    told = dict(played.result.evaluate_metrics_clientapp[3])
    assert told == pytest.approx({key: played.lines[2][key] for key in ("accuracy", "accuracy-mean")}, abs=1e-6)


def test_every_round_has_one_line_that_tells_of_its_weights(small):
    played = play(small, Scripted(), num_rounds=5)
    assert [line["round"] for line in played.lines] == [1, 2, 3, 4, 5]
    # A scripted test tells the round of its request: weights of round r go out for round r + 1, the last at the end,
    # which is asked for in the round after the last.
    assert [line["accuracy"] for line in played.lines] == [0.02, 0.03, 0.04, 0.05, 0.06]
    assert len(played.sent(FINISH)) == NUM_CLIENTS
    assert played.sent(EVALUATE) == []  # it costs no exchange of its own


def test_one_round_is_a_run(small):
    (line,) = play(small, Scripted(), num_rounds=1).lines
    assert (line["round"], line["accuracy"], line["clients"]) == (1, 0.02, 4)


def test_evaluation_every_second_round_and_after_the_last(small):
    played = play(small, Scripted(), num_rounds=5, evaluate_every=2)
    assert [line["accuracy"] for line in played.lines] == [None, 0.03, None, 0.05, 0.06]
    asked = {round_of(message): told(message).tests for _, message in played.sent()}
    all_of_them = (TEST, VALIDATION)
    assert asked == {1: (), 2: (), 3: all_of_them, 4: (), 5: all_of_them}


def test_half_participation_trains_half_and_tests_all(small):
    played = play(small, Scripted(), num_rounds=8, participation=0.5)
    for line in played.lines:
        trained = played.trained(line["round"])
        assert len(set(trained)) == len(trained) == 2
        assert line["client-train-loss"].keys() == set(trained)
        assert line["client-accuracy"].keys() == set("0123")
        # Nobody is tested twice.
        tested = [key for key, _ in played.sent(EVALUATE, line["round"])]
        assert sorted(tested + trained) == (list("0123") if line["round"] > 1 else trained)
    assert len(set(map(tuple, cohorts(played)))) > 1
    by_hand = ByHand.of(played.config, SIZES)
    for line in played.lines:
        by_hand.apply(played.deltas(line["round"]))
    assert_same_network(played.method.hn, by_hand.hn)
