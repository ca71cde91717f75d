"""Registration beside the rounds: who is waited for, who is asked again, and whose key it is."""

import json
import math
from dataclasses import replace

import pytest
import torch
from flwr.app import Message
from in_process import InProcessGrid
from playing import (
    NUM_CLIENTS,
    PERSONAL,
    REGISTER,
    SIZES,
    Arriving,
    ChangingGrid,
    Scripted,
    at,
    cohorts,
    failures,
    key_of,
    kind_of,
    replaced_delta,
    reply_to,
    round_of,
    settings_for,
    sizes_of,
    start,
    strategy_for,
    told,
)

from common import protocol
from common.config import load_config
from common.errors import UserError
from common.evaluation import TEST, Evaluation
from common.protocol import DELTA
from common.refusal import encode_refusal
from server_app import checkpoint
from server_app.client import NOWHERE
from server_app.results.reading import read_clients
from server_app.rounds.bindings import Bindings
from server_app.rounds.log import RoundLog

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing")


class Timed(Arriving):
    """Nodes whose answer of a kind comes so many seconds after the question; a round takes ten seconds."""

    def __init__(self, answer, clock, seconds, connects=None):
        super().__init__(answer, clock, connects or at(0, 0, 0, 0))
        self.seconds, self.due = seconds, {}

    def push_messages(self, messages):
        (message,) = messages
        (identifier,) = super().push_messages([message])
        key, kind = key_of(message.metadata.dst_node_id), kind_of(message)
        self.due[identifier] = self.clock.now + self.seconds.get((key, kind), 10.0 if kind == PERSONAL else 0.0)
        return [identifier]

    def pull_messages(self, message_ids):
        return super().pull_messages([each for each in message_ids if self.due[each] <= self.clock.now])


def play_timed(small, clock, seconds, connects=None, answer=None, **overrides):
    config = load_config(
        small | {"deadline": 1000.0} | {key.replace("_", "-"): each for key, each in overrides.items()}
    )
    grid = Timed(answer or Scripted(), clock, seconds, connects)
    return start(config, grid, strategy_for(config, nodes_may_come=True))


def test_a_newcomer_that_says_nothing_holds_up_no_round(small, clock):
    """It came after the start; the deadline of a registration would be 1,000 s."""
    played = play_timed(small, clock, {("3", REGISTER): math.inf}, at(0, 0, 0, 5))
    assert cohorts(played) == [list("012")] * 3
    assert failures(played) == [{}, {}, {}]
    assert 1030 <= clock.now < 1031
    assert [key for key, _ in played.sent(REGISTER)] == list("0123")


def test_a_newcomer_joins_in_the_round_after_it_has_answered(small, clock):
    played = play_timed(small, clock, {("3", REGISTER): 12.0}, at(0, 0, 0, 5), num_rounds=5)
    assert cohorts(played) == [list("012")] * 3 + [list("0123")] * 2  # asked at 10 s, answered at 22 s
    assert failures(played) == [{}] * 5
    assert [key for key, _ in played.sent(REGISTER)] == list("0123")


def test_only_the_first_registration_of_a_run_is_waited_for_and_ends_when_all_have_answered(small, clock):
    played = play_timed(small, clock, {("3", REGISTER): 200.0}, deadline=300.0, num_rounds=1)
    assert cohorts(played) == [list("0123")]
    assert 1210 <= clock.now < 1212


def test_a_node_that_says_nothing_at_the_start_costs_the_deadline_once(small, clock):
    played = play_timed(small, clock, {("3", REGISTER): math.inf}, deadline=30.0)
    assert cohorts(played) == [list("012")] * 3
    assert failures(played) == [{"late": 1}, {}, {}]
    assert 1060 <= clock.now < 1061


def test_a_silent_newcomer_is_asked_again_when_its_message_has_expired_and_complained_of_once(small, clock):
    played = play_timed(small, clock, {("3", REGISTER): math.inf}, at(0, 0, 0, 5), num_rounds=60, deadline=30.0)
    # Asked at 10 s; Flower forgets the message after 90 s, and after 30 s of rest there is another.
    assert len(played.sent(REGISTER)) == NUM_CLIENTS + 4
    assert [line["round"] for line in played.lines if line["failures"]] == [11]
    assert played.lines[10]["failures"] == {"late": 1}


# Asked again ----------------------------------------------------------------------------------------------------------


def test_a_site_that_was_refused_gets_in_when_it_has_done_what_it_was_told(small, clock):
    """Its model is too large until it is restarted with another one at 50 s."""

    def answers(message, reply):
        reply.content["registration"]["num-params"] = 5000 if clock.now < 1050 else SIZES["3"]
        return reply

    played = play_timed(small, clock, {}, answer=Scripted({("3", REGISTER): answers}), max_params=100, num_rounds=9)
    # Asked at 0 s, 30 s and 60 s.
    assert cohorts(played) == [list("012")] * 6 + [list("0123")] * 3
    assert failures(played) == [{"too-large": 1}] + [{}] * 8  # said once


class Renamed(Scripted):
    """The trainer of node 103 is restarted in round 2: from then on it is another client, with another model."""

    def __init__(self, new_size=30):
        super().__init__()
        self.new_size = new_size
        self.began = False

    def usual(self, key, message):
        self.began |= kind_of(message) == PERSONAL and round_of(message) == 2
        if key != "3" or not self.began:
            return super().usual(key, message)
        if kind_of(message) == REGISTER:
            content = protocol.encode_registration(protocol.Registration("new-key", self.new_size, 10, 2))
            return Message(content, reply_to=message)
        if told(message).client_key != "new-key":
            return Message(encode_refusal("another-client"), reply_to=message)
        tests = {TEST: Evaluation(1, 2, 0.5)} if TEST in told(message).tests else {}
        delta = {DELTA: torch.ones(self.new_size)} if DELTA in told(message).compress else {}
        return reply_to(message, protocol.Result(10, 1.0, tests), delta)


def test_a_node_whose_client_says_that_it_is_another_now_is_asked_again(small, clock):
    played = play_timed(small, clock, {}, answer=Renamed(), num_rounds=4)
    assert [set(line["client-train-loss"]) for line in played.lines] == [
        set("0123"),
        set("012"),
        {*"012", "new-key"},
        {*"012", "new-key"},
    ]
    assert failures(played) == [{}, {"another-client": 1}, {}, {}]
    assert {client.key: client.node_id for client in played.clients}["3"] == NOWHERE
    assert len(played.sent(REGISTER)) == NUM_CLIENTS + 1


@pytest.mark.parametrize("nodes_may_come", [True, False])
def test_a_client_that_confirms_who_it_is_goes_on_as_before(small, nodes_may_come):
    """A simulated one cannot have become another, so it is not asked."""
    spoilt = Scripted({("1", PERSONAL, 1): replaced_delta(lambda delta: delta[:-1])})
    config = load_config(settings_for(small))
    played = start(config, InProcessGrid(spoilt, NUM_CLIENTS), strategy_for(config, nodes_may_come=nodes_may_come))
    assert [key for key, _ in played.sent(REGISTER)] == [*"0123", *(["1"] if nodes_may_come else [])]
    assert failures(played) == [{"wrong-length": 1}, {}, {}]
    assert cohorts(played) == [list("0123")] * 3
    assert sizes_of(played) == SIZES


@pytest.mark.parametrize("reason", ["another-client", "changed-size", "wrong-length", "not-finite"])
def test_only_reasons_that_put_a_client_in_doubt_make_it_be_asked_again(reason):
    log = RoundLog()
    log.fail("7", reason, "a sentence")
    assert log.doubtful == (set() if reason == "not-finite" else {"7"})


@pytest.mark.parametrize("answers_after", [15.0, math.inf])
def test_a_client_in_doubt_loses_no_other_round_until_it_has_said_who_it_is(small, clock, answers_after):
    config = load_config(small | {"deadline": 1000.0, "num-rounds": 6})
    answer = Renamed()
    grid = Timed(answer, clock, {})
    push = grid.push_messages

    def push_messages(messages):
        (message,) = messages
        if kind_of(message) == REGISTER and answer.began:
            grid.seconds["3", REGISTER] = answers_after
        return push(messages)

    grid.push_messages = push_messages
    played = start(config, grid, strategy_for(config, nodes_may_come=True))
    # The final weights, the last round's, are offered to one in doubt too.
    assert failures(played)[:-1] == [{}, {"another-client": 1}, {}, {}, {}]
    joined = {*"012", "new-key"} if math.isfinite(answers_after) else set("012")
    # Asked at 20 s; a round takes ten.
    assert [set(line["client-train-loss"]) for line in played.lines[1:]] == [set("012")] * 3 + [joined] * 2


def test_a_client_in_doubt_that_says_nothing_ends_no_run(small, clock):
    """Without it there are fewer than min-clients: it is waited for, and asked as who it was."""
    spoilt = Scripted({("3", PERSONAL, 1): replaced_delta(lambda delta: delta[:-1])})
    config = load_config(small | {"deadline": 30.0, "min-clients": 4})
    grid = Timed(spoilt, clock, {})
    push = grid.push_messages

    def push_messages(messages):
        if kind_of(messages[0]) == PERSONAL:
            grid.seconds["3", REGISTER] = math.inf
        return push(messages)

    grid.push_messages = push_messages
    played = start(config, grid, strategy_for(config, nodes_may_come=True))
    assert cohorts(played) == [list("0123")] * 3
    assert failures(played)[:2] == [{"wrong-length": 1}, {}]


def test_a_node_without_room_is_complained_of_once_however_often_it_is_asked(small, clock, caplog):
    config = load_config(small | {"deadline": 1000.0, "num-rounds": 10})
    strategy = strategy_for(config, nodes_may_come=True)
    admit = strategy.method.admit

    def has_no_room_for_3(clients):
        taken = [client for client in clients if client.key != "3"]
        refused = admit(taken) if taken else {}
        return dict(refused) | {client.key: "It is too large." for client in clients if client.key == "3"}

    strategy.method.admit = has_no_room_for_3
    played = start(config, Timed(Scripted(), clock, {}), strategy)
    assert len(played.sent(REGISTER)) == NUM_CLIENTS + 3  # again at 30, 60 and 90 s, and at the end
    assert failures(played) == [{"no-room": 1}] + [{}] * 9
    assert [text for text in caplog.messages if "joined" in text] == ["3 clients joined, 3 in all."]


# Whose key it is ------------------------------------------------------------------------------------------------------


class Stealing(Scripted):
    """The client at node 103 says that it is client 2."""

    def __call__(self, message, context):
        if context.node_id == 103 and kind_of(message) == REGISTER:
            return super().__call__(message, replace(context, node_config={"partition-id": 2}))
        return super().__call__(message, context)


def bound_run(small, state, connected, **overrides):
    config = load_config(settings_for(small | {"num-rounds": len(connected), "checkpoint-every": 1}, **overrides))
    start_at = checkpoint.load(config.results_path / "run") if config.resume else None
    strategy = strategy_for(config, bindings=Bindings(state), start=start_at)
    return start(config, ChangingGrid(Stealing(), connected), strategy)


def test_a_thief_gets_no_weights_while_the_owner_is_away_nor_after_a_resume_until_the_key_is_forgotten(small, tmp_path):
    (tmp_path / "registered.json").write_text(json.dumps({"owner": {"node-id": "102"}, "thief": {"node-id": "103"}}))
    with_owner, without = {100, 101, 102}, {100, 101, 103}
    played = bound_run(small, tmp_path, [with_owner, without, without])
    assert [message.metadata.dst_node_id for _, message in played.sent(server_round=2)] == [100, 101]
    assert failures(played) == [{}, {"key-bound": 1}, {}]
    (failure,) = played.lines[1]["failure-list"]
    assert failure["client"] == "thief"
    assert "belongs to owner" in failure["detail"]

    played = bound_run(small, tmp_path, [without] * 2, resume="latest", num_rounds=5)
    assert [message.metadata.dst_node_id for _, message in played.sent()] == [100, 101] * 2
    assert failures(played)[3] == {"key-bound": 1}

    Bindings(tmp_path).forget("owner")
    played = bound_run(small, tmp_path, [without] * 2, resume="latest", num_rounds=6)
    assert [message.metadata.dst_node_id for _, message in played.sent()] == [100, 101, 103]


# What a method says of who has come -----------------------------------------------------------------------------------


@pytest.mark.parametrize("returned", [None, ["1"]])
def test_a_method_that_admits_without_saying_whom_is_told_so(small, returned):
    config = load_config(small)
    strategy = strategy_for(config)
    strategy.method.admit = lambda clients: returned
    with pytest.raises(UserError, match=r"'mh-pfedhn': admit returned a (NoneType|list), but must return a mapping"):
        start(config, InProcessGrid(Scripted(), NUM_CLIENTS), strategy)


# What is shown --------------------------------------------------------------------------------------------------------

UUID = "0b6d1c9e-7a51-4c3f-9d5e-2f1a86c4e07"  # and the number of the client


class LongKeys(Scripted):
    """Clients with keys that nobody may learn; client 3 fails in round 1, and client 1 does in round 3."""

    def __init__(self):
        bad = {("3", PERSONAL, 1): replaced_delta(lambda delta: delta[:-1])}
        super().__init__(bad | {("1", PERSONAL, 3): bad["3", PERSONAL, 1]})

    def usual(self, key, message):
        reply = super().usual(key, message)
        if kind_of(message) == REGISTER:
            reply.content["registration"]["client-key"] = UUID + key
        return reply


def test_no_client_key_is_shown_and_a_resumed_run_goes_on_under_the_same_labels(small, tmp_path, caplog):
    (tmp_path / "registered.json").write_text(json.dumps({"clinic": {"node-id": "102"}}))
    labels = ["0b6d1c9e…", "0b6d1c9e-…", "0b6d1c9e-7…", "clinic"]

    def run(nodes, **overrides):
        config = load_config(settings_for(small | {"checkpoint-every": 1}, **overrides))
        start_at = checkpoint.load(config.results_path / "run") if config.resume else None
        grid = InProcessGrid(LongKeys(), NUM_CLIENTS)
        grid.connected = nodes
        return start(config, grid, strategy_for(config, bindings=Bindings(tmp_path), start=start_at))

    run({100, 101, 102, 103}, num_rounds=2)
    played = run({101, 102, 103}, num_rounds=3, resume="latest")
    # What round 2 led to is tested in round 3, whose replies bring it.
    tested = [set(line["client-accuracy"]) for line in played.lines]
    assert tested == [set(labels), set(labels[2:]), set(labels[1:])]
    assert [failure["client"] for line in played.lines for failure in line["failure-list"]] == [labels[2], labels[1]]
    rows = {row.client: row for row in read_clients(played.folder / "clients.csv")}
    assert rows.keys() == set(labels)
    assert {label: row.rounds_trained for label, row in rows.items()} == dict(zip(labels, (2, 2, 2, 3), strict=True))
    assert {label: row.failures for label, row in rows.items()} == dict(zip(labels, (0, 1, 1, 0), strict=True))
    assert "Client 0b6d1c9e… is no longer" not in caplog.text  # it has not been here in this process
    assert UUID not in caplog.text
    for path in played.folder.rglob("*"):
        if path.is_file() and path.suffix != ".pt":
            assert UUID.encode() not in path.read_bytes(), path


def test_a_registration_whose_bytes_are_no_message_is_refused_and_the_others_go_on(small, monkeypatch):
    config = load_config(small)
    grid = InProcessGrid(Scripted(), NUM_CLIENTS)
    pull, asked = grid.pull_messages, []

    def pull_messages(identifiers):
        if "message-1" in identifiers and len(asked) < 2:
            asked.append(identifiers)
            raise ValueError("no record")
        return pull(identifiers)

    monkeypatch.setattr(grid, "pull_messages", pull_messages)
    played = start(config, grid, strategy_for(config))
    assert failures(played) == [{"malformed": 1}, {}, {}]
    assert cohorts(played) == [list("023")] * 3
