"""FedAvg on the server, against averages by hand."""

import pytest
import torch
from playing import (
    FINISH,
    NUM_CLIENTS,
    PERSONAL,
    SIZES,
    Scripted,
    array_of,
    cohorts,
    evaluated_by_hand,
    failures,
    play,
    raises,
)

from client_app.site.simulated import simulated_site
from common.protocol import THETA

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing", "_new_process")


def test_fedavg_weighs_clients_of_a_size_by_their_samples(small):
    # Three clients of four parameters and one alone of two; num-examples 10, 20, 30, 40.
    sizes = {"0": 4, "1": 2, "2": 4, "3": 4}
    values = {
        ("0", 1): [1.0, 0.0, 8.0, 0.0],
        ("2", 1): [0.0, 4.0, 0.0, 0.0],
        ("3", 1): [2.0, 0.0, 0.0, -4.0],
        ("1", 1): [5.0, -3.0],
        ("0", 2): [8.0, 8.0, 8.0, 8.0],
        ("2", 2): [0.0, 0.0, 0.0, 0.0],
        ("3", 2): [0.0, 0.0, 0.0, 2.0],
        ("1", 2): [1.0, 1.0],
    }
    answer = Scripted(sizes=sizes, delta=lambda key, server_round: torch.tensor(values[key, server_round]))
    played = play(small, answer, method="fedavg", num_rounds=2)
    after_1 = {4: torch.tensor([-9.0, -12.0, -8.0, 16.0]) / 8, 2: torch.tensor([-5.0, 3.0])}
    after_2 = {4: torch.tensor([-17.0, -20.0, -16.0, 0.0]) / 8, 2: torch.tensor([-6.0, 2.0])}
    for server_round, (before, kind) in enumerate(
        [({4: torch.zeros(4), 2: torch.zeros(2)}, PERSONAL), (after_1, PERSONAL)], start=1
    ):
        for key, message in played.sent(kind, server_round):
            torch.testing.assert_close(array_of(message, THETA), before[sizes[key]])
    for key, message in played.sent(FINISH):
        torch.testing.assert_close(array_of(message, THETA), after_2[sizes[key]])


def test_fedavg_averages_over_those_who_answered(small):
    answer = Scripted(
        {("2", PERSONAL): raises},
        sizes={key: 2 for key in SIZES},
        delta=lambda key, _: torch.ones(2) * int(key),
    )
    played = play(small, answer, method="fedavg", num_rounds=1)
    # (10 * 0 + 20 * 1 + 40 * 3) / 70
    torch.testing.assert_close(played.method.averages[2], -torch.full((2,), 2.0))


def test_fedavg_equals_the_average_of_weights_that_pytorch_trained(run_config):
    played = play(run_config, method="fedavg", models="lenet", num_rounds=1)
    sites = [simulated_site(played.config, i, NUM_CLIENTS) for i in range(NUM_CLIENTS)]
    total = sum(len(site.train) for site in sites)
    trained = [site.personal.anchor - played.deltas(1)[site.key] for site in sites]  # the first vector is zero
    average = sum(len(site.train) / total * weights for site, weights in zip(sites, trained, strict=True))
    final = array_of(played.sent(FINISH)[0][1], THETA)
    torch.testing.assert_close(sites[0].personal.anchor + final, average)
    assert played.lines[0]["client-accuracy"] == pytest.approx(
        {site.key: evaluated_by_hand(played, site.key, final).accuracy for site in sites}, abs=1e-6
    )


def test_a_size_for_which_there_is_no_memory_is_left_out_and_the_others_go_on(small, monkeypatch):
    monkeypatch.setattr("server_app.methods.fedavg.free_memory", lambda device: 24 * (2 + 5))
    sizes = {"0": 1000, "1": 2, "2": 5, "3": 5}
    played = play(small, Scripted(sizes=sizes), method="fedavg")
    assert cohorts(played) == [list("123")] * 3
    assert failures(played) == [{"no-room": 1}, {}, {}]
    (failure,) = played.lines[0]["failure-list"]
    assert failure["detail"].startswith("An average of 1,000 parameters (K) takes 0.00 GiB")
    assert set(played.method.averages) == {2, 5}
