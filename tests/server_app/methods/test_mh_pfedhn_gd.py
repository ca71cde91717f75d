"""MH-pFedHNG and MH-pFedHNGD (Algorithm 2): the global exchange and its step, against `reference.py`; what is sent."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from flwr.common.serde import recorddict_to_proto
from in_process import InProcessGrid
from playing import (
    EVALUATE,
    GLOBAL,
    PERSONAL,
    REGISTER,
    ByHand,
    ChangingGrid,
    ScriptedGD,
    array_of,
    assert_same_network,
    kind_of,
    num_examples,
    play,
    raises,
    round_of,
    settings_in,
    start,
    strategy_for,
    told,
    with_arrays,
)
from reference import Reference, as_arrays, assert_same_adam_state, assert_same_values

from common.config import load_config
from common.models import build_model
from common.params import ParameterVector
from common.protocol import DELTA, THETA
from server_app import room
from server_app.methods.mh_pfedhn_g import GLOBAL_KEY

CHUNK = 16
LR = 0.02
SIZES = {"0": 50, "1": 90, "2": 50}  # K of the clients, of two architectures: tau 4 and 6
GLOBAL_SIZE = 50  # K_g: tau 4, the head of clients 0 and 2
OWN_TAU = 100  # K_g with a tau of its own, 7
NEW_TAU = 70  # and another, 5

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing")


def teacher_rounds(played, server_round):
    """What each client of a round was told about its teacher; 0: none."""
    return {key: int(array_of(message, "teacher-round")) for key, message in played.sent(server_round=server_round)}


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
            array_of(message, THETA), expected[key], rtol=1e-5, atol=0.1 * LR, err_msg=f"{kind} to {key}"
        )


# Against the independent calculation ------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("global_size", [GLOBAL_SIZE, OWN_TAU])
def test_two_rounds_equal_the_reference(small, global_size, reduction):
    answer = ScriptedGD(global_sizes=global_size)
    played = play(small, answer, reduction=reduction)
    reference = reference_of(played.config, global_size)
    for server_round in (1, 2):
        w_g = reference.generate(GLOBAL_KEY)
        assert_sent(played, GLOBAL, server_round, dict.fromkeys(SIZES, w_g))
        deltas = as_arrays({key: answer.global_delta(key, server_round) for key in SIZES})
        reference.apply_global(GLOBAL_KEY, {key: (deltas[key], num_examples(key)) for key in SIZES}, LR)

        assert_sent(played, PERSONAL, server_round, {key: reference.generate(key) for key in SIZES})
        personal = as_arrays({key: answer.delta(key, server_round) for key in SIZES})
        reference.apply(personal, LR, reduction=reduction)
    assert_same_values(played.method.hn, reference, LR)
    assert_same_adam_state(played.method.optimizer, played.method.hn, reference)
    assert reference.steps["trunk", 0, "weight"] == 4
    assert reference.steps["embedding", GLOBAL_KEY] == 2


@dataclass
class Halfway:
    """The network and Adam's state as they were when a round's personal messages went out."""

    values: dict
    moments: dict

    @classmethod
    def of(cls, strategy):
        named = dict(strategy.method.hn.named_parameters())
        return cls(
            {name: parameter.detach().clone() for name, parameter in named.items()},
            {
                name: {entry: value.clone() for entry, value in strategy.method.optimizer.adam.state[parameter].items()}
                for name, parameter in named.items()
                if strategy.method.optimizer.adam.state.get(parameter)
            },
        )


def play_with_halves(small, **how):
    """A run, and what was there before the global step and between the two steps of each round."""
    config = load_config(small)
    strategy = strategy_for(config)
    halves = {}

    def look(message):
        kind = kind_of(message)
        if kind in (GLOBAL, PERSONAL):
            halves.setdefault((round_of(message), kind), Halfway.of(strategy))

    answer = ScriptedGD(before=look, **how)
    return start(config, InProcessGrid(answer, 3, small), strategy), halves


@pytest.mark.parametrize("global_size", [GLOBAL_SIZE, NEW_TAU])
def test_the_global_step_moves_trunk_its_own_head_and_v_g_alone(small, global_size):
    played, halves = play_with_halves(small, global_sizes=global_size)
    hn = played.method.hn
    shared = {id(parameter) for parameter in (*hn.trunk.parameters(), hn.embedding(GLOBAL_KEY))}
    shared |= {id(parameter) for parameter in hn.head(GLOBAL_KEY).parameters()}
    touched = {name for name, parameter in hn.named_parameters() if id(parameter) in shared}
    assert len(touched) == 6 + 1 + 2
    for server_round in (1, 2):
        before, after = halves[server_round, GLOBAL], halves[server_round, PERSONAL]
        for name in before.values:
            same = torch.equal(before.values[name], after.values[name])
            assert same == (name not in touched), (server_round, name)
            if name not in touched:
                # Not even Adam's moments: in round 1 there are none, in round 2 they are those of round 1.
                one, other = before.moments.get(name, {}), after.moments.get(name, {})
                assert one.keys() == other.keys()
                assert all(torch.equal(one[entry], other[entry]) for entry in one)
    assert halves[1, PERSONAL].moments.keys() == touched


def test_the_personal_step_leaves_v_g_alone(small):
    played, halves = play_with_halves(small)
    v_g = next(name for name, value in played.method.hn.named_parameters() if value is embedding(played, GLOBAL_KEY))
    before, after = halves[1, PERSONAL], halves[2, GLOBAL]
    assert torch.equal(before.values[v_g], after.values[v_g])
    assert int(after.moments[v_g]["step"]) == 1
    assert not torch.equal(before.values["trunk.0.weight"], after.values["trunk.0.weight"])


def embedding(played, key):
    return played.method.hn.embedding(key)


def test_samples_of_a_client_that_fails_the_global_exchange_do_not_count(small):
    answer = ScriptedGD({("1", GLOBAL, 1): raises})
    played = play(small, answer)
    reference = reference_of(played.config)
    for server_round, good in ((1, "02"), (2, "012")):
        deltas = as_arrays({key: answer.global_delta(key, server_round) for key in good})
        reference.apply_global(GLOBAL_KEY, {key: (deltas[key], num_examples(key)) for key in good}, LR)
        # It takes part in the personal training all the same.
        reference.apply(as_arrays({key: answer.delta(key, server_round) for key in SIZES}), LR, reduction="mean")
    assert_same_values(played.method.hn, reference, LR)
    assert_same_adam_state(played.method.optimizer, played.method.hn, reference)
    assert played.lines[0]["failures"] == {"client-raised": 1}
    assert played.lines[0]["clients"] == 3
    assert [line["global-clients"] for line in played.lines] == [2, 3]


def test_a_global_exchange_in_which_everybody_fails_changes_nothing(small):
    special = {(key, GLOBAL, 1): raises for key in SIZES}
    played, halves = play_with_halves(small, special=special)
    before, after = halves[1, GLOBAL], halves[1, PERSONAL]
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
        for name, entries in halves[1, PERSONAL].moments.items()
        if name.startswith("heads.") and name.endswith("bias")
    ]
    direction = bias.flatten()[:GLOBAL_SIZE]  # clipping may scale it
    torch.testing.assert_close(direction / direction.norm(), mean / mean.norm())
    plain = sum(answer.global_delta(key, 1) for key in SIZES) / 3
    assert not torch.allclose(plain / plain.norm(), mean / mean.norm(), atol=0.05)


def test_an_enormous_global_delta_leaves_the_step_out(small):
    enormous = with_arrays({DELTA: torch.full((GLOBAL_SIZE,), 3e38)})
    played, halves = play_with_halves(small, special={(key, GLOBAL, 1): enormous for key in SIZES})
    before, after = halves[1, GLOBAL], halves[1, PERSONAL]
    assert all(torch.equal(before.values[name], after.values[name]) for name in before.values)
    assert all(torch.isfinite(parameter).all() for parameter in played.method.hn.parameters())


def test_all_clients_are_tested_with_weights_of_one_phi(small):
    config = load_config(small | {"participation": 0.34})
    strategy = strategy_for(config)
    at_training = {}

    def look(message):
        if kind_of(message) == PERSONAL and round_of(message) == 2:
            with torch.no_grad():
                at_training.update(zip(SIZES, strategy.method.hn.generate(list(SIZES)), strict=True))

    played = start(config, InProcessGrid(ScriptedGD(before=look), len(SIZES)), strategy)
    others = played.sent(EVALUATE, 2)
    assert len(others) == 2
    assert all(torch.equal(array_of(message, THETA), at_training[key]) for key, message in others)


# What clients are told --------------------------------------------------------------------------------------------


not_finite = with_arrays({DELTA: torch.full((GLOBAL_SIZE,), torch.nan)})
too_long = with_arrays({DELTA: torch.zeros(GLOBAL_SIZE + 1)})


def test_every_client_distils_from_the_global_model_of_the_same_round(small):
    played = play(small, ScriptedGD(), num_rounds=3)
    assert [teacher_rounds(played, server_round) for server_round in (1, 2, 3)] == [
        dict.fromkeys(SIZES, server_round) for server_round in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("reason", "special"),
    [("client-raised", raises), ("not-finite", not_finite), ("wrong-length", too_long)],
)
def test_a_client_whose_global_reply_was_no_good_has_no_teacher_in_that_round(small, reason, special):
    played = play(small, ScriptedGD({("1", GLOBAL, 2): special}), num_rounds=3)
    assert [line["failures"] for line in played.lines] == [{}, {reason: 1}, {}]
    assert [teacher_rounds(played, server_round) for server_round in (1, 2, 3)] == [
        {"0": 1, "1": 1, "2": 1},
        {"0": 2, "1": 0, "2": 2},
        {"0": 3, "1": 3, "2": 3},
    ]


def test_a_quorum_that_ends_the_global_exchange_leaves_the_late_out_of_the_personal_one(small):
    """It still trains the global model, and would be late for this too."""

    def hold(message):
        slow = kind_of(message) == GLOBAL and message.metadata.dst_node_id == 101
        return 5 if slow else 0

    answer = ScriptedGD()
    played = play(small, answer, hold, quorum=0.6, num_rounds=1)
    assert teacher_rounds(played, 1) == {"0": 1, "2": 1}
    assert played.lines[0]["global-clients"] == 2
    assert [failure["reason"] for failure in played.lines[0]["failure-list"]] == ["late", "busy"]


def test_a_client_that_does_not_deploy_the_global_model_gets_none_and_has_no_teacher(small):
    answer = ScriptedGD(global_sizes={"0": GLOBAL_SIZE, "2": GLOBAL_SIZE})
    played = play(small, answer)
    for server_round in (1, 2):
        assert [key for key, _ in played.sent(GLOBAL, server_round)] == ["0", "2"]
        assert teacher_rounds(played, server_round) == {"0": server_round, "1": 0, "2": server_round}
    reference = reference_of(played.config)
    for server_round in (1, 2):
        deltas = as_arrays({key: answer.global_delta(key, server_round) for key in "02"})
        reference.apply_global(GLOBAL_KEY, {key: (deltas[key], num_examples(key)) for key in "02"}, LR)
        reference.apply(as_arrays({key: answer.delta(key, server_round) for key in SIZES}), LR, reduction="mean")
    assert_same_values(played.method.hn, reference, LR)


def test_where_nobody_deploys_the_global_model_it_is_mh_pfedhn(small):
    played = play(small, ScriptedGD(global_sizes={}), run_name="gd")
    assert played.sent(GLOBAL) == []
    assert GLOBAL_KEY not in played.method.hn.members
    plain = play(small, ScriptedGD(), run_name="hn", method="mh-pfedhn")
    assert_same_network(played.method.hn, plain.method.hn)


def test_the_global_model_starts_with_the_first_client_that_deploys_it(small):
    answer = ScriptedGD(global_sizes={"2": GLOBAL_SIZE})
    config = load_config(small | {"num-rounds": 3})
    played = start(config, ChangingGrid(answer, [{100, 101}, {100, 101, 102}]))
    assert [[key for key, _ in played.sent(GLOBAL, server_round)] for server_round in (1, 2, 3)] == [
        [],
        ["2"],
        ["2"],
    ]
    assert teacher_rounds(played, 3) == {"0": 0, "1": 0, "2": 3}


@pytest.mark.parametrize("participation", [0.34, 0.67])
def test_only_the_cohort_trains_the_global_model(small, participation):
    played = play(small, ScriptedGD(), num_rounds=5, participation=participation)
    for line in played.lines:
        trained = [key for key, _ in played.sent(GLOBAL, line["round"])]
        assert trained == played.trained(line["round"])
        assert len(trained) == round(participation * 3)


@pytest.mark.parametrize("overrides", [{"method": "mh-pfedhn-g"}, {"distillation_coefficient": 0.0}])
def test_without_distillation_the_server_does_the_same(small, overrides):
    without = play(small, ScriptedGD(), run_name="without", **overrides)
    distilled = play(small, ScriptedGD(), run_name="with")
    assert len(without.sent(GLOBAL)) == 6
    assert_same_network(without.method.hn, distilled.method.hn)


def test_without_distillation_nobody_is_told_of_a_teacher(small):
    played = play(small, ScriptedGD(), method="mh-pfedhn-g")
    for kind in (GLOBAL, PERSONAL):
        assert [list(message.content["arrays"]) for _, message in played.sent(kind)] == [[THETA]] * 6


@pytest.mark.usefixtures("_new_process")
def test_a_coefficient_of_zero_makes_gd_bit_for_bit_what_g_is_and_no_client_keeps_a_teacher(run_config):
    settings = run_config | {"global-model": "mlp", "hn-lr": LR}
    zero = play(settings, num_clients=3, method="mh-pfedhn-gd", distillation_coefficient=0.0, run_name="zero")
    plain = play(settings, num_clients=3, method="mh-pfedhn-g", run_name="plain")
    half = play(settings, num_clients=3, method="mh-pfedhn-gd", distillation_coefficient=0.5, run_name="half")
    assert_same_network(zero.method.hn, plain.method.hn)
    assert [line["client-accuracy"] for line in zero.lines] == [line["client-accuracy"] for line in plain.lines]
    assert not torch.equal(zero.method.hn.embedding("0"), half.method.hn.embedding("0"))
    kept = {played.config.run_name: list(played.folder.rglob("teacher*")) for played in (zero, plain, half)}
    assert kept["zero"] == kept["plain"] == []
    assert len(kept["half"]) >= 3


def test_temperature_coefficient_and_the_models_name_are_told(small):
    played = play(
        small, ScriptedGD(), temperature=24.0, distillation_coefficient=0.2, global_model="vgg8", local_epochs=3
    )
    expected = {"temperature": 24.0, "distillation-coefficient": 0.2, "global-model": "vgg8", "local-epochs": 3}
    for kind in (GLOBAL, PERSONAL):
        request = dict(played.sent(kind, 2))["1"]
        assert (told(request).method, told(request).server_round) == ("mh-pfedhn-gd", 2)
        assert settings_in(request).items() >= expected.items()
    assert not told(dict(played.sent(GLOBAL, 2))["1"]).tests
    for _, greeting in played.sent(REGISTER):
        assert settings_in(greeting)["global-model"] == "vgg8"
        assert greeting.content["instructions"]["facts"] == ["global-num-params"]


@pytest.mark.parametrize(
    ("global_sizes", "size"),
    [({"0": 60, "1": 50, "2": 50}, 50), ({"0": 50, "1": 60, "2": 60}, 60), ({"0": 60, "2": 50}, 50)],
)
def test_who_disagrees_with_the_majority_about_the_global_models_size_has_no_part_in_it(small, global_sizes, size):
    """Of two as frequent sizes the smaller one counts, whoever came first."""
    played = play(small, ScriptedGD(global_sizes=global_sizes))
    agreeing = [key for key, each in global_sizes.items() if each == size]
    assert played.method.hn.num_params(GLOBAL_KEY) == size
    assert [key for key, _ in played.sent(GLOBAL, 1)] == agreeing
    assert teacher_rounds(played, 2) == {key: 2 if key in agreeing else 0 for key in SIZES}
    assert [line["clients"] for line in played.lines] == [3, 3]  # in the personal exchange it is one like the others


def test_a_late_client_that_disagrees_about_the_global_model_has_no_part_in_it(small):
    answer = ScriptedGD(global_sizes={"0": 50, "1": 50, "2": 60})
    played = start(load_config(small), ChangingGrid(answer, [{100, 101}, {100, 101, 102}]))
    assert [key for key, _ in played.sent(GLOBAL, 2)] == ["0", "1"]
    assert teacher_rounds(played, 2) == {"0": 2, "1": 2, "2": 0}


@pytest.fixture
def _little_memory(monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda device: 64 * 2**20)


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("global_sizes", [{"0": 10**8, "1": 50, "2": 50}, {"0": 10**8, "1": 10**8, "2": 50}])
def test_a_global_model_that_does_not_fit_is_nobodys_and_its_clients_train_their_own(small, caplog, global_sizes):
    """Also where it is the majority's."""
    played = play(small, ScriptedGD(global_sizes=global_sizes))
    agreeing = [key for key, size in global_sizes.items() if size == 50]
    assert played.method.hn.num_params(GLOBAL_KEY) == 50
    assert [key for key, _ in played.sent(GLOBAL, 1)] == agreeing
    assert [line["clients"] for line in played.lines] == [3, 3]
    assert [line["failures"] for line in played.lines] == [{}, {}]
    assert "Client 0 has no part in the global model: it has 100000000 parameters there, elsewhere 50." in caplog.text


@pytest.mark.usefixtures("_little_memory")
def test_without_a_global_model_that_fits_there_is_none(small, caplog):
    played = play(small, ScriptedGD(global_sizes={"0": 10**8}))
    assert played.sent(GLOBAL) == []
    assert GLOBAL_KEY not in played.method.hn.members
    assert [line["clients"] for line in played.lines] == [3, 3]
    assert "Client 0 has no part in the global model: its 100000000 parameters do not fit into memory." in caplog.text


def test_the_size_of_a_global_model_does_not_decide_the_chunk_size(small):
    sizes = {"0": 2000, "1": 2000, "2": 5000}
    played = play(small, ScriptedGD(sizes=sizes, global_sizes=1), chunk_size="auto", num_rounds=1)
    assert played.method.hn.chunk_size == 31


# Groups -----------------------------------------------------------------------------------------------------------


def test_clients_of_one_group_share_a_head_and_one_without_a_label_takes_that_of_its_tau(small):
    sizes = {"0": 50, "1": 50, "2": 50}
    answer = ScriptedGD(sizes=sizes, groups={"0": "a1b2", "1": "a1b2"})
    played = play(small, answer, heads="by-architecture")
    hn = played.method.hn
    assert {client.key: client.facts.get("group") for client in played.clients} == {"0": "a1b2", "1": "a1b2", "2": None}
    assert hn.head("0") is hn.head("1") is not hn.head("2")
    assert hn.head("2") is hn.head(GLOBAL_KEY) is hn.heads["4"]


@pytest.mark.parametrize("heads", ["by-tau", "per-client", "none"])
def test_a_group_is_asked_for_with_heads_by_architecture_only_and_matters_to_no_other_kind(small, heads):
    labelled = play(small, ScriptedGD(groups={"0": "a"}), heads=heads, run_name="labelled")
    plain = play(small, ScriptedGD(), heads=heads, run_name="plain")
    assert all(client.facts == {"global-num-params": GLOBAL_SIZE} for client in labelled.clients)
    assert_same_network(labelled.method.hn, plain.method.hn)


def test_a_group_that_nobody_asked_for_is_refused(small):
    def tells(message, reply):
        reply.content["registration"]["group"] = "a"
        return reply

    played = play(small, ScriptedGD({("0", REGISTER): tells}))
    assert [line["failures"] for line in played.lines] == [{"malformed": 1}, {}]
    assert [client.key for client in played.clients] == ["1", "2"]


def registrations(played):
    return {key: dict(reply.content["registration"]) for key, reply in played.received(REGISTER)}


@pytest.mark.usefixtures("_new_process")
def test_real_clients_send_a_group_with_heads_by_architecture_and_k_g_with_a_global_model_only(run_config):
    plain, *others = [
        registrations(play(run_config, num_clients=3, num_rounds=1, run_name=f"run-{number}", **overrides))
        for number, overrides in enumerate(
            [{}, {"heads": "by-architecture", "method": "mh-pfedhn-g"}, {"method": "mh-pfedhn-gd", "gd_fraction": 0.67}]
        )
    ]
    always = {"client-key", "num-params", "train-samples", "test-samples"}
    assert all(set(each) == always for each in plain.values())
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
    played = play(run_config, num_clients=3, method=method, global_model=global_name, num_rounds=3)
    for server_round in (1, 2):  # the third is followed by the final weights
        for i, name in enumerate(names):
            values = model_size(name) + model_size(global_name)
            down = messages_of(played.grid.sent, "dst_node_id", i, server_round)
            up = messages_of(played.grid.received, "src_node_id", i, server_round)
            assert [kind_of(message) for message in down] == [GLOBAL, PERSONAL]
            assert len(up) == 2
            extra = 0
            for messages in (down, up):
                arrays = [
                    array
                    for each in messages
                    for record in each.content.array_records.values()
                    for array in record.values()
                ]
                if messages is down and method == "mh-pfedhn-gd":
                    (teacher_round,) = [array for array in arrays if array.dtype == "int64"]
                    arrays.remove(teacher_round)
                    assert teacher_round.shape == (1,)
                assert {array.dtype for array in arrays} == {"float32"}
                assert sum(array.shape[0] for array in arrays) == values
                extra += sum(recorddict_to_proto(message.content).ByteSize() for message in messages) - 4 * values
            assert 0 < extra < 2816  # 704 a message


def messages_of(messages, node, client, server_round):
    """The messages of a round to or from a client."""
    return [
        message
        for message in messages
        if getattr(message.metadata, node) == 100 + client and round_of(message) == server_round
    ]


@pytest.mark.usefixtures("_new_process")
def test_w_g_goes_to_a_client_once_a_round(run_config):
    played = play(run_config, num_clients=3, method="mh-pfedhn-gd", global_model="mlp", num_rounds=2)
    for server_round in (1, 2):
        (w_g,) = {array_of(message, THETA).numpy().tobytes() for _, message in played.sent(GLOBAL, server_round)}
        for i in range(len(SIZES)):
            down = messages_of(played.grid.sent, "dst_node_id", i, server_round)
            assert (
                sum(recorddict_to_proto(message.content).SerializeToString().count(w_g[:4096]) for message in down) == 1
            )
