"""Who registers, who joins and leaves between rounds, and how many clients a round waits for."""

import pytest
import torch
from flwr.app import Message
from in_process import InProcessGrid
from playing import (
    FINISH,
    NUM_CLIENTS,
    PERSONAL,
    REGISTER,
    SIZES,
    Arriving,
    ByHand,
    ChangingGrid,
    Scripted,
    array_of,
    assert_same_network,
    assert_same_state,
    at,
    cohorts,
    echo,
    failures,
    honest,
    kind_of,
    play,
    round_of,
    settings_in,
    sizes_of,
    start,
    strategy_for,
    timeless,
)

from client_app.site.simulated import simulated_site
from common import protocol
from common.config import load_config
from common.errors import UserError
from common.models import build_model
from common.options import options_of
from common.params import ParameterVector
from common.protocol import THETA
from common.refusal import PASSING, encode_refusal
from common.schema import Label
from server_app.app import serve
from server_app.rounds.membership import wait_for_nodes

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing", "_new_process")


def test_a_registration_tells_key_size_and_numbers_of_samples_and_nothing_else(run_config):
    played = play(run_config, num_rounds=1)
    greetings = [message for _, message in played.sent(REGISTER)]
    assert len(greetings) == NUM_CLIENTS
    for greeting in greetings:
        told = {"protocol-version": protocol.VERSION, "method": "mh-pfedhn", "run-name": "run", "seed": 0, "facts": []}
        assert dict(greeting.content["instructions"]) == told
        # Settings of the client's half and none of the server's.
        assert settings_in(greeting) == {
            key: played.config.method_settings[key] for key in options_of(played.config.halves.client.Settings)
        }
        assert set(greeting.content) == {"instructions", "settings"}
    model_sizes = [ParameterVector(build_model(name, (3, 8, 8), 4, seed=0)).size for name in ("lenet", "mlp")]
    replies = [reply for _, reply in played.received(REGISTER)]
    assert [{name: dict(record) for name, record in reply.content.items()} for reply in replies] == [
        {
            "registration": {
                "client-key": str(i),
                "num-params": model_sizes[i % 2],
                "train-samples": len(site.train),
                "test-samples": len(site.test),
            }
        }
        for i, site in enumerate(simulated_site(played.config, i, NUM_CLIENTS) for i in range(NUM_CLIENTS))
    ]


def test_a_node_whose_trainer_was_not_there_is_asked_again_after_a_while(small, monkeypatch):
    asked = []

    def comes_up(message, reply):
        asked.append(message)
        if len(asked) == 1:
            raise RuntimeError("the trainer is being restarted")
        return reply

    monkeypatch.setattr("server_app.rounds.membership._SHORT_REST", 0.0)
    played = play(small, Scripted({("1", REGISTER): comes_up}))
    assert len(asked) == 2
    assert [line["failures"] for line in played.lines] == [{"client-raised": 1}, {}, {}]
    assert [line["clients"] for line in played.lines] == [NUM_CLIENTS - 1, NUM_CLIENTS, NUM_CLIENTS]


@pytest.mark.parametrize(("reason", "is_asked_again"), [(reason, True) for reason in PASSING] + [("version", False)])
def test_a_site_that_refuses_to_register_is_asked_again_soon_if_it_may_pass(small, monkeypatch, reason, is_asked_again):
    asked = []

    def refuses_once(message, reply):
        asked.append(message)
        return Message(encode_refusal(reason), reply_to=message) if len(asked) == 1 else reply

    monkeypatch.setattr("server_app.rounds.membership._SHORT_REST", 0.0)
    played = play(small, Scripted({("1", REGISTER): refuses_once}))
    assert [line["failures"] for line in played.lines] == [{reason: 1}, {}, {}]
    assert len(asked) == (2 if is_asked_again else 1)
    assert ("1" in sizes_of(played)) == is_asked_again


def test_a_node_that_cannot_register_is_reported_and_the_others_go_on(small):
    def breaks(message, reply):
        raise RuntimeError("no partition")

    def says_too_much(message, reply):
        reply.content["registration"]["model"] = "resnet18"
        return reply

    special = {("1", REGISTER): breaks, ("3", REGISTER): says_too_much}
    played = play(small, Scripted(special))
    assert list(sizes_of(played)) == ["0", "2"]
    first, *later = played.lines
    assert first["failures"] == {"client-raised": 1, "malformed": 1}
    assert [(each["client"], each["reason"]) for each in first["failure-list"]] == [
        ("node 101", "client-raised"),
        ("node 103", "malformed"),
    ]
    assert "no partition" in first["failure-list"][0]["detail"]
    assert all(line["failures"] == {} for line in later)  # and not asked again at once
    assert [line["clients"] for line in played.lines] == [2, 2, 2]
    assert len(played.sent(REGISTER)) == NUM_CLIENTS


def test_a_key_of_two_live_nodes_goes_to_one_of_them(small):
    def as_client_0(message, reply):
        reply.content["registration"]["client-key"] = "0"
        return reply

    played = play(small, Scripted({("2", REGISTER): as_client_0}))
    assert list(sizes_of(played)) == ["0", "1", "3"]
    assert played.lines[0]["failures"] == {"key-in-use": 1}
    assert played.lines[0]["failure-list"][0]["client"] == "node 102"
    assert set(played.trained(1)) == {"0", "1", "3"}


def test_too_few_clients_end_the_run_with_what_to_do(small):
    def breaks(message, reply):
        raise RuntimeError("no data")

    special = {(key, REGISTER): breaks for key in "123"}
    with pytest.raises(UserError, match="1 clients are connected and registered after 0 s, but min-clients is 2"):
        play(small, Scripted(special))


@pytest.mark.parametrize("simulated", [True, False])
def test_too_few_nodes_are_a_mistake_that_a_user_can_mend(run_config, simulated):
    grid = InProcessGrid(honest, 1, run_config)
    with pytest.raises(UserError, match="min-clients"):
        serve(grid, load_config(run_config | {"classes-per-client": 4}), simulated=simulated)


def test_a_client_above_max_params_is_refused_when_it_registers_and_the_others_go_on(small):
    played = play(small, Scripted(), max_params=50)
    assert cohorts(played) == [list("023")] * 3  # 50 is not above 50
    assert failures(played) == [{"too-large": 1}, {}, {}]  # and it is not asked again
    (failure,) = played.lines[0]["failure-list"]
    assert failure == {
        "client": "node 101",
        "reason": "too-large",
        "detail": "num-params is 90, above max-params (50)",
    }
    assert set(played.method.hn.members) == set("023")


@pytest.mark.parametrize("key", ["train-samples", "test-samples"])
def test_a_client_above_max_samples_is_refused_when_it_registers_and_the_others_go_on(small, key):
    def boasts(message, reply):
        reply.content["registration"][key] = 10_000_001
        return reply

    played = play(small, Scripted({("1", REGISTER): boasts}))
    assert cohorts(played) == [list("023")] * 3
    assert failures(played) == [{"too-many-samples": 1}, {}, {}]  # and it is not asked again
    (failure,) = played.lines[0]["failure-list"]
    assert failure["detail"] == f"{key} is 10,000,001, above max-samples (10,000,000)"


# Who comes and goes ---------------------------------------------------------------------------------------------------


def test_a_client_that_joins_between_rounds_is_served_from_the_next_round_on(small):
    grid = ChangingGrid(Scripted(), [{100, 101, 103}, {100, 101, 102, 103}])
    played = start(load_config(small), grid)
    assert [played.trained(server_round) for server_round in (1, 2, 3)] == [list("013"), list("0123"), list("0123")]
    assert [line["failures"] for line in played.lines] == [{}, {}, {}]
    # It is not in the cohort of round 1, but receives what round 1 led to before it is trained itself.
    assert [set(line["client-accuracy"]) for line in played.lines] == [set("0123")] * 3

    by_hand = ByHand.of(played.config, {key: SIZES[key] for key in "013"})
    by_hand.apply(played.deltas(1))
    by_hand.hn.register("2", SIZES["2"])
    assert torch.equal(array_of(dict(played.sent(server_round=2))["2"], THETA), by_hand.theta(*"0123")["2"])
    for server_round in (2, 3):
        by_hand.apply(played.deltas(server_round))
    assert_same_network(played.method.hn, by_hand.hn)


def test_a_late_client_with_another_number_of_chunks_is_served_too(small):
    sizes = {"0": 50, "1": 50, "2": 300, "3": 50}
    played = start(load_config(small), ChangingGrid(Scripted(sizes=sizes), [{100, 101, 103}, {100, 101, 102, 103}]))
    assert played.lines[2]["client-train-loss"].keys() == set("0123")
    by_hand = ByHand.of(played.config, {key: sizes[key] for key in "013"})
    by_hand.apply(played.deltas(1))
    by_hand.hn.register("2", 300)
    for server_round in (2, 3):
        by_hand.apply(played.deltas(server_round))
    assert_same_network(played.method.hn, by_hand.hn)


class Restarting(Scripted):
    """Client 2 first speaks through node 102, and through node 103 after a restart; there is no client 3."""

    def __call__(self, message, context):
        if context.node_id == 103:
            context.node_config["partition-id"] = 2
        return super().__call__(message, context)


def play_restart(small, *connected):
    return start(load_config(small | {"num-rounds": len(connected)}), ChangingGrid(Restarting(), connected))


def nodes_served(played, server_round):
    return [message.metadata.dst_node_id for _, message in played.sent(server_round=server_round)]


def test_a_client_that_comes_back_through_a_new_node_goes_on_with_its_embedding(small):
    played = play_restart(small, {100, 101, 102}, {100, 101, 103})
    assert nodes_served(played, 2) == [100, 101, 103]
    assert list(sizes_of(played)) == ["0", "1", "2"]
    assert played.lines[1]["clients"] == 3
    assert played.lines[1]["failures"] == {}


def test_a_client_whose_old_node_seems_alive_for_a_while_is_let_in_when_that_is_gone(small, monkeypatch):
    monkeypatch.setattr("server_app.rounds.membership._SHORT_REST", 0.0)
    # A SuperNode that is killed stays among the nodes for up to a minute, and without authentication comes back
    # under another id before that.
    everyone = {100, 101, 102, 103}
    played = play_restart(small, everyone - {103}, everyone, everyone - {102}, everyone - {102})
    assert played.lines[1]["failures"] == {"key-in-use": 1}
    assert nodes_served(played, 2) == [100, 101, 102]  # the claim takes nothing from who holds the key
    assert nodes_served(played, 3) == nodes_served(played, 4) == [100, 101, 103]
    assert played.lines[2]["failures"] == played.lines[3]["failures"] == {}


def told_who_left(caplog):
    return [text.split()[1] for record in caplog.records if "no longer connected" in (text := record.getMessage())]


def test_a_client_whose_node_is_gone_loses_its_rounds_and_the_others_go_on(small, caplog):
    played = play_restart(small, {100, 101, 102}, {100, 101}, {100, 101})
    for line in played.lines[1:]:
        assert line["client-train-loss"].keys() == {"0", "1"}
        assert (line["clients"], line["failures"]) == (2, {})
    assert nodes_served(played, 2) == nodes_served(played, 3) == [100, 101]
    assert sorted(key for key, _ in played.sent(FINISH)) == ["0", "1"]
    assert told_who_left(caplog) == ["2"]


@pytest.mark.parametrize("schedule", ["joint", "per-client", "sequential"])
def test_a_client_that_was_away_is_back_in_the_round_after_with_the_embedding_it_left(small, schedule, caplog):
    everyone = {100, 101, 102, 103}
    config = load_config(small | {"num-rounds": 6, "schedule": schedule})
    strategy = strategy_for(config)
    embeddings = {}  # of client 2, when a round's first message goes out

    def note(message):
        if kind_of(message) == PERSONAL:
            embeddings.setdefault(round_of(message), strategy.method.hn.embedding("2").detach().clone())
        return 0

    away = everyone - {102}
    grid = ChangingGrid(Scripted(), [everyone, away, away, everyone, away, everyone])
    grid.hold = note
    played = start(config, grid, strategy)
    cohorts_of = [sorted(played.trained(server_round)) for server_round in range(1, 7)]
    assert cohorts_of == [list("0123"), list("013"), list("013"), list("0123"), list("013"), list("0123")]
    assert [line["failures"] for line in played.lines] == [{}] * 6
    assert torch.equal(embeddings[2], embeddings[3])
    assert torch.equal(embeddings[2], embeddings[4])
    assert torch.equal(embeddings[5], embeddings[6])
    assert not torch.equal(embeddings[1], embeddings[2])
    assert not torch.equal(embeddings[4], embeddings[5])
    assert told_who_left(caplog) == ["2", "2"]  # once each time
    assert [record.getMessage() for record in caplog.records].count("Client 2 is back.") == 2
    by_hand = ByHand.of(config, SIZES)
    for server_round in range(1, 7):
        deltas = played.deltas(server_round)
        for wave in [{key: deltas[key]} for key in deltas] if schedule == "sequential" else [deltas]:
            by_hand.apply(wave)
    assert_same_network(strategy.method.hn, by_hand.hn)


# How many clients there must be ---------------------------------------------------------------------------------------


def test_waiting_for_nodes_goes_on_while_more_come(monkeypatch):
    grid = InProcessGrid(echo, 4)
    counts = iter([1, 2, 4, 4, 3])
    monkeypatch.setattr(grid, "get_node_ids", lambda: [103, 100, 102, 101][: next(counts)])
    assert wait_for_nodes(grid, at_least=2, timeout=60.0) == [100, 101, 102, 103]


def test_too_few_nodes_are_told_with_what_to_do(clock):
    with pytest.raises(UserError, match=r"3 of at least 5 nodes \(min-clients\) connected within 30 s .* lower"):
        wait_for_nodes(InProcessGrid(echo, 3), at_least=5, timeout=30.0)
    assert clock.now == pytest.approx(1030.0, abs=1)


def test_a_round_waits_until_min_clients_are_there(small, clock, caplog):
    config = load_config(small | {"min-clients": 3, "num-rounds": 1})
    grid = Arriving(Scripted(), clock, at(0, 0, 12.5, 1e9))
    played = start(config, grid, strategy_for(config, nodes_may_come=True))
    assert cohorts(played) == [list("012")]
    assert 1012.5 <= clock.now <= 1014.5
    told = [record.getMessage() for record in caplog.records if "waiting" in record.message]
    assert told == ["2 of at least 3 clients (min-clients) are here; waiting."]  # once, not every second


def test_a_client_counts_when_it_is_registered_not_when_its_node_is_there(small, clock):
    config = load_config(small | {"min-clients": 4, "max-params": 50})
    with pytest.raises(UserError, match=r"^3 clients are connected and registered after 30 s, .* min-clients is 4"):
        start(config, Arriving(Scripted(), clock, at(0, 0, 0, 0)), strategy_for(config, nodes_may_come=True))


def test_too_few_clients_after_the_deadline_end_the_run_with_what_to_do(small, clock):
    config = load_config(small | {"min-clients": 3})
    with pytest.raises(UserError) as error:
        start(config, Arriving(Scripted(), clock, at(0, 0, 31.5, 1e9)), strategy_for(config, nodes_may_come=True))
    assert str(error.value) == (
        "2 clients are connected and registered after 30 s, but min-clients is 3; the lines above name the reason of "
        "each node that could not be."
    )
    assert 1030 <= clock.now <= 1031


def test_a_simulation_does_not_wait_for_clients_that_cannot_come(small, clock):
    config = load_config(small | {"min-clients": 3})
    with pytest.raises(UserError, match="2 clients are connected and registered after 0 s, but min-clients is 3"):
        start(config, Arriving(Scripted(), clock, at(0, 0, 5, 1e9)), strategy_for(config))
    assert clock.now == 1000.0


def test_a_round_waits_again_when_too_many_have_left(small, clock):
    """Client 2 leaves when it has trained in round 1, and is back 20 s later."""
    config = load_config(small | {"min-clients": 3})
    left = []

    def leaves(message, reply):
        left.append(clock.now - 1000)
        return reply

    def is_there(now):
        return not left or now >= left[0] + 20

    answer = Scripted({("2", PERSONAL, 1): leaves})
    grid = Arriving(answer, clock, [*at(0, 0), is_there, *at(1e9)])
    played = start(config, grid, strategy_for(config, nodes_may_come=True))
    assert cohorts(played) == [list("012")] * 3
    assert failures(played) == [{}, {}, {}]
    assert 1020 <= clock.now <= 1022
    plain = play(small, Scripted(sizes={key: SIZES[key] for key in "012"}), run_name="plain")
    assert_same_state(played, plain)
    assert timeless(played.lines) == timeless(plain.lines)


def test_a_resumed_run_gives_its_workers_as_long_to_start_as_a_new_one(small):
    asked = []

    def answer(message, context):
        if kind_of(message) == REGISTER:
            asked.append(message.metadata.ttl)
        return Scripted()(message, context)

    settings = small | {"deadline": 5.0, "num-rounds": 1, "checkpoint-every": 1, "run-name": "slow"}
    serve(InProcessGrid(answer, NUM_CLIENTS, settings), load_config(settings), simulated=True)
    first = list(asked)
    asked.clear()
    (load_config(settings).results_path / "slow" / "clients").mkdir()  # where simulated clients keep their history
    settings |= {"num-rounds": 2, "resume": "latest"}
    serve(InProcessGrid(answer, NUM_CLIENTS, settings), load_config(settings), simulated=True)
    assert len(asked) == NUM_CLIENTS
    assert asked == first
    assert min(first) > 300


@pytest.mark.parametrize("name", ["client-key", "num-params", "train-samples", "test-samples"])
def test_a_method_cannot_ask_for_what_every_registration_holds(name):
    content = protocol.encode_registration(protocol.Registration("7", 5, 30, 10))
    with pytest.raises(ValueError, match=name):
        protocol.decode_registration(content, {name: Label()})
