"""The round loop and its methods, with scripted clients and with the real ClientApp, all in one process."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord
from flwr.serverapp.strategy import Result
from fresh_process import new_process
from in_process import InProcessGrid

from client_app.app import app as honest
from client_app.site.simulated import simulated_site
from client_app.training import evaluate
from common import protocol
from common.config import Config, load_config
from common.errors import UserError
from common.evaluation import Evaluation
from common.models import build_model
from common.params import ParameterVector
from common.protocol import DELTA, THETA, Registration, TrainingResult
from server_app import tracking
from server_app.app import serve
from server_app.hypernetwork import HyperNetwork
from server_app.optim import HyperNetworkOptimizer
from server_app.strategies import STRATEGIES, RoundStrategy, Run, hypernet

NUM_CLIENTS = 4
SIZES = {"0": 50, "1": 90, "2": 50, "3": 20}  # K of the scripted clients
HEADER_BYTES = 128  # of NumPy's file format, for a vector

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing", "_new_process")


@pytest.fixture
def _no_drawing(monkeypatch):
    monkeypatch.setattr(tracking, "write_report", lambda folder: None)


@pytest.fixture
def _new_process():
    yield
    new_process()


# Runs -------------------------------------------------------------------------------------------------------------


@dataclass
class Played:
    """A run that is over."""

    config: Config
    grid: InProcessGrid
    strategy: RoundStrategy
    result: Result
    folder: Path

    @property
    def lines(self):
        return lines_of(self.folder)

    def sent(self, message_type=protocol.PERSONAL, server_round=None):
        """(client, message) in the order of sending."""
        return [
            (key_of(message.metadata.dst_node_id), message)
            for message in self.grid.sent
            if message.metadata.message_type == message_type and server_round in (None, round_of(message))
        ]

    def trained(self, server_round):
        """Keys of the clients that were asked to train, in order."""
        return [key for key, _ in self.sent(server_round=server_round)]

    def deltas(self, server_round):
        """What the clients brought back, in the order of arrival."""
        return {
            key_of(message.metadata.src_node_id): vector_of(message, DELTA)
            for message in self.grid.received
            if message.metadata.message_type == protocol.PERSONAL
            and round_of(message) == server_round
            and message.has_content()
        }


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(lines):
    return [{key: value for key, value in line.items() if "seconds" not in key} for line in lines]


def key_of(node):
    return str(node - 100)


def round_of(message):
    return int(message.metadata.group_id or 0)


def vector_of(message, name):
    return torch.from_numpy(message.content["vectors"][name].numpy().copy())


def play(run_config, answer=honest, hold=None, **overrides) -> Played:
    """Run a federation to its end; overrides are config keys with underscores."""
    run_config = run_config | {key.replace("_", "-"): value for key, value in overrides.items()}
    return start(load_config(run_config), InProcessGrid(answer, NUM_CLIENTS, run_config, hold))


def strategy_for(config, nodes_may_come=False) -> RoundStrategy:
    folder = config.results_path / config.run_name
    tracker = tracking.RunTracker(folder, config.to_dict(), num_rounds=config.num_rounds)
    return STRATEGIES[config.method](
        Run(config, tracker, lambda client: f"K = {client.num_params}", nodes_may_come=nodes_may_come)
    )


def start(config, grid, strategy=None) -> Played:
    strategy = strategy or strategy_for(config)
    result = strategy.start(grid, ArrayRecord(), config.num_rounds, timeout=config.deadline)
    return Played(config, grid, strategy, result, config.results_path / config.run_name)


class Scripted:
    """Clients without models: client i has SIZES[i] parameters and 10 (i + 1) samples, its deltas are random numbers.

    A test's result tells the round of the request that asked for it: so many of 100 answers are right. `special` holds
    functions that spoil replies, by client and message type, or by these and the round.
    """

    def __init__(self, special=None, sizes=None, delta=None):
        self.special = special or {}
        self.sizes = sizes or SIZES
        self.delta = delta or self.random_delta

    def random_delta(self, key, server_round):
        generator = torch.Generator().manual_seed(1000 * server_round + int(key))
        return torch.randn(self.sizes[key], generator=generator)

    def __call__(self, message, context):
        key, kind = str(context.node_config["partition-id"]), message.metadata.message_type
        spoil = self.special.get((key, kind, round_of(message))) or self.special.get((key, kind))
        reply = self.usual(key, message)
        return spoil(message, reply) if spoil else reply

    def usual(self, key, message):
        kind, server_round = message.metadata.message_type, round_of(message)
        if kind == protocol.REGISTER:
            content = protocol.encode_registration(Registration(key, self.sizes[key]))
        elif kind == protocol.PERSONAL:
            evaluation = None
            if message.content["instructions"]["evaluate"]:
                evaluation = Evaluation(server_round, 100, 0.5)
            result = TrainingResult(10 * (int(key) + 1), 1.0 + int(key), evaluation)
            content = protocol.encode_training_result(result, {DELTA: self.delta(key, server_round)})
        else:
            content = protocol.encode_evaluation(Evaluation(server_round, 100, 0.5))
        return Message(content, reply_to=message)


@dataclass
class ByHand:
    """The hypernetwork of a run, moved by hand."""

    hn: HyperNetwork
    optimizer: HyperNetworkOptimizer

    @classmethod
    def of(cls, config, sizes):
        hn = HyperNetwork(
            chunk_size=config.chunk_size,
            embedding_dim=config.embedding_dim,
            hidden_dim=config.hidden_dim,
            hidden_layers=config.hidden_layers,
            head_init_scale=config.resolved_head_init_scale,
            embedding_init_std=config.embedding_init_std,
            seed=config.seed,
        )
        for key, size in sizes.items():
            hn.register(key, size)
        return cls(hn, HyperNetworkOptimizer(hn, config.hn_lr, config.schedule, config.reduction))

    def theta(self, *keys):
        with torch.no_grad():
            return dict(zip(keys, self.hn.generate(keys), strict=True))

    def apply(self, deltas):
        self.optimizer.apply({key: deltas[key] for key in sorted(deltas)})


def assert_same_network(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def sizes_of(played):
    return {client.key: client.num_params for client in played.strategy.registry.clients}


@pytest.fixture
def small(run_config):
    """A config for the scripted clients: several chunks each."""
    return run_config | {"chunk-size": 16, "num-rounds": 3, "deadline": 30.0}


# Registration -----------------------------------------------------------------------------------------------------


def test_a_registration_tells_the_size_and_the_key_and_nothing_else(run_config):
    played = play(run_config, num_rounds=1)
    greetings = [message for _, message in played.sent(protocol.REGISTER)]
    assert len(greetings) == NUM_CLIENTS
    for greeting in greetings:
        assert {name: dict(record) for name, record in greeting.content.items()} == {
            "instructions": {"protocol-version": protocol.VERSION, "global-model": ""}
        }
    model_sizes = [ParameterVector(build_model(name, (3, 8, 8), 4, seed=0)).size for name in ("lenet", "mlp")]
    replies = [each for each in played.grid.received if each.metadata.message_type == protocol.REGISTER]
    assert [{name: dict(record) for name, record in reply.content.items()} for reply in replies] == [
        {"registration": {"client-key": str(i), "num-params": model_sizes[i % 2]}} for i in range(NUM_CLIENTS)
    ]


def test_a_training_reply_tells_delta_counts_and_losses_and_nothing_else(run_config):
    played = play(run_config)
    replies = [each for each in played.grid.received if each.metadata.message_type == protocol.PERSONAL]
    assert len(replies) == 2 * NUM_CLIENTS
    counts = {"num-examples", "train-loss"}
    for reply in replies:
        tested = {"correct", "total", "loss"} if round_of(reply) == 2 else set()
        assert {name: set(record) for name, record in reply.content.items()} == {
            "metrics": counts | tested,
            "vectors": {"delta"},
        }


def test_a_node_whose_trainer_was_not_there_is_asked_again_after_a_while(small, monkeypatch):
    asked = []

    def comes_up(message, reply):
        asked.append(message)
        if len(asked) == 1:
            raise RuntimeError("the trainer is being restarted")
        return reply

    monkeypatch.setattr("server_app.strategies.base._REST", 0.0)
    played = play(small, Scripted({("1", protocol.REGISTER): comes_up}))
    assert len(asked) == 2
    assert [line["failures"] for line in played.lines] == [{"client-raised": 1}, {}, {}]
    assert [line["clients"] for line in played.lines] == [NUM_CLIENTS - 1, NUM_CLIENTS, NUM_CLIENTS]


def test_a_node_that_cannot_register_is_reported_and_the_others_go_on(small):
    def breaks(message, reply):
        raise RuntimeError("no partition")

    def says_too_much(message, reply):
        reply.content["registration"]["model"] = "resnet18"
        return reply

    special = {("1", protocol.REGISTER): breaks, ("3", protocol.REGISTER): says_too_much}
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
    assert len(played.sent(protocol.REGISTER)) == NUM_CLIENTS


def test_a_key_of_two_live_nodes_goes_to_one_of_them(small):
    def as_client_0(message, reply):
        reply.content["registration"]["client-key"] = "0"
        return reply

    played = play(small, Scripted({("2", protocol.REGISTER): as_client_0}))
    assert list(sizes_of(played)) == ["0", "1", "3"]
    assert played.lines[0]["failures"] == {"key-in-use": 1}
    assert played.lines[0]["failure-list"][0]["client"] == "node 102"
    assert set(played.trained(1)) == {"0", "1", "3"}


def test_too_few_clients_end_the_run_with_what_to_do(small):
    def breaks(message, reply):
        raise RuntimeError("no data")

    special = {(key, protocol.REGISTER): breaks for key in "123"}
    with pytest.raises(UserError, match="1 clients are connected and registered after 0 s, but min-clients is 2"):
        play(small, Scripted(special))


@pytest.mark.parametrize("simulated", [True, False])
def test_too_few_nodes_are_a_mistake_that_a_user_can_mend(run_config, simulated):
    grid = InProcessGrid(honest, 1, run_config)
    with pytest.raises(UserError, match="min-clients"):
        serve(grid, load_config(run_config | {"classes-per-client": 4}), simulated=simulated)


class ChangingGrid(InProcessGrid):
    """Other nodes are connected in each round; those of the last one stay."""

    def __init__(self, answer, connected) -> None:
        super().__init__(answer, NUM_CLIENTS)
        self.rounds = list(connected)

    def get_node_ids(self):
        begun = {round_of(each) for each in self.sent if each.metadata.message_type == protocol.PERSONAL}
        self.connected = self.rounds[min(len(begun), len(self.rounds) - 1)]
        return super().get_node_ids()


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
    assert torch.equal(vector_of(dict(played.sent(server_round=2))["2"], THETA), by_hand.theta(*"0123")["2"])
    for server_round in (2, 3):
        by_hand.apply(played.deltas(server_round))
    assert_same_network(played.strategy.hn, by_hand.hn)


def test_a_late_client_with_another_number_of_chunks_is_served_too(small):
    sizes = {"0": 50, "1": 50, "2": 300, "3": 50}
    played = start(load_config(small), ChangingGrid(Scripted(sizes=sizes), [{100, 101, 103}, {100, 101, 102, 103}]))
    assert played.lines[2]["client-train-loss"].keys() == set("0123")
    by_hand = ByHand.of(played.config, {key: sizes[key] for key in "013"})
    by_hand.apply(played.deltas(1))
    by_hand.hn.register("2", 300)
    for server_round in (2, 3):
        by_hand.apply(played.deltas(server_round))
    assert_same_network(played.strategy.hn, by_hand.hn)


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


def test_a_client_whose_old_node_seems_alive_for_a_while_is_let_in_when_that_is_gone(small):
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
    assert sorted(key for key, _ in played.sent(protocol.FINISH)) == ["0", "1"]
    assert told_who_left(caplog) == ["2"]


@pytest.mark.parametrize("schedule", ["joint", "per-client", "sequential"])
def test_a_client_that_was_away_is_back_in_the_round_after_with_the_embedding_it_left(small, schedule, caplog):
    everyone = {100, 101, 102, 103}
    config = load_config(small | {"num-rounds": 6, "schedule": schedule})
    strategy = strategy_for(config)
    embeddings = {}  # of client 2, when a round's first message goes out

    def note(message):
        if message.metadata.message_type == protocol.PERSONAL:
            embeddings.setdefault(round_of(message), strategy.hn.embedding("2").detach().clone())
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
    by_hand = ByHand.of(config, SIZES)
    for server_round in range(1, 7):
        deltas = played.deltas(server_round)
        for wave in [{key: deltas[key]} for key in deltas] if schedule == "sequential" else [deltas]:
            by_hand.apply(wave)
    assert_same_network(strategy.hn, by_hand.hn)


# Bad replies ------------------------------------------------------------------------------------------------------


def replaced_delta(change):
    def special(message, reply):
        reply.content["vectors"] = ArrayRecord({DELTA: Array(change(vector_of(reply, DELTA)).numpy())})
        return reply

    return special


def raises(message, reply):
    raise RuntimeError("out of memory")


def without_vectors(message, reply):
    del reply.content["vectors"]
    return reply


def with_metric(key, value):
    def special(message, reply):
        reply.content["metrics"] = MetricRecord(dict(reply.content["metrics"]) | {key: value})
        return reply

    return special


def with_another_vector(message, reply):
    reply.content["vectors"]["more"] = reply.content["vectors"][DELTA]
    return reply


MISBEHAVIOUR = {
    "raises": ("client-raised", raises),
    "crashes": ("client-crashed", lambda message, reply: Message(Error(8, "killed"), reply_to=message)),
    "goes away": ("node-unavailable", lambda message, reply: Message(Error(5, "gone"), reply_to=message)),
    "too short": ("wrong-length", replaced_delta(lambda delta: delta[:-1])),
    "too long": ("wrong-length", replaced_delta(lambda delta: torch.cat([delta, delta]))),
    "a matrix": ("wrong-length", replaced_delta(lambda delta: delta.view(1, -1))),
    "float64": ("wrong-dtype", replaced_delta(lambda delta: delta.double())),
    "int64": ("wrong-dtype", replaced_delta(lambda delta: delta.long())),
    "NaN": ("not-finite", replaced_delta(lambda delta: delta.index_fill(0, torch.tensor([3]), float("nan")))),
    "infinity": ("not-finite", replaced_delta(lambda delta: delta.index_fill(0, torch.tensor([0]), -float("inf")))),
    "no array": ("malformed", without_vectors),
    "two arrays": ("malformed", with_another_vector),
    "no samples": ("malformed", with_metric("num-examples", 0)),
    "diverged": ("not-finite", with_metric("train-loss", float("nan"))),
}


@pytest.mark.parametrize("schedule", ["joint", "per-client", "sequential"])
@pytest.mark.parametrize(("reason", "special"), MISBEHAVIOUR.values(), ids=MISBEHAVIOUR)
def test_a_bad_reply_costs_its_client_the_round_and_changes_nothing_else(small, schedule, reason, special):
    played = play(small, Scripted({("1", protocol.PERSONAL, 2): special}), schedule=schedule)
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
    assert_same_network(played.strategy.hn, by_hand.hn)


def test_an_impossible_test_result_costs_the_round_too(small):
    played = play(small, Scripted({("1", protocol.PERSONAL, 2): with_metric("correct", 101)}))
    assert [line["failures"] for line in played.lines] == [{}, {"malformed": 1}, {}]
    assert played.lines[0]["client-accuracy"].keys() == set("023")


def test_a_round_in_which_everybody_fails_changes_nothing(small):
    special = {(key, protocol.PERSONAL, 2): raises for key in SIZES}
    played = play(small, Scripted(special))
    assert [line["clients"] for line in played.lines] == [4, 0, 4]
    assert played.lines[1]["failures"] == {"client-raised": 4}
    assert played.lines[1]["train-loss"] is None
    by_hand = ByHand.of(played.config, SIZES)
    by_hand.apply(played.deltas(1))
    by_hand.apply(played.deltas(3))
    assert_same_network(played.strategy.hn, by_hand.hn)


@pytest.mark.parametrize("size", [3e38, -3e38])
def test_an_enormous_delta_does_not_destroy_the_weights_of_the_others(small, size):
    # Finite, so it passes the check of the message.
    special = {("0", protocol.PERSONAL, 1): replaced_delta(lambda delta: torch.full_like(delta, size))}
    special |= {("2", protocol.PERSONAL, 1): replaced_delta(lambda delta: torch.full_like(delta, size))}
    played = play(small, Scripted(special), max_delta_norm=1e300)
    assert [line["failures"] for line in played.lines] == [{}, {}, {}]
    assert all(torch.isfinite(parameter).all() for parameter in played.strategy.hn.parameters())


def test_a_lost_final_test_is_counted_with_the_last_round(small):
    played = play(small, Scripted({("3", protocol.FINISH): raises}))
    assert [line["failures"] for line in played.lines] == [{}, {}, {"client-raised": 1}]
    assert played.lines[-1]["client-accuracy"].keys() == set("012")


def test_a_test_that_nobody_asked_for_is_not_taken(small):
    def boasts(message, reply):
        reply.content["metrics"] = MetricRecord(
            dict(reply.content["metrics"]) | {"correct": 99, "total": 100, "loss": 0.1}
        )
        return reply

    played = play(small, Scripted({("1", protocol.PERSONAL): boasts}), evaluate_every=3)
    assert [line["accuracy"] for line in played.lines[:2]] == [None, None]


def test_real_clients_that_misbehave_in_different_ways_leave_the_same_network(run_config):
    networks, lines = [], []
    for number, special in enumerate((raises, MISBEHAVIOUR["NaN"][1], MISBEHAVIOUR["too short"][1])):

        def answer(message, context, special=special):
            reply = honest(message, context)
            if message.metadata.message_type == protocol.PERSONAL and context.node_id == 101 and round_of(message) == 1:
                return special(message, reply)
            return reply

        played = play(run_config, answer, run_name=f"run-{number}")
        networks.append(played.strategy.hn)
        lines.append([{key: line[key] for key in ("client-accuracy", "client-train-loss")} for line in played.lines])
    assert_same_network(networks[0], networks[1])
    assert_same_network(networks[0], networks[2])
    assert lines[0] == lines[1] == lines[2]


# Accuracy, lines and bytes ----------------------------------------------------------------------------------------


def evaluated_by_hand(played, key, theta):
    site = simulated_site(played.config, int(key), NUM_CLIENTS)
    site.personal.parameters.write(site.personal.anchor + theta if played.strategy.anchor else theta)
    return evaluate(site.personal.model, site.test)


@pytest.mark.parametrize("schedule", ["joint", "per-client", "sequential"])
@pytest.mark.parametrize("anchor", [True, False])
def test_accuracy_of_a_line_is_that_of_the_weights_after_so_many_updates(run_config, schedule, anchor):
    played = play(run_config, num_rounds=3, schedule=schedule, anchor=anchor, hn_lr=0.02, client_lr=0.05)
    by_hand = ByHand.of(played.config, sizes_of(played))
    keys = list(sizes_of(played))
    seen = set()
    for server_round, line in enumerate(played.lines, start=1):
        deltas = played.deltas(server_round)
        if schedule == "sequential":
            for key in played.trained(server_round):
                by_hand.apply({key: deltas[key]})
        else:
            by_hand.apply(deltas)
        results = {key: evaluated_by_hand(played, key, theta) for key, theta in by_hand.theta(*keys).items()}
        assert line["round"] == server_round
        assert line["client-accuracy"] == pytest.approx(
            {key: result.accuracy for key, result in results.items()}, abs=1e-6
        )
        total = sum(result.total for result in results.values())
        assert line["accuracy"] == pytest.approx(sum(each.correct for each in results.values()) / total, abs=1e-6)
        assert line["loss"] == pytest.approx(sum(each.loss * each.total for each in results.values()) / total, abs=1e-5)
        seen.add(line["loss"])
    assert len(seen) == 3  # the weights did change, so that the wrong round's would show
    assert_same_network(played.strategy.hn, by_hand.hn)
    assert played.result.evaluate_metrics_clientapp[3]["accuracy"] == pytest.approx(played.lines[2]["accuracy"])


def test_the_final_weights_are_handed_over_and_kept_by_every_client(run_config):
    played = play(run_config)
    thetas = played.strategy.hn.generate(list("0123"))
    for i, theta in enumerate(thetas):
        model = build_model(("lenet", "mlp")[i % 2], (3, 8, 8), 4, seed=0)
        theta_0 = ParameterVector(model).read()
        model.load_state_dict(torch.load(played.folder / "clients" / str(i) / "personal-model.pt", weights_only=True))
        torch.testing.assert_close(ParameterVector(model).read(), theta_0 + theta.detach(), rtol=0, atol=0)


def test_every_round_has_one_line_that_tells_of_its_weights(small):
    played = play(small, Scripted(), num_rounds=5)
    assert [line["round"] for line in played.lines] == [1, 2, 3, 4, 5]
    # A scripted test tells the round of its request: weights of round r go out for round r + 1, the last at the end,
    # which is asked for in the round after the last.
    assert [line["accuracy"] for line in played.lines] == [0.02, 0.03, 0.04, 0.05, 0.06]
    assert len(played.sent(protocol.FINISH)) == NUM_CLIENTS
    assert played.sent(protocol.EVALUATE) == []  # it costs no exchange of its own


def test_one_round_is_a_run(small):
    (line,) = play(small, Scripted(), num_rounds=1).lines
    assert (line["round"], line["accuracy"], line["clients"]) == (1, 0.02, 4)


def test_evaluation_every_second_round_and_after_the_last(small):
    played = play(small, Scripted(), num_rounds=5, evaluate_every=2)
    assert [line["accuracy"] for line in played.lines] == [None, 0.03, None, 0.05, 0.06]
    asked = {round_of(message): message.content["instructions"]["evaluate"] for _, message in played.sent()}
    assert asked == {1: False, 2: False, 3: True, 4: False, 5: True}


@pytest.mark.parametrize("overrides", [{}, {"participation": 0.5}, {"schedule": "sequential"}, {"method": "fedavg"}])
def test_bytes_are_those_of_the_arrays_of_the_messages(small, overrides):
    special = {("1", protocol.PERSONAL, 2): MISBEHAVIOUR["NaN"][1]}
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


# Cohorts and schedules --------------------------------------------------------------------------------------------


def cohorts(played):
    return [sorted(played.trained(line["round"])) for line in played.lines]


def test_half_participation_trains_half_and_tests_all(small):
    played = play(small, Scripted(), num_rounds=8, participation=0.5)
    for line in played.lines:
        trained = played.trained(line["round"])
        assert len(set(trained)) == len(trained) == 2
        assert line["client-train-loss"].keys() == set(trained)
        assert line["client-accuracy"].keys() == set("0123")
        # Nobody is tested twice.
        tested = [key for key, _ in played.sent(protocol.EVALUATE, line["round"])]
        assert sorted(tested + trained) == (list("0123") if line["round"] > 1 else trained)
    assert len(set(map(tuple, cohorts(played)))) > 1
    by_hand = ByHand.of(played.config, SIZES)
    for line in played.lines:
        by_hand.apply(played.deltas(line["round"]))
    assert_same_network(played.strategy.hn, by_hand.hn)


def test_cohorts_follow_from_the_seed(small):
    settings = {"num_rounds": 8, "participation": 0.5}
    first = cohorts(play(small, Scripted(), run_name="a", **settings))
    assert first == cohorts(play(small, Scripted(), run_name="b", **settings))
    assert first != cohorts(play(small, Scripted(), run_name="c", seed=1, **settings))


@pytest.mark.parametrize(("participation", "size"), [(0.01, 1), (0.26, 1), (0.75, 3), (1.0, 4)])
def test_a_cohort_has_its_share_of_the_clients_and_at_least_one(small, participation, size):
    played = play(small, Scripted(), participation=participation)
    assert [len(cohort) for cohort in cohorts(played)] == [size] * 3


@pytest.mark.parametrize("schedule", ["joint", "per-client"])
def test_a_parallel_round_sends_all_weights_from_one_phi(small, schedule):
    played = play(small, Scripted(), schedule=schedule)
    by_hand = ByHand.of(played.config, SIZES)
    for server_round in (1, 2, 3):
        thetas = by_hand.theta(*SIZES)
        messages = played.sent(server_round=server_round)
        assert [key for key, _ in messages] == list("0123")
        assert all(torch.equal(vector_of(message, THETA), thetas[key]) for key, message in messages)
        by_hand.apply(played.deltas(server_round))
    assert_same_network(played.strategy.hn, by_hand.hn)


def test_the_sequential_schedule_trains_one_client_at_a_time_each_from_the_phi_that_the_one_before_left(small):
    played = play(small, Scripted(), schedule="sequential", hold=lambda message: 2)
    events = [
        (message.metadata.message_type, round_of(message), key_of(message.metadata.dst_node_id))
        for message in played.grid.sent
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
            assert torch.equal(vector_of(message, THETA), by_hand.theta(key)[key])
            by_hand.apply({key: deltas[key]})
    assert len(set(map(tuple, orders))) > 1  # in random order
    assert_same_network(played.strategy.hn, by_hand.hn)
    # Weights between two rounds are tested on their own, before anybody trains.
    second_round = [kind for kind, server_round, _ in events if server_round == 2]
    assert second_round == [protocol.EVALUATE] * 4 + [protocol.PERSONAL] * 4


def test_the_three_schedules_lead_to_different_networks(small):
    weights = {
        schedule: play(small, Scripted(), schedule=schedule, run_name=schedule).strategy.hn.heads["4"].bias
        for schedule in ("joint", "per-client", "sequential")
    }
    assert not torch.equal(weights["joint"], weights["per-client"])
    assert not torch.equal(weights["sequential"], weights["per-client"])


def test_a_quorum_updates_with_the_replies_that_came(small):
    holds = {"0": 0, "1": 6, "2": 3, "3": 9}
    slow = Scripted()

    def hold(message):
        return holds[key_of(message.metadata.dst_node_id)] if message.metadata.message_type == protocol.PERSONAL else 0

    played = play(small, slow, hold=hold, quorum=0.5, num_rounds=1)
    (line,) = played.lines
    assert line["failures"] == {"late": 2}
    assert line["client-train-loss"].keys() == {"0", "2"}
    by_hand = ByHand.of(played.config, SIZES)
    by_hand.apply({key: slow.delta(key, 1) for key in ("0", "2")})
    assert_same_network(played.strategy.hn, by_hand.hn)


def test_a_quorum_does_not_cut_the_final_exchange_short(small):
    # The last exchange hands over the final weights: whoever is cut off has no personal model and no last accuracy.
    played = play(small, Scripted(), hold=lambda message: int(key_of(message.metadata.dst_node_id)), quorum=0.5)
    assert played.lines[-1]["client-accuracy"].keys() == set("0123")


# Reproducibility --------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_lines_whatever_the_order_of_the_replies(run_config):
    settings = {"num_rounds": 3, "participation": 0.75, "models": "lenet,resnet10"}
    runs = []
    for number, seed in enumerate((None, 1, 2)):
        shuffle = random.Random(seed)
        hold = None if seed is None else lambda message, shuffle=shuffle: shuffle.randrange(6)
        torch.manual_seed(number)
        random.seed(number)
        runs.append(play(run_config, hold=hold, run_name=f"run-{number}", **settings))
        new_process()
    arrivals = [[(each.metadata.src_node_id, round_of(each)) for each in run.grid.received] for run in runs]
    assert arrivals[0] != arrivals[1] != arrivals[2]
    assert timeless(runs[0].lines) == timeless(runs[1].lines) == timeless(runs[2].lines)
    # Lines are equal as text too: nothing is in order of arrival.
    texts = [json.dumps(timeless(run.lines)) for run in runs]
    assert texts[0] == texts[1] == texts[2]
    for run in runs[1:]:
        assert_same_network(runs[0].strategy.hn, run.strategy.hn)

    other = play(run_config, run_name="other", seed=1, **settings)
    assert timeless(other.lines) != timeless(runs[0].lines)


@pytest.mark.parametrize("overrides", [{"schedule": "per-client"}, {"schedule": "joint"}, {"method": "fedavg"}])
def test_the_order_of_the_replies_does_not_change_the_weights(small, overrides):
    sizes = dict.fromkeys(SIZES, 50)
    holds = [lambda message, factor=factor: factor * (message.metadata.dst_node_id - 100) % 4 for factor in (1, 3)]
    runs = [play(small, Scripted(sizes=sizes), hold, run_name=f"run-{i}", **overrides) for i, hold in enumerate(holds)]
    assert list(runs[0].deltas(1)) == ["0", "1", "2", "3"]
    assert list(runs[1].deltas(1)) == ["0", "3", "2", "1"]
    final = [[vector_of(message, THETA) for _, message in run.sent(protocol.FINISH)] for run in runs]
    assert all(torch.equal(one, other) for one, other in zip(*final, strict=True))


@pytest.mark.parametrize("method", ["fedavg", "local", "mh-pfedhn"])
def test_failures_are_listed_in_one_order_whatever_the_order_of_the_replies(small, method):
    special = {(key, protocol.PERSONAL): raises for key in "013"}
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


@pytest.mark.parametrize("method", list(STRATEGIES))
def test_the_server_draws_nothing_from_global_generators(small, method):
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    play(small, Scripted(), method=method, participation=0.5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


# Chunk size and memory --------------------------------------------------------------------------------------------

FREE = 64 * 2**20  # bytes


@pytest.fixture
def _little_memory(monkeypatch):
    monkeypatch.setattr(hypernet, "free_memory", lambda device: FREE)


def told_memory(caplog):
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("Hypernetwork: ")]


@pytest.mark.parametrize(("sizes", "chunk_size"), [((2000, 5000), 31), ((2000, 2000), 31), ((63, 2000), 1)])
def test_an_automatic_chunk_size_gives_the_smallest_client_64_chunks(small, sizes, chunk_size):
    sizes = {str(i): sizes[i % 2] for i in range(NUM_CLIENTS)}
    played = play(small, Scripted(sizes=sizes), chunk_size="auto", num_rounds=1)
    assert played.strategy.hn.chunk_size == chunk_size
    assert played.strategy.hn.num_chunks("0") >= min(64, sizes["0"])
    assert played.lines[0]["clients"] == NUM_CLIENTS


def test_a_late_smaller_client_does_not_change_the_chunk_size(small):
    sizes = {"0": 2000, "1": 5000, "2": 20, "3": 2000}
    config = load_config(small | {"chunk-size": "auto"})
    played = start(config, ChangingGrid(Scripted(sizes=sizes), [{100, 101, 103}, {100, 101, 102, 103}]))
    assert played.strategy.hn.chunk_size == 31
    assert played.strategy.hn.num_chunks("2") == 1
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
    hn = played.strategy.hn
    trunk = sum(parameter.numel() for parameter in hn.trunk.parameters())
    values = sum(parameter.numel() for parameter in hn.parameters()) - trunk
    assert line.startswith(f"Hypernetwork: {values:,} values more for 4 clients, chunks of 16; ")
    assert " GiB of " in line
    # With Adam's two moments; its step count is one value more each.
    moments = [
        value
        for state in played.strategy.optimizer.adam.state.values()
        for name, value in state.items()
        if name != "step"
    ]
    assert sum(value.numel() for value in moments) == 2 * (values + trunk)


def needed(values, generated):
    """Bytes: a value with gradient and two moments; a generated value with its gradient."""
    return 16 * values + 8 * generated


def test_what_just_fits_is_taken_and_a_byte_less_is_not(small, monkeypatch):
    taus = [4, 6, 4, 2]
    values = 4 * sum(taus) + (4 + 6 + 2) * 9 * 16  # embeddings; heads of H + 1 rows
    exactly = needed(values, sum(SIZES.values()))
    monkeypatch.setattr(hypernet, "free_memory", lambda device: exactly)
    assert play(small, Scripted(), num_rounds=1, run_name="fits").lines[0]["clients"] == 4
    monkeypatch.setattr(hypernet, "free_memory", lambda device: exactly - 1)
    with pytest.raises(UserError, match="does not fit"):
        play(small, Scripted(), num_rounds=1, run_name="does-not")


@pytest.mark.parametrize(("missing", "failures"), [(0, {}), (1, {"no-room": 1})])
def test_the_generated_weights_of_all_count_when_a_late_client_comes(small, monkeypatch, missing, failures):
    exactly = needed(4 * 4, sum(SIZES.values()))  # it brings an embedding; its head is there
    free = iter([FREE, exactly - missing])
    monkeypatch.setattr(hypernet, "free_memory", lambda device: next(free))
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
    assert set(played.strategy.hn.members) == {"0", "1", "3"}
    assert len(played.sent(protocol.REGISTER)) == NUM_CLIENTS
    table = (played.folder / "clients.csv").read_text() if (played.folder / "clients.csv").exists() else ""
    assert "11689512" not in table


# Other methods ----------------------------------------------------------------------------------------------------


def test_fedavg_weighs_clients_of_a_size_by_their_samples(small):
    # Three clients of four parameters and one alone of two; num-examples 10, 20, 30, 40.
    sizes = {"0": 4, "1": 2, "2": 4, "3": 4}
    values = {
        ("0", 1): [1.0, 0.0, 8.0, 0.0],
        ("2", 1): [0.0, 4.0, 0.0, 0.0],
        ("3", 1): [2.0, 0.0, 0.0, -4.0],
        ("1", 1): [5.0, -3.0],
        ("0", 2): [8.0, 8.0, 8.0, 8.0],
        ("2", 2): [0.0, 0.0, 0.0, 0.0],
        ("3", 2): [0.0, 0.0, 0.0, 2.0],
        ("1", 2): [1.0, 1.0],
    }
    answer = Scripted(sizes=sizes, delta=lambda key, server_round: torch.tensor(values[key, server_round]))
    played = play(small, answer, method="fedavg", num_rounds=2)
    after_1 = {4: torch.tensor([-9.0, -12.0, -8.0, 16.0]) / 8, 2: torch.tensor([-5.0, 3.0])}
    after_2 = {4: torch.tensor([-17.0, -20.0, -16.0, 0.0]) / 8, 2: torch.tensor([-6.0, 2.0])}
    for server_round, (before, kind) in enumerate(
        [({4: torch.zeros(4), 2: torch.zeros(2)}, protocol.PERSONAL), (after_1, protocol.PERSONAL)], start=1
    ):
        for key, message in played.sent(kind, server_round):
            torch.testing.assert_close(vector_of(message, THETA), before[sizes[key]])
    for key, message in played.sent(protocol.FINISH):
        torch.testing.assert_close(vector_of(message, THETA), after_2[sizes[key]])


def test_fedavg_averages_over_those_who_answered(small):
    answer = Scripted(
        {("2", protocol.PERSONAL): raises},
        sizes={key: 2 for key in SIZES},
        delta=lambda key, _: torch.ones(2) * int(key),
    )
    played = play(small, answer, method="fedavg", num_rounds=1)
    # (10 * 0 + 20 * 1 + 40 * 3) / 70
    torch.testing.assert_close(played.strategy.averages[2], -torch.full((2,), 2.0))


def test_fedavg_equals_the_average_of_weights_that_pytorch_trained(run_config):
    played = play(run_config, method="fedavg", models="lenet", num_rounds=1, anchor=False)
    sites = [simulated_site(played.config, i, NUM_CLIENTS) for i in range(NUM_CLIENTS)]
    total = sum(len(site.train) for site in sites)
    trained = [site.personal.anchor - played.deltas(1)[site.key] for site in sites]  # the first vector is zero
    average = sum(len(site.train) / total * weights for site, weights in zip(sites, trained, strict=True))
    final = vector_of(played.sent(protocol.FINISH)[0][1], THETA)
    torch.testing.assert_close(sites[0].personal.anchor + final, average)
    assert played.lines[0]["client-accuracy"] == pytest.approx(
        {site.key: evaluated_by_hand(played, site.key, final).accuracy for site in sites}, abs=1e-6
    )


def test_local_sends_no_arrays_either_way(run_config):
    played = play(run_config, method="local", num_rounds=3)
    for message in (*played.grid.sent, *played.grid.received):
        assert not message.has_error()
        assert list(message.content.array_records) == []
    assert [(line["bytes-down"], line["bytes-up"]) for line in played.lines] == [(0, 0)] * 3
    assert [line["clients"] for line in played.lines] == [4, 4, 4]
    losses = [line["train-loss"] for line in played.lines]
    assert losses[2] < losses[0]
    for i, accuracy in played.lines[-1]["client-accuracy"].items():
        model = build_model(("lenet", "mlp")[int(i) % 2], (3, 8, 8), 4, seed=0)
        model.load_state_dict(torch.load(played.folder / "clients" / i / "personal-model.pt", weights_only=True))
        test = simulated_site(played.config, int(i), NUM_CLIENTS).test
        assert evaluate(model, test).accuracy == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.parametrize("method", list(STRATEGIES))
def test_a_simulation_leaves_all_files_of_a_run(run_config, method):
    grid = InProcessGrid(honest, NUM_CLIENTS, run_config | {"method": method})
    config = load_config(run_config | {"method": method})
    serve(grid, config, simulated=True)
    folder = config.results_path / "run"
    lines, summary = lines_of(folder), json.loads((folder / "summary.json").read_text())
    assert [line["round"] for line in lines] == [1, 2]
    assert summary["last-accuracy"] == lines[-1]["accuracy"]
    assert summary["method"] == method
    table = (folder / "clients.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in table[1:]] == [["0", "lenet"], ["1", "mlp"], ["2", "lenet"], ["3", "mlp"]]
    partition = json.loads((folder / "partition.json").read_text())
    assert set(partition["clients"]) == set("0123")
