"""What a client claims of itself: numbers of samples, losses, epsilons. One that lies must not spoil it for all."""

import pytest
import torch
from in_process import InProcessGrid
from playing import (
    FINISH,
    PERSONAL,
    REGISTER,
    SIZES,
    Scripted,
    ScriptedGD,
    failures,
    play,
    settings_for,
    start,
    strategy_for,
    with_metric,
    with_metrics,
)

from common.config import load_config
from server_app import checkpoint
from server_app.methods.mh_pfedhn_g import GLOBAL_KEY
from server_app.optim import HyperNetworkOptimizer

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing", "_new_process")

MANY = 10**7  # samples, as many as max-samples allows


def declares(key, count):
    """A registration with another number of samples."""

    def special(message, reply):
        reply.content["registration"][key] = count
        return reply

    return special


def at_sites(small, answer, **overrides):
    """A run on real sites."""
    settings = settings_for(small, **overrides)
    config = load_config(settings)
    grid = InProcessGrid(answer, len(answer.sizes), settings)
    return start(config, grid, strategy_for(config, nodes_may_come=True))


def said_of_weights(caplog):
    return [record.getMessage() for record in caplog.records if "max-client-weight" in record.getMessage()]


# Counts ---------------------------------------------------------------------------------------------------------------


def test_a_boast_of_right_answers_beyond_the_registered_tests_changes_no_headline(small):
    boasts = with_metrics({"test-correct": 10**15, "test-total": 10**15, "test-loss": 0.0})
    played = play(small, Scripted({("1", PERSONAL, 2): boasts, ("1", FINISH): boasts}), checkpoint_every=1)
    assert failures(played) == [{}, {"wrong-count": 1}, {"wrong-count": 1}]
    assert [line["accuracy"] for line in played.lines] == [0.02, 0.03, 0.04]
    assert [line["accuracy-mean"] for line in played.lines] == [0.02, 0.03, 0.04]


def test_who_registers_many_tests_moves_the_best_round_by_one_vote_and_no_more(small):
    # Client 3 says that it got all of a million right after round 1, and none later; the others improve.
    special = {("3", REGISTER): declares("test-samples", MANY)}
    for server_round, correct, of_liar in ((2, 20, MANY), (3, 80, 0)):
        special |= {(key, PERSONAL, server_round): with_metric("test-correct", correct) for key in "012"}
        special["3", PERSONAL, server_round] = with_metrics({"test-correct": of_liar, "test-total": MANY})
    special |= {(key, FINISH): with_metric("test-correct", 0) for key in "012"}
    special["3", FINISH] = with_metrics({"test-correct": 0, "test-total": MANY})
    played = play(small, Scripted(special), checkpoint_every=1)
    assert failures(played) == [{}, {}, {}]
    first, second, _ = played.lines
    assert first["accuracy"] > 0.99 > 0.01 > second["accuracy"]
    assert (first["accuracy-mean"], second["accuracy-mean"]) == (0.4, 0.6)
    assert checkpoint.load(played.folder / "checkpoints" / "best.pt").server_round == 2


@pytest.mark.parametrize("deployed", [False, True])
def test_a_number_of_samples_that_was_not_registered_costs_the_round_and_moves_no_mean(small, deployed):
    answer = Scripted(
        {("3", PERSONAL): with_metric("num-examples", 10**12)},
        sizes=dict.fromkeys(SIZES, 2),
        delta=lambda key, _: torch.ones(2) * int(key),
    )
    played = (at_sites if deployed else play)(small, answer, method="fedavg", num_rounds=1)
    assert failures(played) == [{"wrong-count": 1}]
    # (10 * 0 + 20 * 1 + 30 * 2) / 60
    torch.testing.assert_close(played.method.averages[2], torch.full((2,), -80 / 60))


@pytest.mark.parametrize(
    ("max_client_weight", "mean", "weight"),
    [
        (0.5, 260 / 120, "50.0"),  # 10, 20 and 30 of the others, and 60
        (0.4, 200 / 100, "40.0"),  # and 40
        (0.1, 60 / 40, "25.0"),  # four clients: a quarter each
    ],
)
def test_a_site_that_registers_many_samples_has_its_share_of_fedavgs_mean_and_no_more(
    small, caplog, max_client_weight, mean, weight
):
    played = at_sites(small, claiming(), method="fedavg", num_rounds=1, max_client_weight=max_client_weight)
    (line,) = played.lines
    torch.testing.assert_close(played.method.averages[2], torch.full((2,), -mean))
    assert line["train-loss"] == pytest.approx(1 + mean)  # the loss of client i is i + 1
    assert line["failures"] == {}
    assert line["client-capped"]["3"] == pytest.approx(1.0, abs=1e-5)
    said = said_of_weights(caplog)
    assert f"client 3 claims 100.0 % of the samples, counts {weight} % (max-client-weight)." in said[-1]
    assert line["capped-clients"] == len(said) == (3 if max_client_weight == 0.1 else 1)


def claiming():
    """Deltas are the number of the client; client 3 registers ten million samples."""
    return Scripted(
        {
            ("3", REGISTER): declares("train-samples", MANY),
            ("3", PERSONAL): with_metric("num-examples", MANY),
        },
        sizes=dict.fromkeys(SIZES, 2),
        delta=lambda key, _: torch.ones(2) * int(key),
    )


def test_simulated_clients_are_the_programs_own_and_count_with_what_they_hold(small, caplog):
    played = play(small, claiming(), method="fedavg", num_rounds=1)
    torch.testing.assert_close(played.method.averages[2], torch.full((2,), -3.0), rtol=1e-4, atol=0)
    assert "capped-clients" not in played.lines[0]
    assert said_of_weights(caplog) == []


def test_that_a_weight_is_cut_is_said_once_a_run_and_counted_every_round(small, caplog):
    played = at_sites(small, claiming(), method="fedavg")
    assert [line["capped-clients"] for line in played.lines] == [1, 1, 1]
    assert len(said_of_weights(caplog)) == 1


def test_a_site_that_registers_many_samples_has_its_share_of_the_global_step_and_no_more(small, monkeypatch):
    steps = []
    apply = HyperNetworkOptimizer.apply

    def noted(self, deltas):
        steps.extend(delta for key, delta in deltas.items() if key == GLOBAL_KEY)
        return apply(self, deltas)

    monkeypatch.setattr(HyperNetworkOptimizer, "apply", noted)
    answer = ScriptedGD(
        {
            ("2", REGISTER): declares("train-samples", MANY),
            ("2", "global_step"): with_metric("num-examples", MANY),
            ("2", PERSONAL): with_metric("num-examples", MANY),
        }
    )
    played = at_sites(small, answer, method="mh-pfedhn-gd", num_rounds=1)
    assert failures(played) == [{}]
    (step,) = steps
    # 10 and 20 samples of the others, so 30 of 60 for it.
    expected = sum(weight / 60 * answer.global_delta(key, 1) for key, weight in {"0": 10, "1": 20, "2": 30}.items())
    torch.testing.assert_close(step, expected)
    assert played.lines[0]["global-loss"] == pytest.approx((10 * 5 + 20 * 6 + 30 * 7) / 60)


# Losses and epsilons --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [1.7e308, -1.7e308])
def test_a_huge_loss_costs_its_client_the_round_and_leaves_the_mean_of_the_others(small, loss):
    trained, tested = with_metric("train-loss", loss), with_metric("test-loss", loss)
    played = play(small, Scripted({("0", PERSONAL, 1): trained, ("1", PERSONAL, 1): trained, ("2", FINISH): tested}))
    assert failures(played) == [{"huge-loss": 2}, {}, {"huge-loss": 1}]
    assert played.lines[0]["train-loss"] == pytest.approx((30 * 3 + 40 * 4) / 70)
    assert played.lines[2]["loss"] == 0.5
    assert f"{loss:.3g}" in played.lines[0]["failure-list"][0]["detail"]


def test_losses_up_to_the_limit_have_a_mean(small):
    large = with_metric("train-loss", 1e12)
    played = play(small, Scripted({(key, PERSONAL): large for key in SIZES}))
    assert [line["train-loss"] for line in played.lines] == [1e12] * 3


def test_an_epsilon_that_is_nobodys_costs_its_client_the_round_and_is_not_the_runs(small):
    spent = {"privacy-epsilon": 2.0, "privacy-delta": 1e-5}
    special = {(key, PERSONAL): with_metrics(spent) for key in "03"}
    special["1", PERSONAL] = with_metrics(spent | {"privacy-epsilon": 1e300})
    played = play(small, Scripted(special))
    assert failures(played) == [{"malformed": 1}] * 3
    assert [line["epsilon"] for line in played.lines] == [2.0] * 3
    assert played.lines[0]["client-privacy"].keys() == set("03")
