"""MH-pFedHN's client (Algorithm 1, ClientUpdate) against a training written out by hand."""

import pytest
import torch
from asking import (
    CLASSES,
    SHAPE,
    TRAINING,
    ask,
    ask_to_evaluate,
    handled,
    kept,
    request,
    site,
    theta_for,
    trainer,
)
from fresh_process import new_process
from torch.nn import functional

from client_app.training import epochs, sgd, train
from common import protocol
from common.errors import ProtocolError
from common.models import build_model
from common.params import ParameterVector


def trained(fresh, server_round=1):
    """Train the model of a site as it is, by hand; the mean loss."""
    model, generator = fresh.personal.model, fresh.generator(0, server_round)
    batches = epochs(len(fresh.train), 8, 1, generator)
    return train(model, fresh.train, batches, sgd(model.parameters(), TRAINING), generator, 50.0)


# Training


@pytest.mark.parametrize("anchor", [True, False])
@pytest.mark.parametrize("client", [0, 1])
def test_delta_is_what_was_sent_minus_what_training_made_of_it(run_config, client, anchor):
    seeded = build_model(("lenet", "mlp")[client], SHAPE, CLASSES, seed=0)
    theta_0 = ParameterVector(seeded).read() if anchor else 0
    theta = theta_for(site(run_config, client))
    result, delta = ask(run_config, client, theta, anchor=anchor)
    fresh = site(run_config, client)
    fresh.personal.parameters.write(theta_0 + theta)
    loss = trained(fresh)
    assert torch.equal(delta, (theta_0 + theta) - fresh.personal.parameters.read())
    assert delta.norm() > 0
    assert result.train_loss == loss
    assert result.num_examples == len(fresh.train)
    assert result.evaluations == {}


def test_a_first_step_moves_delta_along_the_gradient(run_config):
    # Descending on delta must raise what the client descends on: the sign that PAPER-NOTES found reversed.
    fresh = site(run_config)
    theta = theta_for(fresh)
    num = len(fresh.train)
    _, delta = ask(run_config, theta=theta, batch_size=num, client_weight_decay=0.0, client_max_grad_norm=1e9)
    fresh.personal.parameters.write(fresh.personal.anchor + theta)
    images, labels = fresh.train.batch(torch.arange(num))
    loss = functional.cross_entropy(fresh.personal.model(images), labels)
    gradient = torch.cat(
        [each.flatten() for each in torch.autograd.grad(loss, list(fresh.personal.model.parameters()))]
    )
    torch.testing.assert_close(delta, 0.02 * gradient, rtol=1e-3, atol=1e-6)


def test_theta_0_depends_on_architecture_and_seed_but_not_on_the_client(run_config):
    lenet, mlp, other_lenet, _ = (site(run_config, client) for client in range(4))
    assert torch.equal(lenet.personal.anchor, other_lenet.personal.anchor)
    assert not torch.equal(lenet.train.images[:4], other_lenet.train.images[:4])
    assert lenet.personal.anchor.shape != mlp.personal.anchor.shape
    assert not torch.equal(lenet.personal.anchor, site(run_config | {"seed": 1}).personal.anchor)
    assert torch.equal(lenet.personal.anchor, ParameterVector(build_model("lenet", SHAPE, CLASSES, seed=0)).read())


def test_theta_0_is_the_same_after_training(run_config):
    fresh = site(run_config)
    before = fresh.personal.anchor.clone()
    first = ask(run_config, theta=torch.zeros(fresh.num_params))
    again = ask(run_config, theta=torch.zeros(fresh.num_params))
    assert torch.equal(first[1], again[1])
    assert torch.equal(trainer(run_config)._site_of(0).personal.anchor, before)


def test_hyperparameters_are_the_servers(run_config):
    theta = theta_for(site(run_config))
    usual = ask(run_config, theta=theta)[1]
    changes = [
        {"local_epochs": 2},
        {"batch_size": 5},
        {"client_lr": 0.01},
        {"client_momentum": 0.0},
        {"client_weight_decay": 0.1},
        {"client_max_grad_norm": 0.01},
        {"anchor": False},
        {"seed": 1},
        {"server_round": 2},
    ]
    for change in changes:
        assert not torch.equal(usual, ask(run_config, theta=theta, **change)[1]), change


# Batch-norm statistics


def test_batch_norm_statistics_stay_with_the_client(run_config):
    config = run_config | {"models": "resnet10"}
    theta = torch.zeros(site(config).num_params)
    batches = -(-len(site(config).train) // 8)

    ask(config, 0, theta)
    first = kept(config)
    ask(config, 2, theta)  # the same architecture in the same process
    assert {name for name in first if "running_mean" in name} != set()
    assert all(torch.equal(tensor, first[name]) for name, tensor in kept(config).items())
    assert not torch.equal(first["1.running_mean"], kept(config, 2)["1.running_mean"])

    before_restart = ask_to_evaluate(config, 0, theta)
    new_process()
    assert ask_to_evaluate(config, 0, theta) == before_restart
    assert ask_to_evaluate(config, 1, theta) != before_restart

    ask(config, 0, theta, server_round=2)
    assert int(kept(config)["1.num_batches_tracked"]) in (2 * batches, 2 * (batches - 1))
    # By hand: the weights of round 2 with the statistics of round 1 as a start.
    fresh = site(config)
    fresh.personal.parameters.write(fresh.personal.anchor + theta)
    fresh.personal.model.load_state_dict(first, strict=False)
    trained(fresh, server_round=2)
    assert all(torch.equal(tensor, kept(config)[name]) for name, tensor in fresh.personal.model.named_buffers())


def test_another_run_starts_with_new_statistics(run_config):
    config = run_config | {"models": "resnet10"}
    theta = torch.zeros(site(config).num_params)
    untouched = ask_to_evaluate(config, 0, theta)
    ask(config, 0, theta)
    assert ask_to_evaluate(config, 0, theta) != untouched
    assert ask_to_evaluate(config, 0, theta, run_name="another") == untouched


def test_statistics_of_one_diverged_round_do_not_spoil_the_rounds_after(run_config):
    config = run_config | {"models": "resnet10"}
    theta = torch.zeros(site(config).num_params)
    reply = handled(trainer(config), request(theta, client_lr=1e30, client_momentum=0.0))
    with pytest.raises(ProtocolError) as error:  # the server will refuse it
        protocol.decode_result(reply)
    assert error.value.reason == "not-finite"
    result, delta = ask(config, 0, theta, server_round=2, tests=("test",))
    assert result.evaluations.keys() == {"test"}
    assert torch.isfinite(delta).all()
