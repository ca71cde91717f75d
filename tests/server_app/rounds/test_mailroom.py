"""What goes out, what comes back, and that a reply which is no good costs its client the round and nothing else."""

import json
import random

import pytest
import torch
from flwr.app import Message
from in_process import InProcessGrid
from playing import (
    FINISH,
    HEADER_BYTES,
    MISBEHAVIOUR,
    NUM_CLIENTS,
    PERSONAL,
    SIZES,
    ByHand,
    Scripted,
    array_of,
    assert_same_network,
    honest,
    key_of,
    kind_of,
    play,
    raises,
    reply_to,
    round_of,
    timeless,
    told,
    with_metric,
    with_metrics,
    without_metric,
)

from common import protocol
from common.arrays import WireForm
from common.config import load_config
from common.errors import UserError
from common.evaluation import AFTER_TRAINING, EVALUATIONS, TEST, VALIDATION, Evaluation
from common.protocol import DELTA, THETA, Result
from common.schema import Array, UpTo, Vector
from server_app.client import Client
from server_app.methods.base import Exchange
from server_app.rounds.lineage import Lineage
from server_app.rounds.log import WRONG_COUNT, RoundLog
from server_app.rounds.mailroom import Mailroom, Occasion

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing", "_new_process")


def test_a_training_reply_tells_delta_counts_and_losses_and_nothing_else(run_config):
    played = play(run_config)
    replies = [reply for _, reply in played.received()]
    assert len(replies) == 2 * NUM_CLIENTS
    counts = {"num-examples", "train-loss"}
    for reply in replies:
        tested = {"test-correct", "test-total", "test-loss"} if round_of(reply) == 2 else set()
        assert {name: set(record) for name, record in reply.content.items()} == {
            "metrics": counts | tested,
            "arrays": {"delta"},
        }


# Bad replies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["joint", "per-client", "sequential"])
@pytest.mark.parametrize(("reason", "special"), MISBEHAVIOUR.values(), ids=MISBEHAVIOUR)
def test_a_bad_reply_costs_its_client_the_round_and_changes_nothing_else(small, schedule, reason, special):
    played = play(small, Scripted({("1", PERSONAL, 2): special}), schedule=schedule)
    first, second, third = played.lines
    assert (first["failures"], third["failures"]) == ({}, {})
    assert second["failures"] == {reason: 1}
    assert [(each["client"], each["reason"]) for each in second["failure-list"]] == [("1", reason)]
    assert second["client-train-loss"] == {"0": 1.0, "2": 3.0, "3": 4.0}
    assert second["clients"] == 3
    # The weights of round 1 were to be tested by the reply that was lost; with their own exchange nothing is lost.
    assert first["client-accuracy"].keys() == set("0123" if schedule == "sequential" else "023")
    assert second["client-accuracy"].keys() == set("0123")
    assert third["client-train-loss"].keys() == set("0123")

    by_hand = ByHand.of(played.config, SIZES)
    for server_round in (1, 2, 3):
        # As they were before they were spoilt.
        good = [key for key in played.trained(server_round) if (key, server_round) != ("1", 2)]
        deltas = {key: Scripted().delta(key, server_round) for key in good}
        if schedule == "sequential":
            for key in deltas:
                by_hand.apply({key: deltas[key]})
        else:
            by_hand.apply(deltas)
    assert_same_network(played.method.hn, by_hand.hn)


def test_an_impossible_test_result_costs_the_round_too(small):
    played = play(small, Scripted({("1", PERSONAL, 2): with_metric("test-correct", 101)}))
    assert [line["failures"] for line in played.lines] == [{}, {"malformed": 1}, {}]
    assert played.lines[0]["client-accuracy"].keys() == set("023")


def test_a_round_in_which_everybody_fails_changes_nothing(small):
    special = {(key, PERSONAL, 2): raises for key in SIZES}
    played = play(small, Scripted(special))
    assert [line["clients"] for line in played.lines] == [4, 0, 4]
    assert played.lines[1]["failures"] == {"client-raised": 4}
    assert played.lines[1]["train-loss"] is None
    by_hand = ByHand.of(played.config, SIZES)
    by_hand.apply(played.deltas(1))
    by_hand.apply(played.deltas(3))
    assert_same_network(played.method.hn, by_hand.hn)


def test_a_lost_final_test_is_counted_with_the_last_round(small):
    played = play(small, Scripted({("3", FINISH): raises}))
    assert [line["failures"] for line in played.lines] == [{}, {}, {"client-raised": 1}]
    assert played.lines[-1]["client-accuracy"].keys() == set("012")


def test_a_test_that_nobody_asked_for_is_not_taken(small):
    boasts = with_metrics({"test-correct": 99, "test-total": 100, "test-loss": 0.1})
    played = play(small, Scripted({("1", PERSONAL): boasts}), evaluate_every=3)
    assert [line["accuracy"] for line in played.lines[:2]] == [None, None]


def test_real_clients_that_misbehave_in_different_ways_leave_the_same_network(run_config):
    networks, lines = [], []
    for number, special in enumerate((raises, MISBEHAVIOUR["NaN"][1], MISBEHAVIOUR["too short"][1])):

        def answer(message, context, special=special):
            reply = honest(message, context)
            if kind_of(message) == PERSONAL and context.node_id == 101 and round_of(message) == 1:
                return special(message, reply)
            return reply

        played = play(run_config, answer, run_name=f"run-{number}")
        networks.append(played.method.hn)
        lines.append([{key: line[key] for key in ("client-accuracy", "client-train-loss")} for line in played.lines])
    assert_same_network(networks[0], networks[1])
    assert_same_network(networks[0], networks[2])
    assert lines[0] == lines[1] == lines[2]


# Bytes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [{}, {"participation": 0.5}, {"schedule": "sequential"}, {"method": "fedavg"}])
def test_bytes_are_those_of_the_arrays_of_the_messages(small, overrides):
    special = {("1", PERSONAL, 2): MISBEHAVIOUR["NaN"][1]}
    played = play(small, Scripted(special), **overrides)

    def payload(messages, server_round):
        rounds = {3, 4} if server_round == 3 else {server_round}  # what ends the run counts towards its last round
        return sum(
            len(array.data)
            for message in messages
            if round_of(message) in rounds and message.has_content()
            for record in message.content.array_records.values()
            for array in record.values()
        )

    for line in played.lines:
        assert line["bytes-down"] == payload(played.grid.sent, line["round"]) > 0
        assert line["bytes-up"] == payload(played.grid.received, line["round"]) > 0
    if not overrides:
        each = sum(4 * size + HEADER_BYTES for size in SIZES.values())
        assert [line["bytes-down"] for line in played.lines] == [each, each, 2 * each]  # the last: and the final ones
        assert [line["bytes-up"] for line in played.lines] == [each] * 3


# Quorum ---------------------------------------------------------------------------------------------------------------


def test_a_quorum_updates_with_the_replies_that_came(small):
    holds = {"0": 0, "1": 6, "2": 3, "3": 9}
    slow = Scripted()

    def hold(message):
        return holds[key_of(message.metadata.dst_node_id)] if kind_of(message) == PERSONAL else 0

    played = play(small, slow, hold=hold, quorum=0.5, num_rounds=1)
    (line,) = played.lines
    assert line["failures"] == {"late": 2}
    assert line["client-train-loss"].keys() == {"0", "2"}
    by_hand = ByHand.of(played.config, SIZES)
    by_hand.apply({key: slow.delta(key, 1) for key in ("0", "2")})
    assert_same_network(played.method.hn, by_hand.hn)


def test_a_quorum_does_not_cut_the_final_exchange_short(small):
    # The last exchange hands over the final weights: whoever is cut off has no personal model and no last accuracy.
    played = play(small, Scripted(), hold=lambda message: int(key_of(message.metadata.dst_node_id)), quorum=0.5)
    assert played.lines[-1]["client-accuracy"].keys() == set("0123")


# Order ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [{"schedule": "per-client"}, {"schedule": "joint"}, {"method": "fedavg"}])
def test_the_order_of_the_replies_does_not_change_the_weights(small, overrides):
    sizes = dict.fromkeys(SIZES, 50)
    holds = [lambda message, factor=factor: factor * (message.metadata.dst_node_id - 100) % 4 for factor in (1, 3)]
    runs = [play(small, Scripted(sizes=sizes), hold, run_name=f"run-{i}", **overrides) for i, hold in enumerate(holds)]
    assert list(runs[0].deltas(1)) == ["0", "1", "2", "3"]
    assert list(runs[1].deltas(1)) == ["0", "3", "2", "1"]
    final = [[array_of(message, THETA) for _, message in run.sent(FINISH)] for run in runs]
    assert all(torch.equal(one, other) for one, other in zip(*final, strict=True))


@pytest.mark.parametrize("method", ["fedavg", "local", "mh-pfedhn"])
def test_failures_are_listed_in_one_order_whatever_the_order_of_the_replies(small, method):
    special = {(key, PERSONAL): raises for key in "013"}
    listed = []
    for number in range(3):
        shuffle = random.Random(number)
        played = play(
            small,
            Scripted(special),
            hold=lambda message, shuffle=shuffle: shuffle.randrange(6),
            run_name=f"run-{number}",
            method=method,
            min_clients=1,
        )
        listed.append(json.dumps(timeless(played.lines)))
    assert listed[0] == listed[1] == listed[2]


# An exchange of a method's own ------------------------------------------------------------------------------------


class Post:
    """Exchanges with clients 0, 1, ..., of i + 1 parameters each, which answer as `answer(key, request)` says.

    They have told that they train on `samples`, or i + 1, and test on four.
    """

    def __init__(self, config, answer, clients=3, hold=None, samples=None, max_client_weight=1.0, tests=(TEST,)):
        self.grid = InProcessGrid(lambda message, context: answer(key_of(context.node_id), message), clients, hold=hold)
        self.log = RoundLog(max_client_weight=max_client_weight)
        self.log.open(1)
        self.mailroom = Mailroom(config, self.log, Lineage("run", "line", ()), tests)
        self.clients = [Client(str(i), i + 1, 100 + i, num_train=samples or i + 1, num_test=4) for i in range(clients)]

    def send(self, name="describe", to=None, occasion=None, **exchange):
        """The replies, and the tests that came with them."""
        return self.mailroom.exchange(
            self.grid, Exchange(name, to=self.clients if to is None else to, **exchange), occasion or Occasion(1)
        )

    @property
    def reasons(self):
        return {failure.client: failure.reason for failure in self.log.record.failures}


def told_by(key):
    """What the client of this key says of a training."""
    return Result(int(key) + 1, float(key))


@pytest.fixture
def config(run_config):
    return load_config(run_config | {"max-delta-norm": 100.0, "deadline": 30.0})


MOST = 4
PROTOTYPES = {
    "prototypes": Array((UpTo("n", MOST), 2)),
    "classes": Array((UpTo("n", MOST),), "int64", below=10),
    "count": Array((1,), "int64"),
}


def prototypes(n=2, classes=None, count=1, rows=None, dtype=torch.float32):
    return {
        "prototypes": torch.ones(n if rows is None else rows, 2, dtype=dtype),
        "classes": torch.arange(n) if classes is None else torch.tensor(classes),
        "count": torch.tensor([count]),
    }


@pytest.mark.parametrize("n", [0, 1, MOST])
def test_bounded_arrays_and_whole_numbers_arrive_as_they_were_sent(config, n):
    sent = prototypes(n, count=2**62)
    post = Post(config, lambda key, request: reply_to(request, Result(), sent))
    replies, tests = post.send(expect=PROTOTYPES, losses="")
    assert (list(replies), tests, post.reasons) == (["0", "1", "2"], {}, {})
    for reply in replies.values():
        assert reply.arrays.keys() == sent.keys()
        for name, array in reply.arrays.items():
            assert array.dtype == sent[name].dtype
            assert torch.equal(array, sent[name])
        assert reply.num_examples == 0


@pytest.mark.parametrize(
    ("reason", "arrays"),
    [
        ("wrong-length", prototypes(MOST + 1)),
        ("wrong-length", prototypes(3, rows=2)),  # as many classes as rows
        ("wrong-length", prototypes() | {"prototypes": torch.ones(2, 3)}),
        ("wrong-length", prototypes() | {"prototypes": torch.ones(4)}),
        ("wrong-length", prototypes() | {"count": torch.tensor(1)}),
        ("wrong-length", prototypes() | {"count": torch.tensor([1, 2])}),
        ("out-of-range", prototypes(classes=[0, 10])),
        ("out-of-range", prototypes(classes=[-1, 3])),
        ("wrong-dtype", prototypes() | {"classes": torch.ones(2)}),
        ("wrong-dtype", prototypes() | {"prototypes": torch.ones(2, 2, dtype=torch.int64)}),
        ("not-finite", prototypes() | {"prototypes": torch.full((2, 2), torch.inf)}),
        ("huge-norm", prototypes() | {"prototypes": torch.full((2, 2), 51.0)}),
        ("malformed", {name: each for name, each in prototypes().items() if name != "count"}),
        ("malformed", prototypes() | {"more": torch.ones(1)}),
        ("malformed", {}),
    ],
)
def test_a_reply_that_does_not_fit_its_schema_never_reaches_the_method(config, reason, arrays):
    def answer(key, request):
        return reply_to(request, Result(), arrays if key == "1" else prototypes(count=10**9))

    post = Post(config, answer)
    replies, _ = post.send(expect=PROTOTYPES, losses="")
    assert list(replies) == ["0", "2"]
    assert post.reasons == {"1": reason}


def test_each_client_has_its_own_schema_where_the_method_gives_a_function(config):
    sizes = {"0": 1, "1": 3, "2": 3}  # client 1 is of 2 parameters
    post = Post(config, lambda key, request: reply_to(request, told_by(key), {DELTA: torch.ones(sizes[key])}))
    replies, _ = post.send(expect=lambda client: {DELTA: Vector(client.num_params)})
    assert {key: len(delta) for key, delta in replies.of(DELTA).items()} == {"0": 1, "2": 3}
    assert post.reasons == {"1": "wrong-length"}
    assert [(len(delta), weight) for delta, weight in replies.weighted(DELTA)] == [(1, 1), (3, 3)]
    assert [(len(delta), weight) for delta, weight in replies.weighted(DELTA, {"2"})] == [(3, 3)]


@pytest.mark.parametrize("seed", range(3))
def test_replies_come_in_the_natural_order_of_their_keys_whoever_answered_first(config, seed):
    shuffle = random.Random(seed)
    post = Post(
        config,
        lambda key, request: reply_to(request, told_by(key)),
        clients=12,
        hold=lambda message: shuffle.randrange(30),
    )
    replies, _ = post.send()
    keys = [str(i) for i in range(12)]
    assert [key_of(message.metadata.src_node_id) for message in post.grid.received] != keys
    assert list(replies) == keys
    assert [reply.num_examples for reply in replies.values()] == list(range(1, 13))


COUNTED = Result(7, 0.5)
SAMPLES = COUNTED.num_examples
UNCOUNTED = (without_metric("train-loss"), without_metric("num-examples"))


@pytest.mark.parametrize("spoil", UNCOUNTED, ids=["no loss", "no count"])
def test_a_training_exchange_needs_loss_and_count(config, spoil):
    post = Post(config, lambda key, request: spoil(request, reply_to(request, COUNTED)))
    replies, _ = post.send(to=post.clients[:1])
    assert replies == {}
    (failure,) = post.log.record.failures
    assert (failure.client, failure.reason) == ("0", "malformed")
    assert failure.detail == "the reply to a training exchange holds num-examples and train-loss"


@pytest.mark.parametrize("spoil", UNCOUNTED, ids=["no loss", "no count"])
def test_an_exchange_without_training_needs_neither(config, spoil):
    post = Post(config, lambda key, request: spoil(request, reply_to(request, COUNTED)), samples=SAMPLES)
    replies, _ = post.send(losses="")
    assert list(replies) == ["0", "1", "2"]
    assert post.reasons == {}
    assert post.log.record.train_losses == post.log.record.extra_losses == {}


def test_losses_stand_under_the_name_that_the_exchange_gives_them(config):
    post = Post(config, lambda key, request: reply_to(request, COUNTED), samples=SAMPLES)
    post.send(losses="")
    assert post.log.record.train_losses == post.log.record.extra_losses == {}
    post.send(losses="head")
    post.send(to=post.clients[:2])
    assert post.log.record.extra_losses == {"head": dict.fromkeys("012", (0.5, 7))}
    assert post.log.record.train_losses == dict.fromkeys("01", (0.5, 7))


def test_losses_that_come_with_the_reply_to_a_test_are_not_those_of_a_training(config):
    result = Result(7, 0.5, {TEST: Evaluation(3, 4, 0.1)})
    post = Post(config, lambda key, request: reply_to(request, result), samples=SAMPLES)
    occasion = Occasion(1, protocol.DEPLOY, test=True)
    _, tests = post.send("deploy", deploys=True, occasion=occasion)
    assert tests == dict.fromkeys("012", result.evaluations)
    assert post.log.record.train_losses == {}


def test_a_client_is_held_to_the_numbers_of_samples_that_it_registered(config):
    tested = {TEST: Evaluation(3, 4, 0.1)}
    results = {
        "0": Result(1, 0.5, tested),
        "1": Result(10**12, 0.5, tested),
        "2": Result(3, 0.5, {TEST: Evaluation(10**15, 10**15, 0.1)}),
    }
    post = Post(config, lambda key, request: reply_to(request, results[key]))
    replies, tests = post.send(deploys=True, occasion=Occasion(2, test=True))
    assert (list(replies), tests) == (["0"], {"0": tested})
    assert [(failure.client, failure.reason, failure.detail) for failure in post.log.record.failures] == [
        ("1", WRONG_COUNT, "num-examples is 1,000,000,000,000, but train-samples was 2 at registration"),
        ("2", WRONG_COUNT, "test-total is 1,000,000,000,000,000, but test-samples was 4 at registration"),
    ]


def test_further_tests_are_held_to_what_is_known_of_their_samples(config):
    right, wrong = Evaluation(3, 4, 0.1), Evaluation(3, 5, 0.1)
    limit = config.max_samples
    claims = {
        "0": {TEST: right, AFTER_TRAINING: right, VALIDATION: Evaluation(7, limit, 0.1)},
        "1": {TEST: right, AFTER_TRAINING: wrong},
        "2": {TEST: right, VALIDATION: Evaluation(7, limit + 1, 0.1)},
        "3": {TEST: right},
    }
    post = Post(config, lambda key, request: reply_to(request, Result(evaluations=claims[key])), 4, tests=EVALUATIONS)
    replies, tests = post.send("deploy", deploys=True, losses="", occasion=Occasion(2, protocol.DEPLOY, test=True))
    assert {told(message).tests for message in post.grid.sent} == {EVALUATIONS}
    assert list(replies) == ["0", "3"]
    assert tests == {key: claims[key] for key in "03"}
    assert [(failure.client, failure.reason, failure.detail) for failure in post.log.record.failures] == [
        ("1", WRONG_COUNT, "after-training-total is 5, but test-samples was 4 at registration"),
        ("2", "too-many-samples", f"validation-total is {limit + 1:,}, above max-samples ({limit:,})"),
    ]


@pytest.mark.parametrize("tests", [(TEST,), (TEST, AFTER_TRAINING), (TEST, VALIDATION)])
def test_of_the_tests_those_are_taken_that_were_asked_for(config, tests):
    right = Evaluation(3, 4, 0.1)
    all_of_them = Result(evaluations=dict.fromkeys(EVALUATIONS, right))
    post = Post(config, lambda key, request: reply_to(request, all_of_them), tests=tests)
    _, taken = post.send("deploy", deploys=True, losses="", occasion=Occasion(2, protocol.DEPLOY, test=True))
    assert taken == {key: dict.fromkeys(tests, right) for key in "012"}


def test_further_tests_without_that_of_the_weights_as_they_came_are_no_reply_to_a_test(config):
    claims = {name: Evaluation(3, 4, 0.1) for name in (AFTER_TRAINING, VALIDATION)}
    post = Post(config, lambda key, request: reply_to(request, Result(evaluations=claims)), tests=EVALUATIONS)
    occasion = Occasion(2, protocol.DEPLOY, test=True)
    assert post.send("deploy", deploys=True, losses="", occasion=occasion) == ({}, {})
    assert post.reasons == dict.fromkeys("012", "malformed")


@pytest.mark.parametrize("losses", ["", "train"])
@pytest.mark.parametrize("count", [2, 4])
def test_a_count_that_nobody_needs_is_held_to_the_registration_too(config, losses, count):
    result = Result(count, 0.5) if losses else Result(count)
    post = Post(config, lambda key, request: reply_to(request, result), samples=3)
    assert post.send(losses=losses) == ({}, {})
    assert post.reasons == dict.fromkeys("012", WRONG_COUNT)


# Weights in means -----------------------------------------------------------------------------------------------------


SHARES = {"2": 10**7 / (10**7 + 3)}


def claims(post):
    """Client 2 has told ten million samples, in place of three."""
    post.clients[2].num_train = 10**7
    return post


def claim_of(key, request):
    return reply_to(request, Result(10**7 if key == "2" else int(key) + 1, float(key)), {"row": torch.ones(1, 2)})


def test_no_client_weighs_more_in_a_mean_than_its_share_and_that_is_said_once(config, caplog):
    post = claims(Post(config, claim_of, max_client_weight=0.5))
    replies, _ = post.send(expect={"row": Array((1, 2))})
    assert [weight for _, weight in replies.weighted("row")] == [1, 2, 3]
    assert [reply.num_examples for reply in replies.values()] == [1, 2, 10**7]
    assert post.log.record.capped == pytest.approx(SHARES)
    post.send(expect={"row": Array((1, 2))})
    said = [record.getMessage() for record in caplog.records if "max-client-weight" in record.getMessage()]
    assert said == ["Round 1: client 2 claims 100.0 % of the samples, counts 50.0 % (max-client-weight)."]


def test_a_mean_over_some_of_the_clients_has_shares_of_its_own(config):
    def answer(key, request):
        return reply_to(request, told_by(key), {"row": torch.ones(1, 2)})

    post = Post(config, answer, clients=4, max_client_weight=0.5)
    replies, _ = post.send(expect={"row": Array((1, 2))})
    assert [weight for _, weight in replies.weighted("row")] == [1, 2, 3, 4]
    assert post.log.record.capped == {}
    assert [weight for _, weight in replies.weighted("row", ["0", "3"])] == [1, 1]
    assert post.log.record.capped == {"3": 0.8}


def test_weights_without_a_limit_are_the_numbers_of_samples(config):
    post = claims(Post(config, claim_of))
    replies, _ = post.send(expect={"row": Array((1, 2))})
    assert [weight for _, weight in replies.weighted("row")] == [1, 2, 10**7]
    assert post.log.record.capped == {}


@pytest.mark.parametrize("deploys", [False, True])
@pytest.mark.parametrize("test", [False, True])
def test_only_the_exchange_that_deploys_is_a_test_and_needs_a_result(config, deploys, test):
    post = Post(config, lambda key, request: reply_to(request, Result()))
    replies, tests = post.send("deploy", deploys=deploys, occasion=Occasion(1, protocol.DEPLOY, test=test))
    instructions = [told(message) for message in post.grid.sent]
    assert {each.deploys for each in instructions} == {deploys}
    assert {each.tests for each in instructions} == {(TEST,) if deploys and test else ()}
    assert tests == {}
    if deploys and test:
        assert replies == {}
        assert {failure.detail for failure in post.log.record.failures} == {
            "the reply to a test holds test-correct, test-total and test-loss"
        }
    else:
        assert list(replies) == ["0", "1", "2"]


def test_a_client_that_still_works_on_an_exchange_is_left_out_of_the_next_and_nothing_is_made_for_it(config, clock):
    made = []

    def send(clients):
        made.append([client.key for client in clients])
        return {client.key: {"w": torch.ones(client.num_params)} for client in clients}

    slow = {"1": 10**6}
    post = Post(
        config,
        lambda key, request: reply_to(request, Result()),
        hold=lambda message: slow.pop(key_of(message.metadata.dst_node_id), 0),
    )
    first, _ = post.send(send=send, losses="")
    second, _ = post.send("refine", send=send, losses="")
    assert made == [["0", "1", "2"], ["0", "2"]]
    assert list(first) == list(second) == ["0", "2"]
    assert [(failure.client, failure.reason) for failure in post.log.record.failures] == [("1", "late"), ("1", "busy")]
    # The end of a run is for the busy too.
    result = Result(evaluations={TEST: Evaluation(3, 4, 0.1)})
    post.grid.answer = lambda message, context: reply_to(message, result)
    occasion = Occasion(2, protocol.DEPLOY, test=True, final=True)
    post.send("deploy", send=send, deploys=True, occasion=occasion)
    assert made[2] == ["0", "1", "2"]
    assert [told(message).final for message in post.grid.sent] == [False] * 5 + [True] * 3


def test_arrays_that_are_the_same_for_all_need_no_function(config):
    arrays = {"w": torch.arange(3.0), "round": torch.tensor([4])}
    post = Post(config, lambda key, request: reply_to(request, Result()))
    post.send(send=arrays, losses="")
    for message in post.grid.sent:
        assert array_of(message, "w").tolist() == [0, 1, 2]
        assert array_of(message, "round").tolist() == [4]
    each = 2 * HEADER_BYTES + 3 * 4 + 8
    assert (post.log.record.bytes_down, post.log.record.bytes_up) == (3 * each, 0)


def test_only_vectors_take_the_wire_form_and_clients_are_told_which(run_config):
    config = load_config(run_config | {"upload": "half"})
    schema = {"w": Vector(3), "b": Array((3,)), "n": Array((1,), "int64")}
    arrays = {"w": torch.tensor([1.0, 2.0, 1e-3]), "b": torch.tensor([1.0, 2.0, 1e-3]), "n": torch.tensor([70000])}

    def answer(key, request):
        compress = told(request).compress
        assert compress == ("w",)
        content = protocol.encode_result(Result(), arrays, WireForm("half"), compress)
        assert {name: array.dtype for name, array in content["arrays"].items()} == {
            "w": "float16",
            "b": "float32",
            "n": "int64",
        }
        return Message(content, reply_to=request)

    post = Post(config, answer)
    replies, _ = post.send(expect=schema, losses="")
    assert list(replies) == ["0", "1", "2"]
    for reply in replies.values():
        assert torch.equal(reply.arrays["w"], arrays["w"].half().float())
        assert torch.equal(reply.arrays["b"], arrays["b"])
        assert torch.equal(reply.arrays["n"], arrays["n"])


@pytest.mark.parametrize(("method", "refused"), [("mh-pfedhn", {"1": "huge-norm"}), ("local", {})])
def test_only_a_method_with_a_bound_on_norms_has_one(small, method, refused):
    del small["method"]
    keys = {"max-delta-norm", "chunk-size", "embedding-dim", "hidden-dim"}
    settings = {key: value for key, value in small.items() if method == "mh-pfedhn" or key not in keys}
    huge = 1e6 * torch.ones(1, 2)
    post = Post(
        load_config(settings | {"method": method}),
        lambda key, request: reply_to(request, Result(), {"row": huge if key == "1" else torch.ones(1, 2)}),
    )
    post.send(expect={"row": Array((1, 2))}, losses="")
    assert post.reasons == refused


def test_a_method_that_forgets_a_client_is_told_which_and_where(config):
    post = Post(config, lambda key, request: reply_to(request, COUNTED))
    with pytest.raises(UserError, match=r"sends nothing to client 1 in exchange 'describe'"):
        post.send(send=lambda clients: {"0": {}, "2": {}})
