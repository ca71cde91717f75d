"""MH-pFedHNG and MH-pFedHNGD (Algorithm 2): the global exchange and its step, against `reference.py`; what is sent."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message
from flwr.common.serde import recorddict_to_proto
from fresh_process import new_process
from in_process import InProcessGrid
from reference import Reference, as_arrays, assert_same_adam_state, assert_same_values
from test_strategies import ByHand, ChangingGrid, Played, Scripted, key_of, round_of, start, strategy_for, vector_of

from client_app.app import app as honest
from common import protocol
from common.config import load_config
from common.models import build_model
from common.params import ParameterVector
from common.protocol import DELTA, THETA, Registration, TrainingResult
from server_app import tracking
from server_app.strategies.distill import GLOBAL_KEY

CHUNK = 16
LR = 0.02
SIZES = {"0": 50, "1": 90, "2": 50}  # K of two architectures: tau 4 and 6
GLOBAL_SIZE = 50  # K_g: tau 4, the head of clients 0 and 2
OWN_TAU = 100  # K_g with a tau of its own, 7
NEW_TAU = 70  # and another, 5

pytestmark = pytest.mark.usefixtures("clock")


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr(tracking, "write_report", lambda folder: None)


class ScriptedGD(Scripted):
    """Clients without models that deploy a global one of `global_sizes[key]` parameters, where they do.

    Client i has 10 (i + 1) samples, the global deltas are random numbers of another draw than the personal ones.
    `groups` holds the labels that clients send. `before(message)` is called before each reply is made.
    """

    def __init__(self, special=None, sizes=SIZES, global_sizes=GLOBAL_SIZE, groups=None, before=None):
        super().__init__(special, sizes)
        self.global_sizes = dict.fromkeys(sizes, global_sizes) if isinstance(global_sizes, int) else global_sizes
        self.groups = groups or {}
        self.before = before or (lambda message: None)

    def global_delta(self, key, server_round):
        generator = torch.Generator().manual_seed(5000 + 1000 * server_round + int(key))
        return torch.randn(self.global_sizes[key], generator=generator)

    def usual(self, key, message):
        self.before(message)
        kind, server_round = message.metadata.message_type, round_of(message)
        if kind == protocol.REGISTER:
            registration = Registration(key, self.sizes[key], self.global_sizes.get(key, 0), self.groups.get(key, ""))
            return Message(protocol.encode_registration(registration), reply_to=message)
        if kind == protocol.GLOBAL:
            result = TrainingResult(num_examples(key), 5.0 + int(key), None)
            content = protocol.encode_training_result(result, {DELTA: self.global_delta(key, server_round)})
            return Message(content, reply_to=message)
        return super().usual(key, message)


def num_examples(key):
    return 10 * (int(key) + 1)


def play_gd(settings, answer, hold=None, **overrides) -> Played:
    settings = settings | {key.replace("_", "-"): value for key, value in overrides.items()}
    return start(load_config(settings), InProcessGrid(answer, len(SIZES), settings, hold))


def told(played, key, server_round, kind=protocol.PERSONAL):
    """The instructions that a client got."""
    return protocol.decode_instructions(dict(played.sent(kind, server_round))[key].content)


def teacher_rounds(played, server_round):
    return {key: told(played, key, server_round).teacher_round for key in played.trained(server_round)}


@pytest.fixture
def small(run_config):
    """A config for the scripted clients: several chunks each."""
    return run_config | {
        "method": "mh-pfedhn-gd",
        "chunk-size": CHUNK,
        "num-rounds": 2,
        "deadline": 30.0,
        "hn-lr": LR,
        "head-init-scale": 1.0,
        "checkpoint-every": 0,
    }


def reference_of(config, global_size=GLOBAL_SIZE, sizes=SIZES) -> Reference:
    """The float64 calculation, from the same starting values."""
    everyone = sizes | {GLOBAL_KEY: global_size}
    return Reference(ByHand.of(config, everyone).hn, everyone, CHUNK)


def assert_sent(played, kind, server_round, expected):
    """Each of these clients got its vector; one step's tolerance on each parameter is a tenth of a step on a vector."""
    messages = played.sent(kind, server_round)
    assert [key for key, _ in messages] == sorted(expected)
    for key, message in messages:
        np.testing.assert_allclose(
            vector_of(message, THETA), expected[key], rtol=1e-5, atol=0.1 * LR, err_msg=f"{kind} to {key}"
        )


# Against the independent calculation ------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("global_size", [GLOBAL_SIZE, OWN_TAU])
def test_two_rounds_equal_the_reference(small, global_size, reduction):
    answer = ScriptedGD(global_sizes=global_size)
    played = play_gd(small, answer, reduction=reduction)
    reference = reference_of(played.config, global_size)
    for server_round in (1, 2):
        w_g = reference.generate(GLOBAL_KEY)
        assert_sent(played, protocol.GLOBAL, server_round, dict.fromkeys(SIZES, w_g))
        deltas = as_arrays({key: answer.global_delta(key, server_round) for key in SIZES})
        reference.apply_global(GLOBAL_KEY, {key: (deltas[key], num_examples(key)) for key in SIZES}, LR)

        assert_sent(played, protocol.PERSONAL, server_round, {key: reference.generate(key) for key in SIZES})
        personal = as_arrays({key: answer.delta(key, server_round) for key in SIZES})
        reference.apply(personal, LR, reduction=reduction)
    assert_same_values(played.strategy.hn, reference, LR)
    assert_same_adam_state(played.strategy.optimizer, played.strategy.hn, reference)
    assert reference.steps["trunk", 0, "weight"] == 4
    assert reference.steps["embedding", GLOBAL_KEY] == 2


@dataclass
class Halfway:
    """The network and Adam's state as they were when a round's personal messages went out."""

    values: dict
    moments: dict

    @classmethod
    def of(cls, strategy):
        named = dict(strategy.hn.named_parameters())
        return cls(
            {name: parameter.detach().clone() for name, parameter in named.items()},
            {
                name: {entry: value.clone() for entry, value in strategy.optimizer.adam.state[parameter].items()}
                for name, parameter in named.items()
                if strategy.optimizer.adam.state.get(parameter)
            },
        )


def play_with_halves(small, **how):
    """A run, and what was there before the global step and between the two steps of each round."""
    config = load_config(small)
    strategy = strategy_for(config)
    halves = {}

    def look(message):
        kind = message.metadata.message_type
        if kind in (protocol.GLOBAL, protocol.PERSONAL):
            halves.setdefault((round_of(message), kind), Halfway.of(strategy))

    answer = ScriptedGD(before=look, **how)
    return start(config, InProcessGrid(answer, 3, small), strategy), halves


@pytest.mark.parametrize("global_size", [GLOBAL_SIZE, NEW_TAU])
def test_the_global_step_moves_trunk_its_own_head_and_v_g_alone(small, global_size):
    played, halves = play_with_halves(small, global_sizes=global_size)
    hn = played.strategy.hn
    shared = {id(parameter) for parameter in (*hn.trunk.parameters(), hn.embedding(GLOBAL_KEY))}
    shared |= {id(parameter) for parameter in hn.head(GLOBAL_KEY).parameters()}
    touched = {name for name, parameter in hn.named_parameters() if id(parameter) in shared}
    assert len(touched) == 6 + 1 + 2
    for server_round in (1, 2):
        before, after = halves[server_round, protocol.GLOBAL], halves[server_round, protocol.PERSONAL]
        for name in before.values:
            same = torch.equal(before.values[name], after.values[name])
            assert same == (name not in touched), (server_round, name)
            if name not in touched:
                # Not even Adam's moments: in round 1 there are none, in round 2 they are those of round 1.
                one, other = before.moments.get(name, {}), after.moments.get(name, {})
                assert one.keys() == other.keys()
                assert all(torch.equal(one[entry], other[entry]) for entry in one)
    assert halves[1, protocol.PERSONAL].moments.keys() == touched


def test_the_personal_step_leaves_v_g_alone(small):
    played, halves = play_with_halves(small)
    v_g = next(name for name, value in played.strategy.hn.named_parameters() if value is embedding(played, GLOBAL_KEY))
    before, after = halves[1, protocol.PERSONAL], halves[2, protocol.GLOBAL]
    assert torch.equal(before.values[v_g], after.values[v_g])
    assert int(after.moments[v_g]["step"]) == 1
    assert not torch.equal(before.values["trunk.0.weight"], after.values["trunk.0.weight"])


def embedding(played, key):
    return played.strategy.hn.embedding(key)


def raises(message, reply):
    raise RuntimeError("out of memory")


def test_samples_of_a_client_that_fails_the_global_exchange_do_not_count(small):
    answer = ScriptedGD({("1", protocol.GLOBAL, 1): raises})
    played = play_gd(small, answer)
    reference = reference_of(played.config)
    for server_round, good in ((1, "02"), (2, "012")):
        deltas = as_arrays({key: answer.global_delta(key, server_round) for key in good})
        reference.apply_global(GLOBAL_KEY, {key: (deltas[key], num_examples(key)) for key in good}, LR)
        # It takes part in the personal training all the same.
        reference.apply(as_arrays({key: answer.delta(key, server_round) for key in SIZES}), LR, reduction="mean")
    assert_same_values(played.strategy.hn, reference, LR)
    assert_same_adam_state(played.strategy.optimizer, played.strategy.hn, reference)
    assert played.lines[0]["failures"] == {"client-raised": 1}
    assert played.lines[0]["clients"] == 3
    assert [line["global-clients"] for line in played.lines] == [2, 3]


def test_a_global_exchange_in_which_everybody_fails_changes_nothing(small):
    special = {(key, protocol.GLOBAL, 1): raises for key in SIZES}
    played, halves = play_with_halves(small, special=special)
    before, after = halves[1, protocol.GLOBAL], halves[1, protocol.PERSONAL]
    assert all(torch.equal(before.values[name], after.values[name]) for name in before.values)
    assert after.moments == {}
    assert "global-loss" not in played.lines[0]
    assert [line["clients"] for line in played.lines] == [3, 3]


def test_the_mean_is_weighted_by_samples(small):
    """Adam's first moment of the head's bias is a tenth of the delta: 10, 20 and 30 samples of 60."""
    _, halves = play_with_halves(small | {"num-rounds": 1})
    answer = ScriptedGD()
    mean = sum(num_examples(key) / 60 * answer.global_delta(key, 1) for key in SIZES)
    (bias,) = [
        entries["exp_avg"]
        for name, entries in halves[1, protocol.PERSONAL].moments.items()
        if name.startswith("heads.") and name.endswith("bias")
    ]
    direction = bias.flatten()[:GLOBAL_SIZE]  # clipping may scale it
    torch.testing.assert_close(direction / direction.norm(), mean / mean.norm())
    plain = sum(answer.global_delta(key, 1) for key in SIZES) / 3
    assert not torch.allclose(plain / plain.norm(), mean / mean.norm(), atol=0.05)


def test_an_enormous_global_delta_leaves_the_step_out(small):
    def enormous(message, reply):
        reply.content["vectors"] = ArrayRecord({DELTA: Array(np.full(GLOBAL_SIZE, 3e38, dtype=np.float32))})
        return reply

    played, halves = play_with_halves(small, special={(key, protocol.GLOBAL, 1): enormous for key in SIZES})
    before, after = halves[1, protocol.GLOBAL], halves[1, protocol.PERSONAL]
    assert all(torch.equal(before.values[name], after.values[name]) for name in before.values)
    assert all(torch.isfinite(parameter).all() for parameter in played.strategy.hn.parameters())


def test_all_clients_are_tested_with_weights_of_one_phi(small):
    config = load_config(small | {"participation": 0.34})
    strategy = strategy_for(config)
    at_training = {}

    def look(message):
        if message.metadata.message_type == protocol.PERSONAL and round_of(message) == 2:
            with torch.no_grad():
                at_training.update(zip(SIZES, strategy.hn.generate(list(SIZES)), strict=True))

    played = start(config, InProcessGrid(ScriptedGD(before=look), len(SIZES)), strategy)
    others = played.sent(protocol.EVALUATE, 2)
    assert len(others) == 2
    assert all(torch.equal(vector_of(message, THETA), at_training[key]) for key, message in others)


# What clients are told --------------------------------------------------------------------------------------------


def not_finite(message, reply):
    reply.content["vectors"] = ArrayRecord({DELTA: Array(np.full(GLOBAL_SIZE, np.nan, dtype=np.float32))})
    return reply


def too_long(message, reply):
    reply.content["vectors"] = ArrayRecord({DELTA: Array(np.zeros(GLOBAL_SIZE + 1, dtype=np.float32))})
    return reply


def test_every_client_distils_from_the_global_model_of_the_same_round(small):
    played = play_gd(small, ScriptedGD(), num_rounds=3)
    assert [teacher_rounds(played, server_round) for server_round in (1, 2, 3)] == [
        dict.fromkeys(SIZES, server_round) for server_round in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("reason", "special"),
    [("client-raised", raises), ("not-finite", not_finite), ("wrong-length", too_long)],
)
def test_a_client_whose_global_reply_was_no_good_has_no_teacher_in_that_round(small, reason, special):
    played = play_gd(small, ScriptedGD({("1", protocol.GLOBAL, 2): special}), num_rounds=3)
    assert [line["failures"] for line in played.lines] == [{}, {reason: 1}, {}]
    assert [teacher_rounds(played, server_round) for server_round in (1, 2, 3)] == [
        {"0": 1, "1": 1, "2": 1},
        {"0": 2, "1": 0, "2": 2},
        {"0": 3, "1": 3, "2": 3},
    ]


def test_a_quorum_that_ends_the_global_exchange_leaves_the_late_out_of_the_personal_one(small):
    """It still trains the global model, and would be late for this too."""

    def hold(message):
        slow = message.metadata.message_type == protocol.GLOBAL and message.metadata.dst_node_id == 101
        return 5 if slow else 0

    answer = ScriptedGD()
    played = play_gd(small, answer, hold, quorum=0.6, num_rounds=1)
    assert teacher_rounds(played, 1) == {"0": 1, "2": 1}
    assert played.lines[0]["global-clients"] == 2
    assert [failure["reason"] for failure in played.lines[0]["failure-list"]] == ["late", "busy"]


def test_a_client_that_does_not_deploy_the_global_model_gets_none_and_has_no_teacher(small):
    answer = ScriptedGD(global_sizes={"0": GLOBAL_SIZE, "2": GLOBAL_SIZE})
    played = play_gd(small, answer)
    for server_round in (1, 2):
        assert [key for key, _ in played.sent(protocol.GLOBAL, server_round)] == ["0", "2"]
        assert teacher_rounds(played, server_round) == {"0": server_round, "1": 0, "2": server_round}
    reference = reference_of(played.config)
    for server_round in (1, 2):
        deltas = as_arrays({key: answer.global_delta(key, server_round) for key in "02"})
        reference.apply_global(GLOBAL_KEY, {key: (deltas[key], num_examples(key)) for key in "02"}, LR)
        reference.apply(as_arrays({key: answer.delta(key, server_round) for key in SIZES}), LR, reduction="mean")
    assert_same_values(played.strategy.hn, reference, LR)


def test_where_nobody_deploys_the_global_model_it_is_mh_pfedhn(small):
    played = play_gd(small, ScriptedGD(global_sizes={}), run_name="gd")
    assert played.sent(protocol.GLOBAL) == []
    assert GLOBAL_KEY not in played.strategy.hn.members
    plain = play_gd(small, ScriptedGD(), run_name="hn", method="mh-pfedhn")
    one, other = played.strategy.hn.state_dict(), plain.strategy.hn.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_global_model_starts_with_the_first_client_that_deploys_it(small):
    answer = ScriptedGD(global_sizes={"2": GLOBAL_SIZE})
    config = load_config(small | {"num-rounds": 3})
    played = start(config, ChangingGrid(answer, [{100, 101}, {100, 101, 102}]))
    assert [[key for key, _ in played.sent(protocol.GLOBAL, server_round)] for server_round in (1, 2, 3)] == [
        [],
        ["2"],
        ["2"],
    ]
    assert teacher_rounds(played, 3) == {"0": 0, "1": 0, "2": 3}


@pytest.mark.parametrize("participation", [0.34, 0.67])
def test_only_the_cohort_trains_the_global_model(small, participation):
    played = play_gd(small, ScriptedGD(), num_rounds=5, participation=participation)
    for line in played.lines:
        trained = [key for key, _ in played.sent(protocol.GLOBAL, line["round"])]
        assert trained == played.trained(line["round"])
        assert len(trained) == round(participation * 3)


@pytest.mark.parametrize("overrides", [{"method": "mh-pfedhn-g"}, {"distillation-coefficient": 0.0}])
def test_without_distillation_nobody_has_a_teacher_and_the_server_does_the_same(small, overrides):
    without = play_gd(small | overrides, ScriptedGD(), run_name="without")
    distilled = play_gd(small, ScriptedGD(), run_name="with")
    assert len(without.sent(protocol.GLOBAL)) == 6
    assert all(told(without, key, server_round).teacher_round == 0 for key in SIZES for server_round in (1, 2))
    one, other = without.strategy.hn.state_dict(), distilled.strategy.hn.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_temperature_coefficient_and_the_models_name_are_told(small):
    played = play_gd(
        small, ScriptedGD(), temperature=24.0, distillation_coefficient=0.2, global_model="vgg8", local_epochs=3
    )
    for kind in (protocol.GLOBAL, protocol.PERSONAL):
        instructions = told(played, "1", 2, kind)
        assert (instructions.method, instructions.server_round) == ("mh-pfedhn-gd", 2)
        assert (instructions.temperature, instructions.distillation_coefficient) == (24.0, 0.2)
        assert (instructions.global_model, instructions.local_epochs) == ("vgg8", 3)
    assert not told(played, "1", 2, protocol.GLOBAL).evaluate
    greetings = [message.content["instructions"]["global-model"] for _, message in played.sent(protocol.REGISTER)]
    assert greetings == ["vgg8"] * 3


@pytest.mark.parametrize(
    ("global_sizes", "size"),
    [({"0": 60, "1": 50, "2": 50}, 50), ({"0": 50, "1": 60, "2": 60}, 60), ({"0": 60, "2": 50}, 50)],
)
def test_who_disagrees_with_the_majority_about_the_global_models_size_has_no_part_in_it(small, global_sizes, size):
    """Of two as frequent sizes the smaller one counts, whoever came first."""
    played = play_gd(small, ScriptedGD(global_sizes=global_sizes))
    agreeing = [key for key, each in global_sizes.items() if each == size]
    assert played.strategy.hn.num_params(GLOBAL_KEY) == size
    assert [key for key, _ in played.sent(protocol.GLOBAL, 1)] == agreeing
    assert teacher_rounds(played, 2) == {key: 2 if key in agreeing else 0 for key in SIZES}
    assert [line["clients"] for line in played.lines] == [3, 3]  # in the personal exchange it is one like the others


def test_a_late_client_that_disagrees_about_the_global_model_has_no_part_in_it(small):
    answer = ScriptedGD(global_sizes={"0": 50, "1": 50, "2": 60})
    played = start(load_config(small), ChangingGrid(answer, [{100, 101}, {100, 101, 102}]))
    assert [key for key, _ in played.sent(protocol.GLOBAL, 2)] == ["0", "1"]
    assert teacher_rounds(played, 2) == {"0": 2, "1": 2, "2": 0}


# Groups -----------------------------------------------------------------------------------------------------------


def test_clients_of_one_group_share_a_head_and_one_without_a_label_takes_that_of_its_tau(small):
    sizes = {"0": 50, "1": 50, "2": 50}
    answer = ScriptedGD(sizes=sizes, groups={"0": "a1b2", "1": "a1b2"})
    played = play_gd(small, answer, heads="by-architecture")
    hn = played.strategy.hn
    assert {client.key: client.group for client in played.strategy.registry.clients} == {
        "0": "a1b2",
        "1": "a1b2",
        "2": "",
    }
    assert hn.head("0") is hn.head("1") is not hn.head("2")
    assert hn.head("2") is hn.head(GLOBAL_KEY) is hn.heads["4"]


@pytest.mark.parametrize("heads", ["by-tau", "per-client", "none"])
def test_a_group_that_nobody_asked_for_matters_to_no_other_kind_of_heads(small, heads):
    labelled = play_gd(small, ScriptedGD(groups={"0": "a"}), heads=heads, run_name="labelled").strategy.hn
    plain = play_gd(small, ScriptedGD(), heads=heads, run_name="plain").strategy.hn
    one, other = labelled.state_dict(), plain.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def _new_process():
    yield
    new_process()


def registrations(played):
    return {
        key_of(message.metadata.src_node_id): dict(message.content["registration"])
        for message in played.grid.received
        if message.metadata.message_type == protocol.REGISTER
    }


@pytest.mark.usefixtures("_new_process")
def test_real_clients_send_a_group_with_heads_by_architecture_and_k_g_with_a_global_model_only(run_config):
    plain, *others = [
        registrations(play_gd(run_config, honest, num_rounds=1, run_name=f"run-{number}", **overrides))
        for number, overrides in enumerate(
            [{}, {"heads": "by-architecture", "method": "mh-pfedhn-g"}, {"method": "mh-pfedhn-gd", "gd_fraction": 0.67}]
        )
    ]
    assert all(set(each) == {"client-key", "num-params"} for each in plain.values())
    by_architecture, some_deploy = others
    assert all(set(each) == {*plain["0"], "group", "global-num-params"} for each in by_architecture.values())
    groups = {key: each["group"] for key, each in by_architecture.items()}
    assert groups["0"] == groups["2"] != groups["1"]
    assert not any(name in group for group in groups.values() for name in ("lenet", "mlp"))
    assert sorted(each.get("global-num-params", 0) > 0 for each in some_deploy.values()) == [False, True, True]


# Bytes ------------------------------------------------------------------------------------------------------------


def model_size(name):
    return ParameterVector(build_model(name, (3, 8, 8), 4, seed=0)).size


@pytest.mark.usefixtures("_new_process")
@pytest.mark.parametrize("method", ["mh-pfedhn-g", "mh-pfedhn-gd"])
def test_a_round_moves_four_bytes_a_parameter_of_both_models_each_way_and_little_else(run_config, method):
    """Over the contents as Flower serialises them: every record, with names, instructions and metrics."""
    names, global_name = ("lenet", "mlp", "lenet"), "vgg8"
    played = play_gd(run_config, honest, method=method, global_model=global_name, num_rounds=3, participation=1.0)
    for server_round in (1, 2):  # the third is followed by the final weights
        for i, name in enumerate(names):
            values = model_size(name) + model_size(global_name)
            down = messages_of(played.grid.sent, "dst_node_id", i, server_round)
            up = messages_of(played.grid.received, "src_node_id", i, server_round)
            assert [message.metadata.message_type for message in down] == [protocol.GLOBAL, protocol.PERSONAL]
            assert len(up) == 2
            extra = 0
            for messages in (down, up):
                arrays = [
                    array
                    for each in messages
                    for record in each.content.array_records.values()
                    for array in record.values()
                ]
                assert {array.dtype for array in arrays} == {"float32"}
                assert sum(array.shape[0] for array in arrays) == values
                extra += sum(recorddict_to_proto(message.content).ByteSize() for message in messages) - 4 * values
            assert 0 < extra < 2048


def messages_of(messages, node, client, server_round):
    """The messages of a round to or from a client."""
    return [
        message
        for message in messages
        if getattr(message.metadata, node) == 100 + client and round_of(message) == server_round
    ]


@pytest.mark.usefixtures("_new_process")
def test_w_g_goes_to_a_client_once_a_round(run_config):
    played = play_gd(run_config, honest, method="mh-pfedhn-gd", global_model="mlp", num_rounds=2)
    for server_round in (1, 2):
        (w_g,) = {
            vector_of(message, THETA).numpy().tobytes() for _, message in played.sent(protocol.GLOBAL, server_round)
        }
        for i in range(len(SIZES)):
            down = messages_of(played.grid.sent, "dst_node_id", i, server_round)
            assert (
                sum(recorddict_to_proto(message.content).SerializeToString().count(w_g[:4096]) for message in down) == 1
            )
