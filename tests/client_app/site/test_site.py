"""What of a model is generated and what stays with the client, and rounds with layers that are kept or frozen."""

import numpy as np
import pytest
import torch
from asking import (
    CLASSES,
    FINISH,
    GD,
    SHAPE,
    TEST,
    TRAINING,
    ask,
    ask_to_evaluate,
    ask_to_finish,
    greeting,
    handled,
    kept,
    request,
    site,
    stored,
    theta_for,
    trainer,
)
from flwr.common.serde import recorddict_to_proto
from fresh_process import new_process
from torch import nn

from client_app.site import GeneratedModel
from client_app.training import epochs, evaluate, sgd, train
from common import protocol
from common.arrays import decode_arrays, payload_bytes
from common.errors import UserError
from common.models import build_model
from common.params import ParameterVector
from common.schema import Vector

# A model of which a part is generated


def small_model():
    """Parameters 0.weight [2, 3], 1.weight [2] and 2.weight [2, 2], each with a bias [2], and three buffers."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))


BUFFERS = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_theta_0_is_the_initialisation_of_the_generated_part_alone():
    seeded = small_model().state_dict()
    generated = GeneratedModel(small_model(), keep_local=("2.*",), freeze=("0.bias",))
    assert generated.parameters.names == ("0.weight", "1.weight", "1.bias")
    assert generated.parameters.size == 10
    expected = torch.cat([seeded[name].flatten() for name in ("0.weight", "1.weight", "1.bias")])
    assert torch.equal(generated.anchor, expected)


@pytest.mark.parametrize("anchor", [True, False])
def test_theta_is_written_to_the_generated_part_alone(anchor):
    seeded = small_model().state_dict()
    generated = GeneratedModel(small_model(), keep_local=("2.*",), freeze=("0.bias",))
    theta = torch.arange(10.0)
    generated.load(theta, anchor, {"2.weight": torch.full((2, 2), 5.0), "1.running_mean": torch.tensor([7.0, 8.0])})
    state = generated.model.state_dict()
    written = torch.cat([state[name].flatten() for name in ("0.weight", "1.weight", "1.bias")])
    assert torch.equal(written, theta + generated.anchor if anchor else theta)
    assert torch.equal(state["0.bias"], seeded["0.bias"])
    assert torch.equal(state["2.bias"], seeded["2.bias"])
    assert state["2.weight"].tolist() == [[5.0, 5.0], [5.0, 5.0]]
    assert state["1.running_mean"].tolist() == [7.0, 8.0]
    assert torch.equal(state["1.running_var"], seeded["1.running_var"])


def test_what_was_there_before_a_load_does_not_matter():
    generated = GeneratedModel(small_model(), keep_local=("2.*",), freeze=("0.bias",))
    with torch.no_grad():
        for tensor in generated.model.state_dict().values():
            tensor.add_(3)
    generated.load(torch.zeros(10), True, {})
    assert all(
        torch.equal(tensor, small_model().state_dict()[name]) for name, tensor in generated.model.state_dict().items()
    )


def test_kept_layers_and_buffers_stay_and_frozen_and_generated_ones_do_not():
    assert set(GeneratedModel(small_model()).kept()) == BUFFERS
    assert set(GeneratedModel(small_model(), keep_local=("2.*",)).kept()) == BUFFERS | {"2.weight", "2.bias"}
    assert set(GeneratedModel(small_model(), freeze=("2.*",)).kept()) == BUFFERS
    both = GeneratedModel(small_model(), keep_local=("0.bias", "2.*"), freeze=("2.bias",))
    assert set(both.kept()) == BUFFERS | {"0.bias", "2.weight"}  # what is both is frozen


def test_only_frozen_layers_take_no_gradient():
    generated = GeneratedModel(small_model(), keep_local=("2.*",), freeze=("0.*",))
    trained = {name for name, parameter in generated.model.named_parameters() if parameter.requires_grad}
    assert trained == {"1.weight", "1.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ({"keep_local": ("3.*",)}, "pattern '3.*' matches no parameter; the model has 0.weight, 0.bias, 1.weight"),
        ({"freeze": ("3.*",)}, "pattern '3.*' matches no parameter; the model has 0.weight, 0.bias, 1.weight"),
        ({"keep_local": ("0.*",), "freeze": ("weight",)}, "pattern 'weight' matches no parameter"),
        ({"keep_local": ("1.running_mean",)}, "pattern '1.running_mean' matches no parameter"),
        ({"keep_local": ("*",)}, "leave no parameter"),
        ({"keep_local": ("0.*", "1.*"), "freeze": ("2.*",)}, "leave no parameter"),
    ],
)
def test_patterns_that_do_not_fit_the_model_are_the_users_mistake(patterns, words):
    with pytest.raises(UserError) as caught:
        GeneratedModel(small_model(), **patterns)
    sentence = str(caught.value)
    assert sentence.startswith("keep-local and freeze do not fit the model: ")
    assert words in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize("key", ["keep-local", "freeze"])
def test_a_pattern_of_the_config_that_matches_nothing_is_named(run_config, key):
    with pytest.raises(
        UserError, match=rf"^{key}: pattern 'head\.\*' matches no parameter; the model 'lenet' has 0\.weight"
    ):
        site(run_config | {key: "0.*, head.*"})


def test_patterns_of_the_config_come_on_top_of_those_of_the_variant(run_config):
    fresh = site(run_config | {"models": "lenet/keep-output", "keep-local": "0.bias", "freeze": "9.bias,9.weight"})
    names = {name for name, _ in fresh.personal.model.named_parameters()}
    assert names - set(fresh.personal.parameters.names) == {"0.bias", "9.weight", "9.bias", "11.weight", "11.bias"}
    assert set(fresh.personal.kept()) == {"0.bias", "11.weight", "11.bias"}


# Rounds with layers that are kept or frozen

LENET = ParameterVector(build_model("lenet", SHAPE, CLASSES, seed=0)).size
OUTPUT = 64 * CLASSES + CLASSES  # parameters of LeNet's last layer, 11.weight and 11.bias


def trained_by_hand(run_config, theta, kept, server_round, frozen=()):
    """A round of client 0 on a whole model; returns its state before and after."""
    fresh = site(run_config)
    model = build_model("lenet", SHAPE, CLASSES, seed=0).to(memory_format=torch.channels_last)
    model.load_state_dict(kept, strict=False)
    vector = ParameterVector(model, include=fresh.personal.parameters.names)
    vector.write(fresh.personal.anchor + theta)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    sent = vector.read()
    generator = fresh.generator(0, server_round)
    moving = [each for each in model.parameters() if each.requires_grad]
    train(model, fresh.train, epochs(len(fresh.train), 8, 1, generator), sgd(moving, TRAINING), generator, 50.0)
    return sent - vector.read(), model


@pytest.mark.parametrize("method", ["mh-pfedhn", "fedavg", GD])
def test_a_kept_layer_is_trained_and_goes_on_where_it_was(run_config, method):
    config = run_config | {"models": "lenet/keep-output"}
    theta = theta_for(site(config))
    assert len(theta) == LENET - OUTPUT
    last = {}
    for server_round in (1, 2, 3):
        new_process()
        _, delta = ask(config, 0, theta, server_round=server_round, method=method)
        by_hand, model = trained_by_hand(config, theta, last, server_round)
        assert torch.equal(delta, by_hand)
        now = kept(config)
        assert set(now) == {"11.weight", "11.bias"}
        assert torch.equal(now["11.weight"], model.state_dict()["11.weight"])
        assert not torch.equal(
            now["11.weight"], last.get("11.weight", build_model("lenet", SHAPE, CLASSES, 0)[11].weight)
        )
        last = now
    assert ask_to_evaluate(config, 0, theta, method=method) != ask_to_evaluate(
        config, 0, theta, method=method, run_name="x"
    )


def test_the_final_model_has_its_kept_layers(run_config):
    config = run_config | {"models": "lenet/keep-input-output"}
    theta = theta_for(site(config))
    ask(config, 0, theta)
    reported = ask_to_finish(config, 0, theta)
    layers = kept(config)
    state = torch.load(stored(config) / "personal-model.pt", weights_only=True)
    assert set(layers) == {"0.weight", "0.bias", "11.weight", "11.bias"}
    assert all(torch.equal(state[name], tensor) for name, tensor in layers.items())
    model = build_model("lenet", SHAPE, CLASSES, seed=77)
    model.load_state_dict(state)
    assert evaluate(model, site(config).test).correct == reported.correct


@pytest.mark.parametrize(
    "changes",
    [{"method": "mh-pfedhn"}, {"method": "mh-pfedhn", "anchor": False}, {"method": "fedavg"}, {"method": "local"}],
    ids=str,
)
def test_a_frozen_layer_never_changes(run_config, changes):
    config = run_config | {"models": "lenet/freeze-last-two"}
    theta = None if changes["method"] == "local" else theta_for(site(config))
    seeded = build_model("lenet", SHAPE, CLASSES, seed=0).state_dict()
    frozen = ["9.weight", "9.bias", "11.weight", "11.bias"]
    for server_round in (1, 2):
        _, delta = ask(config, 0, theta, server_round=server_round, **changes)
        if theta is not None:
            assert len(delta) == LENET - sum(seeded[name].numel() for name in frozen)
            assert delta.norm() > 0
    ask_to_finish(config, 0, theta, **changes)
    final = torch.load(stored(config) / "personal-model.pt", weights_only=True)
    assert all(torch.equal(final[name], seeded[name]) for name in frozen)
    assert not any(torch.equal(final[name], seeded[name]) for name in seeded if name not in frozen)
    assert not list(stored(config).glob("kept.*"))


def test_a_round_with_frozen_layers_equals_one_by_hand(run_config):
    config = run_config | {"models": "lenet/freeze-output"}
    theta = theta_for(site(config))
    by_hand, _ = trained_by_hand(config, theta, {}, 1, frozen=("11.weight", "11.bias"))
    assert torch.equal(ask(config, 0, theta)[1], by_hand)


@pytest.mark.parametrize("variant", ["keep-norm-output", "freeze-last-fifth"])
def test_batch_norm_statistics_are_kept_whatever_else_is(run_config, variant):
    config = run_config | {"models": f"resnet10/{variant}"}
    theta = 0 * theta_for(site(config))
    ask(config, 0, theta)
    first = kept(config)
    buffers = {name for name, _ in build_model("resnet10", SHAPE, CLASSES, seed=0).named_buffers()}
    assert buffers <= set(first)
    norms = {name for name in set(first) - buffers if name.startswith("1.") or ".norm" in name}
    assert (len(norms), len(set(first) - buffers)) == ((42, 44) if variant == "keep-norm-output" else (0, 0))
    new_process()
    ask(config, 0, theta, server_round=2)
    second = kept(config)
    count = "12.norm2.num_batches_tracked"  # of a frozen block too
    assert second[count] == 2 * first[count] > 0


def test_a_local_models_kept_layers_are_its_own_like_all_others(run_config):
    plain = [ask(run_config, 0, method="local", server_round=server_round)[0] for server_round in (1, 2)]
    config = run_config | {"models": "lenet/keep-output,mlp", "results-dir": run_config["results-dir"] + "-other"}
    assert [ask(config, 0, method="local", server_round=server_round)[0] for server_round in (1, 2)] == plain


def test_no_byte_of_a_kept_layer_is_in_any_reply(run_config):
    config = run_config | {"models": "lenet/keep-output"}
    theta = theta_for(site(config))
    question = greeting("group", "global-num-params", method=GD)
    replies, secrets = [trainer(config).answer(protocol.REGISTER, question)], []
    for server_round in (1, 2):
        replies.append(handled(trainer(config), request(theta, server_round=server_round, tests=("test",))))
        secrets.append(kept(config))
    replies += [handled(trainer(config), request(theta, **kind)) for kind in (TEST, FINISH)]
    seeded = build_model("lenet", SHAPE, CLASSES, seed=0).state_dict()
    secrets.append({name: seeded[name] for name in ("11.weight", "11.bias")})
    secrets += [
        {name: one[name] - other[name] for name in one} for one in secrets for other in secrets if one is not other
    ]

    messages = [recorddict_to_proto(reply).SerializeToString() for reply in replies]
    first_delta = decode_arrays(replies[1], {"delta": Vector(LENET - OUTPUT)})["delta"]
    assert first_delta[-4:].numpy().tobytes() in messages[1]  # what is looked for would be found
    for message in messages:
        for secret in secrets:
            for tensor in secret.values():
                assert not any(
                    value.tobytes() in message for value in np.split(tensor.flatten().numpy(), tensor.numel() // 4)
                )
    assert [payload_bytes(reply) for reply in replies] == [0, *[4 * (LENET - OUTPUT) + 128] * 2, 0, 0]
