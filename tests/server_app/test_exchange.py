"""When replies are handed on, when an exchange ends, and what is said of those who failed."""

import pytest
from flwr.app import Error, Message, RecordDict
from in_process import InProcessGrid
from server_app.exchange import Exchange, describe_error, wait_for_nodes

from common.errors import UserError

pytestmark = pytest.mark.usefixtures("clock")


def echo(message, context):
    return Message(RecordDict(), reply_to=message)


class Talk:
    """An exchange with nodes 100, 101, ...; their clients' keys are a, b, ..."""

    def __init__(self, answer=echo, clients=3, deadline=60.0, quorum=1.0, hold=None):
        by_node = None if hold is None else lambda message: hold[chr(message.metadata.dst_node_id - 3)]
        self.grid = InProcessGrid(answer, clients, hold=by_node)
        self.requests = {
            chr(97 + i): Message(RecordDict(), 100 + i, "train.personal", ttl=100.0) for i in range(clients)
        }
        self.failures = []
        self.exchange = Exchange(self.grid, self.requests, deadline, quorum, self.fail)

    def fail(self, client, reason, detail):
        self.failures.append((client, reason))

    def run(self):
        return [client for client, _ in self.exchange.replies()]


def on_node(node, special, usual=echo):
    return lambda message, context: (special if context.node_id == node else usual)(message, context)


def fails_with(code, reason="somehow"):
    return lambda message, context: Message(Error(code, reason), reply_to=message)


def never(message, context):
    return None


def test_every_client_gets_its_request_and_its_reply_comes_under_its_key():
    talk = Talk()
    replies = dict(talk.exchange.replies())
    assert talk.grid.sent == list(talk.requests.values())
    assert {key: reply.metadata.src_node_id for key, reply in replies.items()} == {"a": 100, "b": 101, "c": 102}
    assert talk.failures == []


def test_a_reply_is_handed_on_before_the_others_arrive(clock):
    talk = Talk(hold={"a": 8, "b": 0, "c": 4})
    arrivals = [(client, talk.grid.looks, clock.now) for client, _ in talk.exchange.replies()]
    assert [(client, looks) for client, looks, _ in arrivals] == [("b", 1), ("c", 5), ("a", 9)]
    assert arrivals[0][2] == 1000.0
    assert arrivals[1][2] < arrivals[2][2]


def test_looks_become_rarer_the_longer_nothing_comes_but_never_rarer_than_half_a_second(clock, monkeypatch):
    pauses = []  # (waited so far, pause)
    sleep = clock.sleep
    monkeypatch.setattr(clock, "sleep", lambda seconds: (pauses.append((clock.now - 1000, seconds)), sleep(seconds)))
    talk = Talk(hold={"a": 600, "b": 600, "c": 600}, deadline=1000)
    assert sorted(talk.run()) == ["a", "b", "c"]
    assert pauses[0][1] == 0.02
    assert pauses[-1][1] == 0.5
    assert all(pause <= max(0.02, 0.01 * waited + 1e-9) for waited, pause in pauses)
    assert all(pause >= min(0.01 * waited, 0.5) - 1e-9 for waited, pause in pauses)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0, "unknown"),
        (1, "client-not-loadable"),
        (2, "client-raised"),
        (3, "message-unavailable"),
        (4, "message-unavailable"),
        (5, "node-unavailable"),
        (6, "refused-by-mod"),
        (7, "bad-app-bundle"),
        (8, "client-crashed"),
        (99, "unknown"),
    ],
)
def test_an_error_reply_is_named_and_found_by_the_message_it_replies_to(code, name):
    talk = Talk(answer=on_node(101, fails_with(code)))
    assert talk.run() == ["a", "c"]
    assert talk.failures == [("b", name)]
    (error,) = [message for message in talk.grid.received if message.has_error()]
    assert error.metadata.src_node_id == 1  # Flower's own, so the node is no help in finding the client


def test_the_deadline_ends_the_exchange_and_the_missing_are_late(clock):
    talk = Talk(answer=on_node(101, never), deadline=7.0)
    assert talk.run() == ["a", "c"]
    assert talk.failures == [("b", "late")]
    assert clock.now == pytest.approx(1007.0)


def test_a_reply_that_is_there_at_the_deadline_counts(clock):
    # Looks at 0, 0.02, 0.04 and, cut short by the deadline, 0.05.
    talk = Talk(deadline=0.05, hold={"a": 3, "b": 4, "c": 0})
    assert talk.run() == ["c", "a"]
    assert talk.failures == [("b", "late")]


def test_a_quorum_of_good_replies_ends_the_exchange_and_the_rest_is_late(clock):
    talk = Talk(clients=4, quorum=0.5, hold={"a": 9, "b": 0, "c": 3, "d": 9})
    assert talk.run() == ["b", "c"]
    assert talk.failures == [("a", "late"), ("d", "late")]
    assert clock.now < 1001


def test_replies_that_came_together_with_the_last_of_the_quorum_count_too():
    talk = Talk(clients=4, quorum=0.5, hold={"a": 1, "b": 1, "c": 1, "d": 9})
    assert talk.run() == ["a", "b", "c"]
    assert talk.failures == [("d", "late")]


@pytest.mark.parametrize(
    ("quorum", "clients", "needed"),
    [(1.0, 3, 3), (0.5, 4, 2), (0.5, 5, 3), (0.01, 3, 1), (0.99, 3, 3), (0.28, 25, 7), (0.56, 25, 14)],
)
def test_a_quorum_is_the_share_of_the_clients_rounded_up(quorum, clients, needed):
    talk = Talk(clients=clients, quorum=quorum, hold={chr(97 + i): i for i in range(clients)})
    assert len(talk.run()) == needed
    assert len(talk.failures) == clients - needed


def test_a_rejected_reply_does_not_count_towards_the_quorum():
    talk = Talk(clients=4, quorum=0.5, hold={"a": 0, "b": 2, "c": 4, "d": 6})
    taken = []
    for client, _ in talk.exchange.replies():
        if client == "a":
            talk.exchange.reject(client, "not-finite", "NaN")
        else:
            taken.append(client)
    assert taken == ["b", "c"]
    assert talk.failures == [("a", "not-finite"), ("d", "late")]


def test_errors_do_not_count_towards_the_quorum():
    talk = Talk(answer=on_node(100, fails_with(2)), quorum=0.3, hold={"a": 0, "b": 3, "c": 9})
    assert talk.run() == ["b"]
    assert talk.failures == [("a", "client-raised"), ("c", "late")]


def test_an_exchange_with_nobody_left_to_wait_for_ends_at_once(clock):
    talk = Talk(answer=fails_with(8))
    assert talk.run() == []
    assert talk.failures == [(client, "client-crashed") for client in "abc"]
    assert clock.now == 1000.0


def test_a_refused_message_fails_its_client_and_the_others_go_on():
    talk = Talk()
    talk.grid.connected.remove(100)
    assert talk.run() == ["b", "c"]
    assert talk.failures == [("a", "not-sent")]


def test_when_every_message_is_refused_the_exchange_ends_at_once(clock):
    talk = Talk()
    talk.grid.connected.clear()
    assert talk.run() == []
    assert talk.failures == [(client, "not-sent") for client in "abc"]
    assert clock.now == 1000.0


def test_messages_too_large_for_flower_fail_their_clients(monkeypatch):
    # HttpGrid.push_messages then logs "request entity too large" and returns an empty list.
    talk = Talk()
    monkeypatch.setattr(talk.grid, "push_messages", lambda messages: [])
    assert talk.run() == []
    assert talk.failures == [(client, "not-sent") for client in "abc"]


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        (None, "no reason given"),
        ("ValueError:\n   no data", "ValueError: no data"),
        ("\x1b[36mray::run()\x1b[39m trace\nException ClientAppException occurred. Message: no data", "no data"),
        ("x" * 600, "x" * 500),
    ],
)
def test_an_error_is_told_in_the_clients_own_words(reason, sentence):
    assert describe_error(Error(2, reason)) == ("client-raised", sentence)


def test_waiting_for_nodes_goes_on_while_more_come(monkeypatch):
    grid = InProcessGrid(echo, 4)
    counts = iter([1, 2, 4, 4, 3])
    monkeypatch.setattr(grid, "get_node_ids", lambda: [103, 100, 102, 101][: next(counts)])
    assert wait_for_nodes(grid, at_least=2, timeout=60.0) == [100, 101, 102, 103]


def test_too_few_nodes_are_told_with_what_to_do(clock):
    with pytest.raises(UserError, match=r"3 of at least 5 nodes \(min-clients\) connected within 30 s .* lower"):
        wait_for_nodes(InProcessGrid(echo, 3), at_least=5, timeout=30.0)
    assert clock.now == pytest.approx(1030.0, abs=1)
