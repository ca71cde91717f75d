"""What the server refuses from nodes, what it says of it, that nothing else changes; and when it waits for nodes."""

import math

import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from playing import (
    GLOBAL,
    MISBEHAVIOUR,
    PERSONAL,
    REGISTER,
    SIZES,
    Meddling,
    Scripted,
    ScriptedGD,
    assert_same_state,
    failures,
    losses,
    play,
    raises,
    replaced_delta,
    round_of,
    told,
)

from common import protocol
from common.protocol import DELTA

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing")


@pytest.fixture
def small(small):
    return small | {"checkpoint-every": 0}


def is_training(message, server_round, node=None):
    """Whether a reply is of a round's training, and of this node."""
    return (
        message.metadata.message_type == protocol.TRAIN
        and round_of(message) == server_round
        and node in (None, message.metadata.src_node_id)
    )


def again(message, delta):
    """Another answer to what a message answers, with another delta."""
    content = RecordDict({name: record for name, record in message.content.items() if name != "arrays"})
    content["arrays"] = ArrayRecord({DELTA: Array(delta.numpy())})
    copy = Message(content, 1, message.metadata.message_type)
    copy.metadata.__dict__.update(message.metadata.__dict__)
    return copy


# Enormous values --------------------------------------------------------------------------------------------------


def huge(message, reply):
    return replaced_delta(lambda delta: torch.full_like(delta, 1e6))(message, reply)


@pytest.mark.parametrize(
    "overrides", [{}, {"schedule": "per-client"}, {"schedule": "sequential"}, {"method": "fedavg"}]
)
def test_a_delta_of_a_huge_norm_is_refused_and_the_model_is_that_without_its_client(small, overrides):
    huge_one = play(small, Scripted({("2", PERSONAL, 2): huge}), run_name="huge", **overrides)
    without = play(small, Scripted({("2", PERSONAL, 2): raises}), run_name="without", **overrides)
    everyone = play(small, Scripted(), run_name="everyone", **overrides)
    assert failures(huge_one) == [{}, {"huge-norm": 1}, {}]
    (failure,) = huge_one.lines[1]["failure-list"]
    assert failure["client"] == "2"
    assert failure["detail"] == "'delta' has norm 7.07e+06, above max-delta-norm (10000)"
    assert losses(huge_one) == losses(without)
    assert_same_state(huge_one, without)
    with pytest.raises(AssertionError):
        assert_same_state(huge_one, everyone)


@pytest.mark.parametrize("method", ["mh-pfedhn-g", "mh-pfedhn-gd"])
def test_a_huge_norm_in_the_global_exchange_is_refused_and_the_model_is_that_without_its_client(small, method):
    huge_one = play(small, ScriptedGD({("1", GLOBAL, 2): huge}), run_name="huge", method=method)
    without = play(small, ScriptedGD({("1", GLOBAL, 2): raises}), run_name="without", method=method)
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

    special = {("0", PERSONAL): replaced_delta(of_norm)}
    special |= {(key, PERSONAL): replaced_delta(torch.zeros_like) for key in "123"}
    played = play(small, Scripted(special), max_delta_norm=7.0, num_rounds=1)
    assert failures(played) == (refused or [{}])


def test_a_norm_that_overflows_float32_is_huge_and_not_infinite(small):
    special = {("0", PERSONAL, 1): replaced_delta(lambda delta: torch.full_like(delta, 3e38))}
    played = play(small, Scripted(special), num_rounds=1)
    (failure,) = played.lines[0]["failure-list"]
    assert failure["reason"] == "huge-norm"
    assert "2.12e+39" in failure["detail"]


# Registration -----------------------------------------------------------------------------------------------------


# Replies that nobody waits for ------------------------------------------------------------------------------------


def twice(node, server_round, delta):
    """A node's answer of a round arrives together with another one to the same message."""

    def meddle(messages):
        copies = [again(each, delta) for each in messages if is_training(each, server_round, node)]
        return [*messages, *copies]

    return meddle


def test_of_a_duplicate_reply_the_first_counts_and_the_second_is_noted(small):
    meddling = Meddling(Scripted(), twice(101, 2, torch.ones(SIZES["1"])))
    played = play(small, Scripted(), grid=meddling, run_name="twice")
    once = play(small, Scripted(), run_name="once")
    assert failures(played) == [{}, {"duplicate": 1}, {}]
    assert played.lines[1]["failure-list"][0]["client"] == "1"
    assert losses(played) == losses(once)
    assert_same_state(played, once)


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
    played = play(small, Scripted(), grid=Meddling(Scripted(), from_node(101, claimed, 2)), run_name="wrong")
    without = play(small, Scripted({("1", PERSONAL, 2): raises}), run_name="without")
    assert failures(played) == [{}, {"wrong-sender": 1}, {}]
    assert played.lines[1]["failure-list"][0]["client"] == "1"  # whose message it answers; 3 is not blamed
    assert losses(played) == losses(without)
    assert_same_state(played, without)


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
    played = play(small, Scripted(), grid=Meddling(Scripted(), Earlier()), run_name="earlier")
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
        ("6", REGISTER): as_client_0,
        ("2", PERSONAL, 2): huge,
        ("3", PERSONAL, 2): replaced_delta(lambda delta: delta[:-1]),
        ("4", PERSONAL, 2): raises,
    }
    earlier, duplicate, wrong = Earlier(), twice(101, 2, torch.ones(90)), from_node(100, 102, 2)
    answer = Scripted(special, sizes=sizes)
    grid = Meddling(answer, lambda messages: wrong(duplicate(earlier(messages))), nodes=7)
    played = play(small, answer, grid=grid, max_params=100)
    assert failures(played) == [
        {"too-large": 1, "key-in-use": 1},
        {
            "huge-norm": 1,
            "wrong-length": 1,
            "client-raised": 1,
            "duplicate": 1,
            "wrong-sender": 1,
            "unasked": 1,
        },
        {},
    ]
    assert losses(played)[1].keys() == {"1"}


# How many clients there must be -----------------------------------------------------------------------------------


def test_a_round_in_which_a_client_failed_does_not_count_at_the_client_either(small):
    def diverges_in_round_2(message, reply):
        return MISBEHAVIOUR["NaN"][1](message, reply) if round_of(message) == 2 else reply

    played = play(small, Scripted({("1", PERSONAL): diverges_in_round_2}), num_rounds=4)
    seen = {key: [told(message).seen for name, message in played.sent() if name == key] for key in "01"}
    assert [point.round if point else 0 for point in seen["0"]] == [0, 1, 2, 3]
    assert [point.round if point else 0 for point in seen["1"]] == [0, 1, 1, 3]
