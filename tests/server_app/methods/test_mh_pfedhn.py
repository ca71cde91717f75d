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
from server_app import room
from server_app.client import Client
from server_app.hypernetwork import HyperNetwork
from server_app.methods.mh_pfedhn import MHpFedHN
from server_app.room import BYTES_A_GENERATED_VALUE, BYTES_A_VALUE

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
    monkeypatch.setattr(room, "free_memory", lambda device: FREE)


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


@pytest.mark.parametrize("lie", [1, 20, 10**8])
def test_a_single_size_that_is_like_no_other_does_not_decide_the_chunk_size(small, monkeypatch, lie):
    monkeypatch.setattr(room, "free_memory", lambda device: FREE)
    sizes = {"0": 2000, "1": lie, "2": 2000, "3": 5000}
    played = play(small, Scripted(sizes=sizes), chunk_size="auto", num_rounds=1)
    assert played.method.hn.chunk_size == 31
    assert played.method.hn.num_chunks("0") == 65


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("method", ["mh-pfedhn", "mh-pfedhn-gd"])
def test_whom_there_is_no_room_for_takes_no_memory_and_too_few_others_end_the_run(small, monkeypatch, caplog, method):
    def register(*arguments):
        raise AssertionError("nothing may be allocated")

    monkeypatch.setattr(HyperNetwork, "register", register)
    sizes = dict.fromkeys(SIZES, 11_689_512)
    with pytest.raises(UserError, match=r"^0 clients are connected and registered"):
        play(small, Scripted(sizes=sizes), chunk_size="auto", method=method)
    told = [record.getMessage() for record in caplog.records if "no-room" in record.getMessage()]
    assert [line.split(":")[1] for line in told] == [f" client {key}" for key in SIZES]
    assert "does not fit" in told[0]
    assert "chunks of 3072" in told[0]
    assert "of 0.06 GiB that are free" in told[0]
    assert "hidden-dim (now 8" in told[0]


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("method", ["mh-pfedhn", "mh-pfedhn-gd"])
def test_a_client_of_the_start_that_asks_for_too_much_is_left_out_by_name_and_the_run_goes_on(small, method):
    """The others are served as if it were not there."""
    answer = Scripted(sizes=SIZES | {"1": 10**8})
    played = play(small, answer, method=method, run_name="greedy")
    assert [line["failures"] for line in played.lines] == [{"no-room": 1}, {}, {}]  # and it is not asked again at once
    (failure,) = played.lines[0]["failure-list"]
    assert failure["client"] == "1"
    assert "GiB of 0.06 GiB that are free" in failure["detail"]
    assert played.trained(1) == played.trained(3) == list("023")

    def is_away(message, reply):
        raise RuntimeError("away")

    without = play(small, Scripted({("1", REGISTER): is_away}), method=method, run_name="without")
    assert_same_network(played.method.hn, without.method.hn)


@pytest.mark.usefixtures("_little_memory")
def test_each_is_judged_by_what_those_with_less_leave(small):
    """A head of 300,000 values fits once beside the small ones, and a second one of another size does not."""
    sizes = {"0": 300_016, "1": 50, "2": 300_000, "3": 300_000}
    played = play(small, Scripted(sizes=sizes), num_rounds=1)
    assert played.trained(1) == list("123")
    assert played.lines[0]["failures"] == {"no-room": 1}


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


def least_memory(monkeypatch, runs_with):
    """The least free memory, in bytes, with which a run admits all."""
    too_little, enough = 0, FREE
    while enough - too_little > 1:
        middle = (too_little + enough) // 2
        monkeypatch.setattr(room, "free_memory", lambda device, free=middle: free)
        too_little, enough = (too_little, middle) if runs_with() else (middle, enough)
    return enough


@pytest.mark.parametrize("heads", ["by-tau", "none"])
def test_what_all_are_judged_by_grows_with_what_they_really_bring(small, monkeypatch, heads):
    """Bytes for each value of the network and of what is generated; `test_memory.py` measures how many they are."""

    def clients(number):
        return [Client(str(each), size, each) for each, size in enumerate(list(SIZES.values()) * number)]

    def method_of(number):
        method = MHpFedHN(load_config(small | {"heads": heads}))
        return method if not method.admit(clients(number)) else None

    least = {number: least_memory(monkeypatch, lambda number=number: method_of(number)) for number in (1, 2)}
    monkeypatch.setattr(room, "free_memory", lambda device: FREE)
    values = {number: sum(each.numel() for each in method_of(number).hn.parameters()) for number in (1, 2)}
    more = values[2] - values[1] + sum(SIZES.values())
    assert least[2] - least[1] == pytest.approx(more * BYTES_A_VALUE, abs=2)
    assert BYTES_A_VALUE == BYTES_A_GENERATED_VALUE  # as `more` counts them together


def test_the_generated_weights_of_all_count_when_a_late_client_comes(small, monkeypatch):
    """The second client of an architecture brings an embedding alone; with more clients before it, it needs more."""

    def least_after(number):
        before = [Client(str(each), 50, each) for each in range(number)]

        def admits():
            with monkeypatch.context() as patch:
                patch.setattr(room, "free_memory", lambda device: FREE)
                method = MHpFedHN(load_config(small))
                assert method.admit(before) == {}
            return not method.admit([Client("late", 50, 99)])

        return least_memory(monkeypatch, admits)

    assert least_after(5) - least_after(3) == pytest.approx(2 * 50 * BYTES_A_GENERATED_VALUE, abs=2)


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
