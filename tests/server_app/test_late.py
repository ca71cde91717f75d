"""Clients that are slower than an exchange: when they are asked again, and what becomes of what they bring too late."""

import math

import pytest
from flwr.app import Error, Message
from in_process import InProcessGrid
from playing import (
    EVALUATE,
    FINISH,
    NUM_CLIENTS,
    PERSONAL,
    REGISTER,
    SIZES,
    ByHand,
    Scripted,
    assert_same_network,
    key_of,
    kind_of,
    round_of,
    settings_for,
    start,
)

from common import protocol
from common.config import load_config
from server_app.rounds.round_trip import OpenRequest, OpenRequests

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing", "_new_process")

STEP = 10.0  # seconds that a client takes, if nothing else is said


class SlowGrid(InProcessGrid):
    """Replies come when their time has come; `seconds` holds those that take more or less than others.

    Its keys are client and message type, or client, message type and round. Client 3 is there from round `joins` on.
    """

    def __init__(self, clock, seconds, answer=None, joins=1):
        super().__init__(answer or Scripted(), NUM_CLIENTS)
        self.clock, self.seconds, self.joins = clock, seconds, joins
        self.due = {}  # message id -> when its reply is there

    def get_node_ids(self):
        begun = {round_of(each) for each in self.sent if kind_of(each) == PERSONAL}
        self.connected = set(self.contexts) - ({103} if len(begun) < self.joins - 1 else set())
        return super().get_node_ids()

    def push_messages(self, messages):
        messages = list(messages)
        identifiers = super().push_messages(messages)
        for message, identifier in zip(messages, identifiers, strict=True):
            key, kind = key_of(message.metadata.dst_node_id), kind_of(message)
            usual = STEP if kind == PERSONAL else 0.0
            seconds = self.seconds.get((key, kind, round_of(message)), self.seconds.get((key, kind), usual))
            self.due[identifier] = self.clock.now + seconds
        return identifiers

    def pull_messages(self, message_ids):
        return super().pull_messages([each for each in message_ids if self.due[each] <= self.clock.now])


@pytest.fixture
def play(small, clock):
    def play(seconds, answer=None, joins=1, **overrides):
        config = load_config(settings_for(small, **overrides))
        return start(config, SlowGrid(clock, seconds, answer, joins))

    return play


def failures_of(played):
    return [{each["client"]: each["reason"] for each in line["failure-list"]} for line in played.lines]


def assert_learned_from(played, clients_by_round):
    """Whether the network has moved by the deltas of these clients in each round, and by no others."""
    by_hand = ByHand.of(played.config, SIZES)
    for server_round, clients in enumerate(clients_by_round, 1):
        by_hand.apply({key: Scripted().delta(key, server_round) for key in clients})
    assert_same_network(played.method.hn, by_hand.hn)


def test_a_late_client_is_asked_again_when_it_has_answered_and_its_late_delta_is_not_used(play):
    played = play({("1", PERSONAL, 2): 35.0}, num_rounds=4, deadline=30.0)
    # Round 2 ends without it after 30 s; round 3 begins 5 s before it answers.
    assert failures_of(played) == [{}, {"1": "late"}, {"1": "busy"}, {}]
    assert [played.trained(each) for each in (1, 2, 3, 4)] == [list("0123"), list("0123"), list("023"), list("0123")]
    assert_learned_from(played, ["0123", "023", "023", "0123"])


def test_under_a_quorum_a_late_client_is_back_as_soon_as_it_has_answered(play):
    """More messages than one a time would queue up, and it would be late for ever."""
    played = play({("1", PERSONAL, 1): 25.0}, num_rounds=5, deadline=600.0, quorum=0.75)
    assert failures_of(played) == [{"1": "late"}, {"1": "busy"}, {"1": "busy"}, {}, {}]
    assert_learned_from(played, ["023", "023", "023", "0123", "0123"])


def test_a_client_whose_message_was_lost_is_asked_again_when_the_message_expires(play):
    # Flower forgets a message 60 s after the deadline: sent at 10 s, at 100 s. Rounds 3, 4 ... begin at 40 s, 50 s ...
    played = play({("1", PERSONAL, 2): math.inf}, num_rounds=10, deadline=30.0)
    assert failures_of(played) == [{}, {"1": "late"}, *[{"1": "busy"}] * 6, {}, {}]


def test_while_all_are_busy_a_round_waits_for_the_first_to_be_free(play):
    seconds = {(key, PERSONAL, 2): 35.0 + int(key) for key in SIZES}
    played = play(seconds, num_rounds=3, deadline=30.0)
    assert failures_of(played) == [{}, dict.fromkeys("0123", "late"), dict.fromkeys("123", "busy")]
    assert played.trained(3) == ["0"]


def test_a_round_in_which_all_stay_busy_ends_after_the_deadline_and_changes_nothing(play, clock):
    seconds = {(key, PERSONAL, 2): math.inf for key in SIZES}
    played = play(seconds, num_rounds=3, deadline=30.0)
    assert failures_of(played) == [{}, dict.fromkeys("0123", "late"), dict.fromkeys("0123", "busy")]
    assert_learned_from(played, ["0123"])
    assert 1070 <= clock.now < 1072  # 10 s, then twice the deadline


def test_the_final_exchange_is_for_the_busy_too(play):
    played = play({("1", PERSONAL, 2): 100.0}, num_rounds=2, deadline=30.0)
    assert {key for key, _ in played.sent(FINISH)} == set("0123")
    assert played.lines[-1]["client-accuracy"].keys() == set("0123")


def test_a_quorum_ends_an_evaluation_too(play, clock):
    slow = {("1", EVALUATE): 500.0}
    played = play(slow, num_rounds=3, deadline=600.0, participation=0.5, quorum=0.5, seed=3)
    assert "1" in [key for key, _ in played.sent(EVALUATE)]
    assert "late" in [failures.get("1") for failures in failures_of(played)]
    assert clock.now < 1500


def test_a_site_that_comes_back_under_another_node_is_not_taken_for_busy(play):
    """Without registered keys Flower gives a SuperNode another id after every start."""
    owed = OpenRequests()
    owed._open = {"a": OpenRequest("message-0", 101, math.inf)}
    grid = InProcessGrid(Scripted(), NUM_CLIENTS)
    assert owed.busy(grid, {"a": 101, "b": 102}, 0.0) == ["a"]
    assert owed.busy(grid, {"a": 103, "b": 102}, 0.0) == []


# Registration: of a client that comes in round 2, 10 s after the start. Rounds begin at 0 s, 10 s, 20 s ...


def test_a_registration_that_comes_late_is_taken_without_asking_again(play):
    played = play({("3", REGISTER): 35.0}, joins=2, num_rounds=7, deadline=30.0)
    assert failures_of(played) == [{}] * 7
    assert [played.trained(each) for each in range(1, 8)] == [list("012")] * 5 + [list("0123")] * 2  # from 45 s on
    assert [key for key, _ in played.sent(REGISTER)] == list("0123")


def test_a_registration_that_fails_late_is_tried_again(play):
    asked = []

    def fails_once(message, reply):
        asked.append(message)
        return Message(Error(2, "the trainer is being restarted"), reply_to=message) if len(asked) == 1 else reply

    answer = Scripted({("3", REGISTER): fails_once})
    played = play({("3", REGISTER): 5.0}, answer, joins=2, num_rounds=6, deadline=30.0)
    # Asked at 10 s, failed when looked at 20 s, asked again at 30 s.
    assert failures_of(played) == [{}, {}, {"node 103": "client-raised"}, {}, {}, {}]
    assert len(asked) == 2
    assert [played.trained(each) for each in (4, 5)] == [list("012"), list("0123")]


def test_a_late_registration_of_a_node_that_is_gone_is_forgotten(play, clock, small):
    class Leaving(SlowGrid):
        def get_node_ids(self):
            nodes = super().get_node_ids()
            return [node for node in nodes if node != 103 or self.clock.now < 1025]

    config = load_config(small | {"num-rounds": 6, "deadline": 30.0})
    grid = Leaving(clock, {("3", REGISTER): 30.0}, joins=2)
    played = start(config, grid)
    assert failures_of(played) == [{}] * 6
    assert played.strategy.membership._asked.nodes() == set()
    assert played.trained(6) == list("012")


def test_a_late_registration_that_another_node_sends_is_refused(clock, small):
    class Forging(SlowGrid):
        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            for reply in replies:
                if reply.metadata.message_type == protocol.REGISTER and reply.metadata.src_node_id == 103:
                    reply.metadata.__dict__["_src_node_id"] = 102
            return replies

    config = load_config(small | {"num-rounds": 4, "deadline": 30.0})
    played = start(config, Forging(clock, {("3", REGISTER): 5.0}, joins=2))
    assert failures_of(played) == [{}, {}, {"node 103": "wrong-sender"}, {}]
    assert played.trained(4) == list("012")
