"""What the server refuses from nodes, what it says of it, that nothing else changes; and when it waits for nodes."""

import math

import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from in_process import InProcessGrid
from server_app.strategies import base
from test_exchange import Talk
from test_global_model import ScriptedGD
from test_strategies import (
    NUM_CLIENTS,
    SIZES,
    Scripted,
    cohorts,
    raises,
    replaced_delta,
    round_of,
    start,
    strategy_for,
    timeless,
)

from common import protocol
from common.config import load_config
from common.errors import UserError
from common.protocol import DELTA
from server_app.results import tracking

pytestmark = pytest.mark.usefixtures("clock")


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr(tracking, "write_report", lambda folder: None)


@pytest.fixture
def small(run_config):
    """A config for the scripted clients: several chunks each."""
    return run_config | {"chunk-size": 16, "num-rounds": 3, "deadline": 30.0, "checkpoint-every": 0}


class Meddling(InProcessGrid):
    """A grid whose replies pass through `meddle(messages)` before the server gets them."""

    def __init__(self, answer, meddle, nodes=NUM_CLIENTS, hold=None):
        super().__init__(answer, nodes, hold=hold)
        self.meddle = meddle

    def pull_messages(self, message_ids):
        return self.meddle(super().pull_messages(message_ids))


def play(small, answer, grid=None, **overrides):
    """Run a federation to its end; overrides are config keys with underscores."""
    config = load_config(small | {key.replace("_", "-"): value for key, value in overrides.items()})
    return start(config, grid or InProcessGrid(answer, len(answer.sizes)))


def is_training(message, server_round, node=None):
    """Whether a message is of a round's training, and of this node."""
    return (
        message.metadata.message_type == protocol.PERSONAL
        and round_of(message) == server_round
        and node in (None, message.metadata.src_node_id)
    )


def again(message, delta):
    """Another answer to what a message answers, with another delta."""
    content = RecordDict({name: record for name, record in message.content.items() if name != "vectors"})
    content["vectors"] = ArrayRecord({DELTA: Array(delta.numpy())})
    copy = Message(content, 1, message.metadata.message_type)
    copy.metadata.__dict__.update(message.metadata.__dict__)
    return copy


def learned(played):
    """All tensors of the method's state, by name."""
    tensors = {}

    def walk(value, name):
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            for key, each in value.items():
                walk(each, (*name, key))

    walk(played.strategy.state(), ())
    return tensors


def assert_same_state(one, other):
    one, other = learned(one), learned(other)
    assert one.keys() == other.keys()
    assert len(one) > 0
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def failures(played):
    return [line["failures"] for line in played.lines]


def losses(played):
    return [line["client-train-loss"] for line in played.lines]


# Enormous values --------------------------------------------------------------------------------------------------


def huge(message, reply):
    return replaced_delta(lambda delta: torch.full_like(delta, 1e6))(message, reply)


@pytest.mark.parametrize(
    "overrides", [{}, {"schedule": "per-client"}, {"schedule": "sequential"}, {"method": "fedavg"}]
)
def test_a_delta_of_a_huge_norm_is_refused_and_the_model_is_that_without_its_client(small, overrides):
    huge_one = play(small, Scripted({("2", protocol.PERSONAL, 2): huge}), run_name="huge", **overrides)
    without = play(small, Scripted({("2", protocol.PERSONAL, 2): raises}), run_name="without", **overrides)
    everyone = play(small, Scripted(), run_name="everyone", **overrides)
    assert failures(huge_one) == [{}, {"huge-norm": 1}, {}]
    (failure,) = huge_one.lines[1]["failure-list"]
    assert failure["client"] == "2"
    assert failure["detail"] == "vector 'delta' has norm 7.07e+06, above max-delta-norm (10000)"
    assert losses(huge_one) == losses(without)
    assert_same_state(huge_one, without)
    with pytest.raises(AssertionError):
        assert_same_state(huge_one, everyone)


@pytest.mark.parametrize("method", ["mh-pfedhn-g", "mh-pfedhn-gd"])
def test_a_huge_norm_in_the_global_exchange_is_refused_and_the_model_is_that_without_its_client(small, method):
    huge_one = play(small, ScriptedGD({("1", protocol.GLOBAL, 2): huge}), run_name="huge", method=method)
    without = play(small, ScriptedGD({("1", protocol.GLOBAL, 2): raises}), run_name="without", method=method)
    everyone = play(small, ScriptedGD(), run_name="everyone", method=method)
    assert failures(huge_one) == [{}, {"huge-norm": 1}, {}]
    assert [line["global-clients"] for line in huge_one.lines] == [3, 2, 3]
    assert_same_state(huge_one, without)
    with pytest.raises(AssertionError):
        assert_same_state(huge_one, everyone)


@pytest.mark.parametrize(
    ("norm", "refused"), [(7.0, []), (math.nextafter(7.0, 8.0), []), (7.000001, [{"huge-norm": 1}])]
)
def test_a_norm_is_refused_from_the_limit_on(small, norm, refused):
    def of_norm(delta):
        return torch.zeros_like(delta).index_fill(0, torch.tensor([3]), -norm)  # float32 rounds the one next to 7 to 7

    special = {("0", protocol.PERSONAL): replaced_delta(of_norm)}
    special |= {(key, protocol.PERSONAL): replaced_delta(torch.zeros_like) for key in "123"}
    played = play(small, Scripted(special), max_delta_norm=7.0, num_rounds=1)
    assert failures(played) == (refused or [{}])


def test_a_norm_that_overflows_float32_is_huge_and_not_infinite(small):
    special = {("0", protocol.PERSONAL, 1): replaced_delta(lambda delta: torch.full_like(delta, 3e38))}
    played = play(small, Scripted(special), num_rounds=1)
    (failure,) = played.lines[0]["failure-list"]
    assert failure["reason"] == "huge-norm"
    assert "2.12e+39" in failure["detail"]


# Registration -----------------------------------------------------------------------------------------------------


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
    assert set(played.strategy.hn.members) == set("023")


# Replies that nobody waits for ------------------------------------------------------------------------------------


def twice(node, server_round, delta):
    """A node's answer of a round arrives together with another one to the same message."""

    def meddle(messages):
        copies = [again(each, delta) for each in messages if is_training(each, server_round, node)]
        return [*messages, *copies]

    return meddle


def test_of_a_duplicate_reply_the_first_counts_and_the_second_is_noted(small):
    meddling = Meddling(Scripted(), twice(101, 2, torch.ones(SIZES["1"])))
    played = play(small, Scripted(), meddling, run_name="twice")
    once = play(small, Scripted(), run_name="once")
    assert failures(played) == [{}, {"duplicate": 1}, {}]
    assert played.lines[1]["failure-list"][0]["client"] == "1"
    assert losses(played) == losses(once)
    assert_same_state(played, once)


@pytest.mark.parametrize("late", [False, True])
def test_a_duplicate_does_not_count_towards_the_quorum(late):
    """Neither one that comes together with the first, nor one that comes with another's reply."""
    talk = Talk(clients=4, quorum=0.5, hold={"a": 0, "b": 4, "c": 9, "d": 9})
    pull, seen = talk.grid.pull_messages, []

    def pull_messages(identifiers):
        found = pull(identifiers)
        seen.extend(found)
        return [*(found if found or late else []), *(seen[:1] if found or late else [])]

    talk.grid.pull_messages = pull_messages
    assert talk.run() == ["a", "b"]
    reasons = [failure for failure in talk.failures if failure[1] == "duplicate"]
    assert set(reasons) == {("a", "duplicate")}
    assert [failure for failure in talk.failures if failure[1] == "late"] == [("c", "late"), ("d", "late")]


def test_a_duplicate_of_a_client_whose_reply_was_good_leaves_it_good():
    """The quorum is of all: were the client taken for a failed one, the exchange would not end before the deadline."""
    talk = Talk(clients=2, quorum=1.0, hold={"a": 0, "b": 3})
    pull = talk.grid.pull_messages
    talk.grid.pull_messages = lambda identifiers: [each for each in pull(identifiers) for _ in range(2)]
    assert talk.run() == ["a", "b"]
    assert talk.failures == [("a", "duplicate"), ("b", "duplicate")]
    assert talk.exchange._rejected == set()


def from_node(node, claimed, server_round):
    """What a node answers in a round comes under the name of another."""

    def meddle(messages):
        for message in messages:
            if is_training(message, server_round, node):
                message.metadata.__dict__["_src_node_id"] = claimed
        return messages

    return meddle


@pytest.mark.parametrize("claimed", [103, 999])
def test_a_reply_from_another_node_than_the_one_that_was_asked_is_refused(small, claimed):
    played = play(small, Scripted(), Meddling(Scripted(), from_node(101, claimed, 2)), run_name="wrong")
    without = play(small, Scripted({("1", protocol.PERSONAL, 2): raises}), run_name="without")
    assert failures(played) == [{}, {"wrong-sender": 1}, {}]
    assert played.lines[1]["failure-list"][0]["client"] == "1"  # whose message it answers; 3 is not blamed
    assert losses(played) == losses(without)
    assert_same_state(played, without)


def test_a_reply_from_another_node_does_not_count_towards_the_quorum():
    talk = Talk(clients=4, quorum=0.5, hold={"a": 0, "b": 2, "c": 4, "d": 9})
    pull = talk.grid.pull_messages

    def pull_messages(identifiers):
        found = pull(identifiers)
        for message in found:
            if message.metadata.src_node_id == 100:
                message.metadata.__dict__["_src_node_id"] = 103
        return found

    talk.grid.pull_messages = pull_messages
    assert talk.run() == ["b", "c"]
    assert talk.failures == [("a", "wrong-sender"), ("d", "late")]


class Earlier:
    """Replies of round 1 come once more in round 2, with other deltas."""

    def __init__(self):
        self.kept = []

    def __call__(self, messages):
        self.kept += [again(each, torch.ones(90)) for each in messages if is_training(each, 1, 101)]
        if any(is_training(each, 2) for each in messages):
            messages, self.kept = [*self.kept, *messages], []
        return messages


def test_a_reply_to_a_message_of_an_earlier_exchange_is_noted_and_changes_nothing(small):
    played = play(small, Scripted(), Meddling(Scripted(), Earlier()), run_name="earlier")
    plain = play(small, Scripted(), run_name="plain")
    assert failures(played) == [{}, {"unasked": 1}, {}]
    assert played.lines[1]["failure-list"][0]["client"] == "unknown"
    assert losses(played) == losses(plain)
    assert_same_state(played, plain)


def test_every_refusal_is_counted_by_its_reason_in_the_line_of_its_round(small):
    sizes = {"0": 50, "1": 90, "2": 50, "3": 20, "4": 50, "5": 500, "6": 50}

    def as_client_0(message, reply):
        reply.content["registration"]["client-key"] = "0"
        return reply

    special = {
        ("6", protocol.REGISTER): as_client_0,
        ("2", protocol.PERSONAL, 2): huge,
        ("3", protocol.PERSONAL, 2): replaced_delta(lambda delta: delta[:-1]),
        ("4", protocol.PERSONAL, 2): raises,
    }
    earlier, duplicate, wrong = Earlier(), twice(101, 2, torch.ones(90)), from_node(100, 102, 2)
    answer = Scripted(special, sizes=sizes)
    grid = Meddling(answer, lambda messages: wrong(duplicate(earlier(messages))), nodes=7)
    played = play(small, answer, grid, max_params=100)
    assert failures(played) == [
        {"too-large": 1, "key-in-use": 1},
        {
            "huge-norm": 1,
            "wrong-length": 1,
            "client-raised": 1,
            "duplicate": 1,
            "wrong-sender": 1,
            "unasked": 1,
            "key-in-use": 1,
        },
        {"key-in-use": 2},  # it is asked once more before the final exchange
    ]
    assert losses(played)[1].keys() == {"1"}


# How many clients there must be -----------------------------------------------------------------------------------


@pytest.fixture
def loop_clock(clock, monkeypatch):
    """The time of the round loop too."""
    monkeypatch.setattr(base, "time", clock)
    return clock


class Arriving(InProcessGrid):
    """Node 100 + i is connected while `connects[i]`, a function of the time, says so."""

    def __init__(self, answer, clock, connects):
        super().__init__(answer, NUM_CLIENTS)
        self.clock, self.connects = clock, connects

    def get_node_ids(self):
        self.connected = {100 + i for i, connects in enumerate(self.connects) if connects(self.clock.now - 1000)}
        return super().get_node_ids()


def at(*seconds):
    return [lambda now, second=second: now >= second for second in seconds]


def test_a_round_waits_until_min_clients_are_there(small, loop_clock, caplog):
    config = load_config(small | {"min-clients": 3, "num-rounds": 1})
    grid = Arriving(Scripted(), loop_clock, at(0, 0, 12.5, 1e9))
    played = start(config, grid, strategy_for(config, nodes_may_come=True))
    assert cohorts(played) == [list("012")]
    assert 1012.5 <= loop_clock.now <= 1014.5
    told = [record.getMessage() for record in caplog.records if "waiting" in record.message]
    assert told == ["2 of at least 3 clients (min-clients) are here; waiting."]  # once, not every second


def test_a_client_counts_when_it_is_registered_not_when_its_node_is_there(small, loop_clock):
    config = load_config(small | {"min-clients": 4, "max-params": 50})
    with pytest.raises(UserError, match=r"^3 clients are connected and registered after 30 s, .* min-clients is 4"):
        start(config, Arriving(Scripted(), loop_clock, at(0, 0, 0, 0)), strategy_for(config, nodes_may_come=True))


def test_too_few_clients_after_the_deadline_end_the_run_with_what_to_do(small, loop_clock):
    config = load_config(small | {"min-clients": 3})
    with pytest.raises(UserError) as error:
        start(config, Arriving(Scripted(), loop_clock, at(0, 0, 31.5, 1e9)), strategy_for(config, nodes_may_come=True))
    assert str(error.value) == (
        "2 clients are connected and registered after 30 s, but min-clients is 3; the lines above name the reason of "
        "each node that could not be."
    )
    assert 1030 <= loop_clock.now <= 1031


def test_a_simulation_does_not_wait_for_clients_that_cannot_come(small, loop_clock):
    config = load_config(small | {"min-clients": 3})
    with pytest.raises(UserError, match="2 clients are connected and registered after 0 s, but min-clients is 3"):
        start(config, Arriving(Scripted(), loop_clock, at(0, 0, 5, 1e9)), strategy_for(config))
    assert loop_clock.now == 1000.0


def test_a_round_waits_again_when_too_many_have_left(small, loop_clock):
    """Client 2 leaves when it has trained in round 1, and is back 20 s later."""
    config = load_config(small | {"min-clients": 3})
    left = []

    def leaves(message, reply):
        left.append(loop_clock.now - 1000)
        return reply

    def is_there(now):
        return not left or now >= left[0] + 20

    answer = Scripted({("2", protocol.PERSONAL, 1): leaves})
    grid = Arriving(answer, loop_clock, [*at(0, 0), is_there, *at(1e9)])
    played = start(config, grid, strategy_for(config, nodes_may_come=True))
    assert cohorts(played) == [list("012")] * 3
    assert failures(played) == [{}, {}, {}]
    assert 1020 <= loop_clock.now <= 1022
    plain = play(small, Scripted(sizes={key: SIZES[key] for key in "012"}), run_name="plain")
    assert_same_state(played, plain)
    assert timeless(played.lines) == timeless(plain.lines)
