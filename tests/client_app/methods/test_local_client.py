"""Local training's client: its model stays where it is."""

import pytest
import torch
from asking import CLASSES, SHAPE, TRAINING, ask, ask_to_evaluate, ask_to_finish, site, stored
from fresh_process import new_process

from client_app.training import epochs, evaluate, sgd, train
from common.errors import ProtocolError
from common.models import build_model
from common.params import ParameterVector


def trained_by_hand(run_config, client, start, server_round=1):
    fresh = site(run_config, client)
    fresh.personal.parameters.write(start)
    model, generator = fresh.personal.model, fresh.generator(0, server_round)
    batches = epochs(len(fresh.train), 8, 1, generator)
    loss = train(model, fresh.train, batches, sgd(model.parameters(), TRAINING), generator, 50.0)
    return loss, fresh.personal.parameters.read()


def test_a_local_model_goes_on_where_it_was_and_survives_a_restart(run_config):
    run = {"method": "local"}
    fresh = site(run_config)
    loss, trained = trained_by_hand(run_config, 0, fresh.personal.anchor)
    result, delta = ask(run_config, 0, **run)
    assert delta is None
    assert (result.train_loss, result.num_examples) == (loss, len(fresh.train))
    new_process()
    ask(run_config, 2, **run)
    assert ask(run_config, 0, server_round=2, **run)[0].train_loss == trained_by_hand(run_config, 0, trained, 2)[0]
    final = ask_to_finish(run_config, 0, **run)
    model = build_model("lenet", SHAPE, CLASSES, seed=1)
    model.load_state_dict(torch.load(stored(run_config) / "personal-model.pt", weights_only=True))
    assert torch.equal(ParameterVector(model).read(), trained_by_hand(run_config, 0, trained, 2)[1])
    assert final == evaluate(model, fresh.test)


def test_a_local_model_is_tested_before_it_is_trained_on(run_config):
    untouched = ask_to_evaluate(run_config, 0, method="local")
    assert ask(run_config, 0, method="local", tests=("test",))[0].evaluations["test"] == untouched
    trained = ask_to_evaluate(run_config, 0, method="local")
    assert trained != untouched
    assert ask(run_config, 0, method="local", server_round=2, tests=("test",))[0].evaluations["test"] == trained


def test_a_round_that_diverged_leaves_the_local_model_as_it_was(run_config):
    ask(run_config, 0, method="local")
    before = ask_to_evaluate(run_config, 0, method="local")
    content = (stored(run_config) / "model.000001.pt").read_bytes()
    diverging = {"client_lr": 1e30, "client_momentum": 0.0}
    with pytest.raises(ProtocolError) as error:
        ask(run_config, 0, method="local", server_round=2, **diverging)
    assert error.value.reason == "not-finite"  # the loss, which the server refuses
    assert (stored(run_config) / "model.000001.pt").read_bytes() == content
    assert ask_to_evaluate(run_config, 0, method="local") == before
