"""MH-pFedHN on the server (Algorithm 1): schedules, chunk size, memory."""

import pytest
import torch
from playing import (
    EVALUATE,
    NUM_CLIENTS,
    PERSONAL,
    REGISTER,
    SIZES,
    ByHand,
    ChangingGrid,
    Scripted,
    array_of,
    assert_same_network,
    key_of,
    kind_of,
    play,
    replaced_delta,
    round_of,
    sizes_of,
    start,
)

from common.config import load_config
from common.errors import UserError
from common.protocol import THETA
from server_app.hypernetwork import HyperNetwork
from server_app.methods import mh_pfedhn

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing", "_new_process")


@pytest.mark.parametrize("schedule", ["joint", "per-client"])
def test_a_parallel_round_sends_all_weights_from_one_phi(small, schedule):
    played = play(small, Scripted(), schedule=schedule)
    by_hand = ByHand.of(played.config, SIZES)
    for server_round in (1, 2, 3):
        thetas = by_hand.theta(*SIZES)
        messages = played.sent(server_round=server_round)
        assert [key for key, _ in messages] == list("0123")
        assert all(torch.equal(array_of(message, THETA), thetas[key]) for key, message in messages)
        by_hand.apply(played.deltas(server_round))
    assert_same_network(played.method.hn, by_hand.hn)


def test_the_sequential_schedule_trains_one_client_at_a_time_each_from_the_phi_that_the_one_before_left(small):
    played = play(small, Scripted(), schedule="sequential", hold=lambda message: 2)
    events = [
        (kind_of(message), round_of(message), key_of(message.metadata.dst_node_id)) for message in played.grid.sent
    ]
    by_hand = ByHand.of(played.config, SIZES)
    orders = []
    for server_round in (1, 2, 3):
        order = played.trained(server_round)
        assert sorted(order) == list("0123")
        orders.append(order)
        deltas = played.deltas(server_round)
        assert list(deltas) == order  # each had answered before the next was asked
        for key, message in played.sent(server_round=server_round):
            assert torch.equal(array_of(message, THETA), by_hand.theta(key)[key])
            by_hand.apply({key: deltas[key]})
    assert len(set(map(tuple, orders))) > 1  # in random order
    assert_same_network(played.method.hn, by_hand.hn)
    # Weights between two rounds are tested on their own, before anybody trains.
    second_round = [kind for kind, server_round, _ in events if server_round == 2]
    assert second_round == [EVALUATE] * 4 + [PERSONAL] * 4


def test_the_three_schedules_lead_to_different_networks(small):
    weights = {
        schedule: play(small, Scripted(), schedule=schedule, run_name=schedule).method.hn.heads["4"].bias
        for schedule in ("joint", "per-client", "sequential")
    }
    assert not torch.equal(weights["joint"], weights["per-client"])
    assert not torch.equal(weights["sequential"], weights["per-client"])


@pytest.mark.parametrize("size", [3e38, -3e38])
def test_an_enormous_delta_does_not_destroy_the_weights_of_the_others(small, size):
    # Finite, so it passes the check of the message.
    special = {("0", PERSONAL, 1): replaced_delta(lambda delta: torch.full_like(delta, size))}
    special |= {("2", PERSONAL, 1): replaced_delta(lambda delta: torch.full_like(delta, size))}
    played = play(small, Scripted(special), max_delta_norm=1e300)
    assert [line["failures"] for line in played.lines] == [{}, {}, {}]
    assert all(torch.isfinite(parameter).all() for parameter in played.method.hn.parameters())


# Chunk size and memory ------------------------------------------------------------------------------------------------


FREE = 64 * 2**20  # bytes


@pytest.fixture
def _little_memory(monkeypatch):
    monkeypatch.setattr(mh_pfedhn, "free_memory", lambda device: FREE)


def told_memory(caplog):
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("Hypernetwork: ")]


@pytest.mark.parametrize(("sizes", "chunk_size"), [((2000, 5000), 31), ((2000, 2000), 31), ((63, 2000), 1)])
def test_an_automatic_chunk_size_gives_the_smallest_client_64_chunks(small, sizes, chunk_size):
    sizes = {str(i): sizes[i % 2] for i in range(NUM_CLIENTS)}
    played = play(small, Scripted(sizes=sizes), chunk_size="auto", num_rounds=1)
    assert played.method.hn.chunk_size == chunk_size
    assert played.method.hn.num_chunks("0") >= min(64, sizes["0"])
    assert played.lines[0]["clients"] == NUM_CLIENTS


def test_a_late_smaller_client_does_not_change_the_chunk_size(small):
    sizes = {"0": 2000, "1": 5000, "2": 20, "3": 2000}
    config = load_config(small | {"chunk-size": "auto"})
    played = start(config, ChangingGrid(Scripted(sizes=sizes), [{100, 101, 103}, {100, 101, 102, 103}]))
    assert played.method.hn.chunk_size == 31
    assert played.method.hn.num_chunks("2") == 1
    assert played.lines[-1]["client-train-loss"].keys() == set("0123")


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("method", ["mh-pfedhn", "mh-pfedhn-gd"])
def test_a_hypernetwork_that_does_not_fit_is_refused_before_it_takes_any_memory(small, monkeypatch, method):
    def register(*arguments):
        raise AssertionError("nothing may be allocated")

    monkeypatch.setattr(HyperNetwork, "register", register)
    sizes = dict.fromkeys(SIZES, 11_689_512)
    with pytest.raises(UserError, match=r"does not fit.*chunks of 3072.*of 0\.06 GiB.*hidden-dim \(now 8") as error:
        play(small, Scripted(sizes=sizes), chunk_size="auto", method=method)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("heads", ["by-tau", "by-architecture", "per-client", "none"])
def test_the_log_tells_the_memory_that_the_parameters_really_take(small, caplog, heads):
    played = play(small, Scripted(), heads=heads, num_rounds=1)
    (line,) = told_memory(caplog)
    hn = played.method.hn
    trunk = sum(parameter.numel() for parameter in hn.trunk.parameters())
    values = sum(parameter.numel() for parameter in hn.parameters()) - trunk
    assert line.startswith(f"Hypernetwork: {values:,} values more for 4 clients, chunks of 16; ")
    assert " GiB of " in line
    # With Adam's two moments; its step count is one value more each.
    moments = [
        value
        for state in played.method.optimizer.adam.state.values()
        for name, value in state.items()
        if name != "step"
    ]
    assert sum(value.numel() for value in moments) == 2 * (values + trunk)


def needed(values, generated):
    """Bytes, by what `test_memory.py` measures."""
    return 16.7 * values + 16.7 * generated


def test_what_just_fits_is_taken_and_a_byte_less_is_not(small, monkeypatch):
    taus = [4, 6, 4, 2]
    values = 4 * sum(taus) + (4 + 6 + 2) * 9 * 16  # embeddings; heads of H + 1 rows
    exactly = needed(values, sum(SIZES.values()))
    monkeypatch.setattr(mh_pfedhn, "free_memory", lambda device: exactly)
    assert play(small, Scripted(), num_rounds=1, run_name="fits").lines[0]["clients"] == 4
    monkeypatch.setattr(mh_pfedhn, "free_memory", lambda device: exactly - 1)
    with pytest.raises(UserError, match="does not fit"):
        play(small, Scripted(), num_rounds=1, run_name="does-not")


@pytest.mark.parametrize(("missing", "failures"), [(0, {}), (1, {"no-room": 1})])
def test_the_generated_weights_of_all_count_when_a_late_client_comes(small, monkeypatch, missing, failures):
    exactly = needed(4 * 4, sum(SIZES.values()))  # it brings an embedding; its head is there
    free = iter([FREE, exactly - missing])
    monkeypatch.setattr(mh_pfedhn, "free_memory", lambda device: next(free))
    played = start(load_config(small), ChangingGrid(Scripted(), [{100, 101, 103}, {100, 101, 102, 103}]))
    assert played.lines[1]["failures"] == failures


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("method", ["mh-pfedhn", "mh-pfedhn-gd"])
def test_a_late_client_that_does_not_fit_is_refused_and_the_run_goes_on(small, method):
    sizes = {"0": 50, "1": 50, "2": 11_689_512, "3": 90}
    config = load_config(small | {"method": method})
    played = start(config, ChangingGrid(Scripted(sizes=sizes), [{100, 101}, {100, 101, 102, 103}]))
    assert [line["failures"] for line in played.lines] == [{}, {"no-room": 1}, {}]  # and it is not asked again
    (failure,) = played.lines[1]["failure-list"]
    assert failure["client"] == "2"
    assert "does not fit" in failure["detail"]
    assert list(sizes_of(played)) == ["0", "1", "3"]
    assert played.trained(3) == ["0", "1", "3"]  # another one that came with it was let in
    assert set(played.method.hn.members) == {"0", "1", "3"}
    assert len(played.sent(REGISTER)) == NUM_CLIENTS
    table = (played.folder / "clients.csv").read_text() if (played.folder / "clients.csv").exists() else ""
    assert "11689512" not in table
