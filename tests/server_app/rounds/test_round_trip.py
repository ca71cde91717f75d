"""When replies are handed on, when an exchange ends, and what is said of those who failed."""

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from playing import Talk, echo

from common.refusal import REASONS
from server_app.rounds.log import RoundLog
from server_app.rounds.round_trip import OpenRequests, describe_error

pytestmark = pytest.mark.usefixtures("clock")


def on_node(node, special, usual=echo):
    return lambda message, context: (special if context.node_id == node else usual)(message, context)


def fails_with(code, reason="somehow"):
    return lambda message, context: Message(Error(code, reason), reply_to=message)


def never(message, context):
    return None


def test_every_client_gets_its_request_and_its_reply_comes_under_its_key():
    talk = Talk()
    replies = dict(talk.trip.replies())
    assert talk.grid.sent == list(talk.requests.values())
    assert {key: reply.metadata.src_node_id for key, reply in replies.items()} == {"a": 100, "b": 101, "c": 102}
    assert talk.failures == []


def test_a_reply_is_handed_on_before_the_others_arrive(clock):
    talk = Talk(hold={"a": 8, "b": 0, "c": 4})
    arrivals = [(client, talk.grid.looks, clock.now) for client, _ in talk.trip.replies()]
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


def test_a_long_wait_is_told_of_every_half_minute_and_a_short_one_never(clock):
    talk = Talk(hold={"a": 0, "b": 400, "c": 0}, answer=on_node(102, never), deadline=100)
    times = []
    talk.trip._wait = lambda answered, missing: times.append((clock.now - 1000, answered, missing))
    assert talk.run() == ["a", "b"]
    assert [(answered, missing) for _, answered, missing in times] == [(1, ["b", "c"]), (2, ["c"]), (2, ["c"])]
    assert all(30 * turn <= since < 30 * turn + 2 for turn, (since, _, _) in enumerate(times, start=1))
    short = Talk(deadline=29, answer=never)
    short.run()
    assert short.waits == []


def test_who_is_waited_for_is_said_in_order_and_at_most_ten_are_named(caplog):
    record = RoundLog()
    record.open(3)
    with caplog.at_level("INFO", "flwr"):
        record.wait(1, ["10", "9"])
        record.wait(0, [str(number) for number in range(12)])
    first, second = [message for message in caplog.messages if "waiting" in message]
    assert first == "Round 3: 1 of 3 clients have answered; waiting for 9, 10."
    assert second == "Round 3: 0 of 12 clients have answered; waiting for 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more."


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
    for client, _ in talk.trip.replies():
        if client == "a":
            talk.trip.reject(client, "not-finite", "NaN")
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
        ("ValueError:\n   no data", "ValueError: no data"),
        ("\x1b[36mray::run()\x1b[39m trace\nException ClientAppException occurred. Message: no data", "no data"),
        ("<class 'X'>:<'ray::run()\nException ClientAppException occurred. Message: no data'>", "no data"),
        ("ValueError: <'no data'>", "ValueError: <'no data'>"),
        ("\x1b]0;title\x07no\x1b[2J data", "no data"),
        ("x" * 600, "x" * 500),
    ],
)
def test_an_error_of_a_simulated_client_is_told_in_its_own_words(reason, sentence):
    assert describe_error(Error(2, reason), quotes_clients=True) == ("client-raised", sentence)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 7, 8, 99])
def test_an_error_of_a_real_site_is_told_in_our_words_whatever_flower_quotes(code):
    name, sentence = describe_error(Error(code, "/home/secret: no data"), quotes_clients=False)
    assert sentence
    assert "secret" not in sentence
    # Also where a simulated client gave no reason.
    assert describe_error(Error(code, None), quotes_clients=True) == (name, sentence)


def refuses(reason, detail):
    content = RecordDict({"refusal": ConfigRecord({"reason": reason, "detail": detail})})
    return lambda message, context: Message(content, reply_to=message)


@pytest.mark.parametrize(
    ("reason", "known"),
    [
        *((reason, reason) for reason in REASONS),
        *((reason, "client-failed") for reason in ("", "/home/secret", "late", "\x1b[2J", 7, b"disk-full")),
    ],
)
def test_a_refusal_costs_the_client_its_round_and_only_codes_that_are_known_are_counted(reason, known):
    talk = Talk(answer=on_node(101, refuses(reason, "words")))
    assert talk.run() == ["a", "c"]
    assert talk.failures == [("b", known)]


def test_the_words_of_a_refusal_are_dropped_unless_the_client_is_simulated():
    said = []
    for quotes_clients in (False, True):
        talk = Talk(answer=on_node(101, refuses("disk-full", "/home/\x1b[31msecret is full\n")))
        talk.trip._quotes_clients = quotes_clients
        talk.trip._note = lambda client, reason, detail: said.append(detail)
        talk.run()
    assert said == [REASONS["disk-full"], "/home/secret is full"]


def test_a_refusal_in_another_clients_name_is_not_its():
    talk = Talk(answer=on_node(101, refuses("disk-full", "")))
    pull = talk.grid.pull_messages

    def pull_messages(identifiers):
        found = pull(identifiers)
        for message in found:
            if "refusal" in message.content:
                message.metadata.__dict__["_src_node_id"] = 100
        return found

    talk.grid.pull_messages = pull_messages
    talk.run()
    assert talk.failures == [("b", "wrong-sender")]


def breaks_on(grid, broken, error=None):
    """Replies of these nodes cannot be unpacked; as in Flower all that a pull finds is gone when it fails."""
    pull = grid.pull_messages

    def pull_messages(identifiers):
        found = pull(identifiers)
        if any(message.metadata.src_node_id in broken for message in found):
            raise error or ValueError("no record")
        return found

    grid.pull_messages = pull_messages


def test_a_reply_whose_bytes_are_no_message_costs_its_client_the_round_and_nobody_else():
    talk = Talk(hold={"a": 0, "b": 3, "c": 9})
    breaks_on(talk.grid, {101})
    talk.trip._pull._one_by_one = True  # as after the first such reply of a run
    assert talk.run() == ["a", "c"]
    assert talk.failures == [("b", "malformed")]


def test_the_first_reply_that_is_no_message_does_not_end_the_run():
    talk = Talk(hold={"a": 0, "b": 5, "c": 20}, deadline=10.0)
    breaks_on(talk.grid, {101})
    assert talk.run() == ["a", "c"]
    assert talk.failures == [("b", "late")]  # this grid forgot it; Flower says that it is unavailable
    assert talk.trip._pull._one_by_one


def test_a_late_reply_that_is_no_message_is_answered_too():
    talk = Talk()
    breaks_on(talk.grid, {101})
    requests = OpenRequests()
    requests._pull._one_by_one = True
    for client, message in talk.requests.items():
        requests.send(talk.grid, client, message)
    replies = requests.wait(talk.grid, 5.0)
    assert [client for client, reply in sorted(replies.items()) if reply is None] == ["b"]
    assert set(replies) == set("abc")
    assert requests.nodes() == set()


@pytest.mark.parametrize("is_told_by_the_pull", [True, False])
def test_a_superlink_that_is_gone_ends_the_exchange(is_told_by_the_pull, monkeypatch):
    """Flower's HTTP client has errors of its own, which say nothing by their types."""
    talk = Talk()
    breaks_on(talk.grid, {100, 101, 102}, ConnectionError("gone") if is_told_by_the_pull else RuntimeError("gone"))

    def gone():
        raise RuntimeError("gone")

    if not is_told_by_the_pull:
        monkeypatch.setattr(talk.grid, "get_node_ids", gone)
        talk.trip._pull._one_by_one = True
    with pytest.raises((ConnectionError, RuntimeError), match="gone"):
        talk.run()


# Replies that nobody waits for ----------------------------------------------------------------------------------------


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
    assert talk.trip._rejected == set()


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
