"""FedAvg's client: what came is an offset from the seeded initialisation; how far training moved it goes back."""

import pytest
import torch
from asking import CLASSES, SHAPE, ask, ask_to_evaluate, ask_to_finish, kept, request, site, stored, theta_for

from common.models import build_model
from common.params import ParameterVector


def test_fedavg_clients_train_what_came_and_return_the_difference(run_config):
    fresh = site(run_config)
    theta = theta_for(fresh)
    result, delta = ask(run_config, theta=theta, method="fedavg", tests=("test",))
    generated = ask(run_config, theta=theta, tests=("test",))
    assert torch.equal(delta, generated[1])
    assert result == generated[0]


def test_the_final_model_is_the_average_on_top_of_the_initialisation(run_config):
    theta = theta_for(site(run_config))
    reported = ask_to_finish(run_config, theta=theta, method="fedavg")
    assert reported == ask_to_evaluate(run_config, theta=theta, method="fedavg")
    model = build_model("lenet", SHAPE, CLASSES, seed=77)
    model.load_state_dict(torch.load(stored(run_config) / "personal-model.pt", weights_only=True))
    assert torch.equal(ParameterVector(model).read(), site(run_config).personal.anchor + theta)


def test_batch_norm_statistics_are_the_clients_own(run_config):
    config = run_config | {"models": "resnet10"}
    theta = torch.zeros(site(config).num_params)
    untouched = ask_to_evaluate(config, 0, theta, method="fedavg")
    ask(config, 0, theta, method="fedavg")
    ask(config, 1, theta, method="fedavg")
    assert not torch.equal(kept(config, 0)["1.running_mean"], kept(config, 1)["1.running_mean"])
    assert ask_to_evaluate(config, 0, theta, method="fedavg") != untouched


def test_there_is_no_offset_without_an_initialisation(run_config):
    # The server knows no architecture: weights that start at zero would never learn.
    with pytest.raises(TypeError, match="anchor"):
        request(theta_for(site(run_config)), method="fedavg", anchor=False)
