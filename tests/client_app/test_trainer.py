"""What a client answers to the server's messages, and what it keeps between them."""

import pytest
import torch
from asking import (
    CLASSES,
    NUM_CLIENTS,
    SHAPE,
    ask,
    ask_globally,
    ask_to_evaluate,
    ask_to_finish,
    context_of,
    kept,
    random_theta,
    request,
    site,
    stored,
    theta_for,
    told,
    trainer,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from fresh_process import new_process
from torch.nn import functional

from client_app.methods import METHODS
from client_app.trainer import trainer_for
from client_app.training import SGDSettings, evaluate, train
from common import config as config_module
from common import protocol
from common.codec import decode, encode
from common.config import load_config
from common.data.simulation import divide
from common.errors import UserError
from common.models import build_model
from common.params import ParameterVector
from common.protocol import VERSION, ProtocolError

# Registration


def test_a_client_registers_with_its_key_and_the_size_of_its_model_and_nothing_else(run_config):
    reply = trainer(run_config, 1).register(protocol.encode_greeting())
    model = build_model("mlp", SHAPE, CLASSES, seed=0)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert {name: dict(record) for name, record in reply.items()} == {
        "registration": {"client-key": "1", "num-params": size}
    }


def test_a_server_of_another_version_is_refused(run_config):
    with pytest.raises(ProtocolError, match=f"version {VERSION - 1}") as error:
        trainer(run_config).register(RecordDict({"instructions": ConfigRecord({"protocol-version": VERSION - 1})}))
    assert error.value.reason == "version"
    content = protocol.encode_request(told(protocol_version=0), {"theta": theta_for(site(run_config))})
    for handle in (trainer(run_config).train, trainer(run_config).evaluate, trainer(run_config).finish):
        with pytest.raises(ProtocolError) as error:
            handle(content)
        assert error.value.reason == "version"


@pytest.mark.parametrize(
    ("node_config", "words"),
    [
        ({}, "partition-id=0 num-partitions=10"),
        ({"partition-id": 0}, "partition-id=0 num-partitions=10"),
        ({"num-partitions": 3}, "partition-id=0 num-partitions=10"),
        ({"partition-id": 3, "num-partitions": 3}, "partition-id is 3, but must be from 0 to 2"),
        ({"partition-id": -1, "num-partitions": 3}, "partition-id is -1"),
    ],
)
def test_a_node_that_does_not_say_which_client_it_plays_is_told_how(run_config, node_config, words):
    with pytest.raises(UserError, match=words):
        trainer_for(context_of(run_config, **node_config))


# Requests that are not right


def with_vectors(**arrays):
    content = protocol.encode_request(told(), {})
    content["vectors"] = ArrayRecord({name: Array(values.numpy()) for name, values in arrays.items()})
    return content


def bad_requests(size):
    good = torch.zeros(size)
    yield "malformed", protocol.encode_request(told(method="fedprox"), {"theta": good})
    yield "malformed", protocol.encode_request(told(), {})
    yield "malformed", with_vectors(weights=good)
    yield "malformed", with_vectors(theta=good, more=good)
    yield "wrong-length", with_vectors(theta=good[1:])
    yield "wrong-dtype", with_vectors(theta=good.double())
    yield "not-finite", with_vectors(theta=good.index_fill(0, torch.tensor([size - 1]), float("inf")))
    yield "malformed", RecordDict()


def test_a_bad_request_is_refused_by_name_and_leaves_no_trace(run_config):
    size = site(run_config).personal.parameters.size
    for reason, content in bad_requests(size):
        for handle in (trainer(run_config).train, trainer(run_config).evaluate, trainer(run_config).finish):
            with pytest.raises(ProtocolError) as error:
                handle(content)
            assert error.value.reason == reason
    assert not stored(run_config).exists()
    after = ask(run_config, theta=torch.zeros(size))
    new_process()
    assert torch.equal(after[1], ask(run_config, theta=torch.zeros(size))[1])


def test_an_unknown_method_is_answered_with_the_known_ones(run_config):
    with pytest.raises(ProtocolError, match="'fedprox', but this client knows " + ", ".join(METHODS)):
        trainer(run_config).train(protocol.encode_request(told(method="fedprox"), {}))


def test_local_takes_no_vectors(run_config):
    theta = theta_for(site(run_config))
    with pytest.raises(ProtocolError, match="theta"):
        ask(run_config, theta=theta, method="local")


@pytest.mark.parametrize("run_name", ["../elsewhere", "/elsewhere", "a/b", ".."])
def test_a_server_cannot_make_a_client_write_outside_its_results(run_config, tmp_path, run_name):
    theta = theta_for(site(run_config))
    with pytest.raises(ProtocolError):
        ask_to_finish(run_config, theta=theta, run_name=f"{tmp_path}{run_name}" if run_name[0] == "/" else run_name)
    assert not list(tmp_path.rglob("*.pt"))


# Training


def trained_by_hand(run_config, client, start, server_round=1):
    fresh = site(run_config, client)
    fresh.personal.parameters.write(start)
    settings = SGDSettings(epochs=1, batch_size=8, lr=0.02, momentum=0.9, weight_decay=5e-4, max_grad_norm=50.0)
    loss = train(fresh.personal.model, fresh.train, settings, fresh.generator(0, server_round))
    return loss, fresh.personal.parameters.read()


@pytest.mark.parametrize("anchor", [True, False])
@pytest.mark.parametrize("client", [0, 1])
def test_delta_is_what_was_sent_minus_what_training_made_of_it(run_config, client, anchor):
    seeded = build_model(("lenet", "mlp")[client], SHAPE, CLASSES, seed=0)
    theta_0 = ParameterVector(seeded).read() if anchor else 0
    theta = theta_for(site(run_config, client))
    result, delta = ask(run_config, client, theta, anchor=anchor)
    loss, trained = trained_by_hand(run_config, client, theta_0 + theta)
    assert torch.equal(delta, (theta_0 + theta) - trained)
    assert delta.norm() > 0
    assert result.train_loss == loss
    assert result.num_examples == len(site(run_config, client).train)
    assert result.evaluation is None


def test_a_first_step_moves_delta_along_the_gradient(run_config):
    # Descending on delta must raise what the client descends on: the sign that PAPER-NOTES found reversed.
    fresh = site(run_config)
    theta = theta_for(fresh)
    num = len(fresh.train)
    _, delta = ask(run_config, theta=theta, batch_size=num, client_weight_decay=0.0, max_grad_norm=1e9)
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
    first = ask(run_config, theta=torch.zeros(fresh.personal.parameters.size))
    again = ask(run_config, theta=torch.zeros(fresh.personal.parameters.size))
    assert torch.equal(first[1], again[1])
    assert torch.equal(trainer(run_config)._site_of(0).personal.anchor, before)


def test_the_received_weights_are_tested_before_they_are_trained(run_config):
    fresh = site(run_config)
    theta = theta_for(fresh)
    result, delta = ask(run_config, theta=theta, evaluate=True)
    fresh.personal.parameters.write(fresh.personal.anchor + theta)
    assert result.evaluation == evaluate(fresh.personal.model, fresh.test)
    assert ask_to_evaluate(run_config, theta=theta) == result.evaluation
    assert torch.equal(delta, ask(run_config, theta=theta)[1])  # and the test changes nothing in training


def test_hyperparameters_are_the_servers(run_config):
    theta = theta_for(site(run_config))
    usual = ask(run_config, theta=theta)[1]
    changes = [
        {"local_epochs": 2},
        {"batch_size": 5},
        {"client_lr": 0.01},
        {"client_momentum": 0.0},
        {"client_weight_decay": 0.1},
        {"max_grad_norm": 0.01},
        {"seed": 1},
        {"server_round": 2},
    ]
    for change in changes:
        assert not torch.equal(usual, ask(run_config, theta=theta, **change)[1]), change


def test_what_a_client_learns_does_not_depend_on_whom_the_worker_served_before(run_config):
    config = run_config | {"models": "resnet10"}
    thetas = [theta_for(site(config), seed, scale=0.0) for seed in range(3)]
    alone = [ask(config, 0, theta, server_round=1 + i, evaluate=True) for i, theta in enumerate(thetas)]
    new_process()
    crowded = []
    other_run = config | {"results-dir": config["results-dir"] + "-crowded"}
    torch.manual_seed(99)
    for i, theta in enumerate(thetas):
        ask(other_run, 2, theta, server_round=1 + i)
        crowded.append(ask(other_run, 0, theta, server_round=1 + i, evaluate=True))
        ask(other_run, 1, theta, server_round=1 + i)
        ask_to_evaluate(other_run, 3, theta)
    for (result, delta), (other_result, other_delta) in zip(alone, crowded, strict=True):
        assert result == other_result
        assert torch.equal(delta, other_delta)


# Batch-norm statistics


def test_batch_norm_statistics_stay_with_the_client(run_config):
    config = run_config | {"models": "resnet10"}
    theta = torch.zeros(site(config).personal.parameters.size)
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
    settings = SGDSettings(epochs=1, batch_size=8, lr=0.02, momentum=0.9, weight_decay=5e-4, max_grad_norm=50.0)
    train(fresh.personal.model, fresh.train, settings, fresh.generator(0, 2))
    assert all(torch.equal(tensor, kept(config)[name]) for name, tensor in fresh.personal.model.named_buffers())


def test_another_run_starts_with_new_statistics(run_config):
    config = run_config | {"models": "resnet10"}
    theta = torch.zeros(site(config).personal.parameters.size)
    untouched = ask_to_evaluate(config, 0, theta)
    ask(config, 0, theta)
    assert ask_to_evaluate(config, 0, theta) != untouched
    assert ask_to_evaluate(config, 0, theta, run_name="another") == untouched


def test_statistics_of_one_diverged_round_do_not_spoil_the_rounds_after(run_config):
    config = run_config | {"models": "resnet10"}
    theta = torch.zeros(site(config).personal.parameters.size)
    content = protocol.encode_request(told(client_lr=1e30, client_momentum=0.0), {"theta": theta})
    reply = trainer(config).train(content)  # the server will refuse it
    with pytest.raises(ProtocolError) as error:
        protocol.decode_training_result(reply)
    assert error.value.reason == "not-finite"
    result, delta = ask(config, 0, theta, server_round=2, evaluate=True)
    assert result.evaluation is not None
    assert torch.isfinite(delta).all()


# Wire forms of the download


@pytest.mark.parametrize("download", ["half", "int8"])
@pytest.mark.parametrize("anchor", [True, False])
def test_delta_is_relative_to_the_weights_as_they_arrived(run_config, download, anchor):
    theta = theta_for(site(run_config, 1))
    arrived = decode(encode(theta, download, 1.0), download, 1.0, len(theta))
    assert (theta - arrived).abs().max() > 1e-6
    # Without a step, nothing of the rounding may show: the server would take it for training.
    _, still = ask(run_config, 1, theta, download=download, anchor=anchor, client_lr=0.0)
    assert torch.equal(still, torch.zeros(len(theta)))
    lossy = ask(run_config, 1, theta, download=download, anchor=anchor, evaluate=True)
    exact = ask(run_config, 1, arrived, anchor=anchor, evaluate=True)
    assert lossy[0] == exact[0]
    assert torch.equal(lossy[1], exact[1])
    assert not torch.equal(lossy[1], ask(run_config, 1, theta, anchor=anchor)[1])


@pytest.mark.parametrize("download", ["half", "int8"])
def test_the_final_model_is_that_of_the_weights_as_they_arrived(run_config, download):
    theta = theta_for(site(run_config, 1))
    reported = ask_to_finish(run_config, 1, theta, download=download)
    arrived = decode(encode(theta, download, 1.0), download, 1.0, len(theta))
    assert ask_to_evaluate(run_config, 1, arrived) == reported
    model = build_model("mlp", SHAPE, CLASSES, seed=77)
    model.load_state_dict(torch.load(stored(run_config, 1) / "personal-model.pt", weights_only=True))
    assert torch.equal(ParameterVector(model).read(), site(run_config, 1).personal.anchor + arrived)


# What a lossy upload leaves out


def residual(run_config, client=1, exchange="personal"):
    return kept(run_config, client, f"{exchange}-residual")["delta"]


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize(("upload", "fraction"), [("topk", 0.1), ("topk", 0.001), ("half", 0.3), ("int8", 0.3)])
def test_all_that_arrives_and_what_is_left_are_the_sum_of_what_was_learned(run_config, upload, fraction, restarts):
    size = site(run_config, 1).personal.parameters.size
    lossy = {"upload": upload, "topk_fraction": fraction}
    arrived, learned, left = torch.zeros(size), torch.zeros(size), torch.zeros(size)
    for server_round in (1, 2, 3):
        if restarts:
            new_process()
        theta = random_theta(size, seed=server_round)
        round_of = {"server_round": server_round}
        delta = ask(run_config, 1, theta, run_name="exact", **round_of)[1]
        received = ask(run_config, 1, theta, error_feedback=True, **lossy, **round_of)[1]
        # By hand: what is sent is the wire form of what was learned now and what was left before.
        expected = decode(encode(delta + left, upload, fraction), upload, fraction, size)
        torch.testing.assert_close(received, expected, rtol=0, atol=0)
        left = delta + left - expected
        assert torch.equal(residual(run_config), left)
        learned, arrived = learned + delta, arrived + received
        plain = ask(run_config, 1, theta, run_name="plain", **lossy, **round_of)[1]
        assert torch.equal(plain, received) == (server_round == 1)
    assert left.abs().max() > 0
    torch.testing.assert_close(arrived + left, learned, rtol=0, atol=2e-6)
    assert (arrived - learned).abs().max() > 1e-7
    assert not stored(run_config, 1, "plain").exists()


def test_personal_and_global_exchange_have_a_residual_each(run_config):
    lossy = {"upload": "topk", "error_feedback": True, "method": "mh-pfedhn-gd"}
    w_g, theta = theta_for(site(run_config, 0)), theta_for(site(run_config, 1))
    ask_globally(run_config, 1, w_g, **lossy)
    first = residual(run_config, exchange="global")
    assert len(first) == len(w_g)
    ask(run_config, 1, theta, **lossy)
    assert torch.equal(residual(run_config, exchange="global"), first)
    assert len(residual(run_config)) == len(theta) != len(w_g)
    exact = ask_globally(run_config, 1, w_g, server_round=2, run_name="exact")[1]
    received = ask_globally(run_config, 1, w_g, server_round=2, **lossy)[1]
    expected = decode(encode(exact + first, "topk", 0.3), "topk", 0.3, len(w_g))
    assert torch.equal(received, expected)


@pytest.mark.parametrize(
    "changes", [{"upload": "dense", "error_feedback": True}, {"upload": "topk"}, {"upload": "half"}]
)
def test_nothing_is_left_of_a_dense_upload_or_without_error_feedback(run_config, changes):
    theta = theta_for(site(run_config, 1))
    ask(run_config, 1, theta, **changes)
    ask_globally(run_config, 1, theta_for(site(run_config, 0)), **changes)
    assert [path.name for path in stored(run_config, 1).iterdir()] == ["teacher.pt"]
    if changes["upload"] == "dense":
        assert torch.equal(ask(run_config, 1, theta, **changes)[1], ask(run_config, 1, theta)[1])


@pytest.mark.parametrize("upload", ["topk", "half", "int8", "dense"])
def test_a_diverged_round_is_refused_as_not_finite_and_leaves_the_residual_as_it_was(run_config, upload):
    theta = theta_for(site(run_config, 1))
    feedback = {"upload": upload, "error_feedback": True}
    ask(run_config, 1, theta, upload="topk", error_feedback=True)
    before = (stored(run_config, 1) / "personal-residual.pt").read_bytes()

    def exchange():
        content = request(theta, server_round=2, client_lr=1e30, client_momentum=0.0, **feedback)
        protocol.decode_vectors(trainer(run_config, 1).train(content), {"delta": len(theta)}, upload, 0.3)

    with pytest.raises(ProtocolError) as error:
        exchange()
    assert error.value.reason == "not-finite"
    assert (stored(run_config, 1) / "personal-residual.pt").read_bytes() == before
    assert torch.isfinite(ask(run_config, 1, theta, server_round=3, **feedback)[1]).all()


def test_a_delta_that_half_cannot_send_is_refused_and_leaves_the_residual_as_it_was(run_config):
    theta = theta_for(site(run_config, 1))
    half = {"upload": "half", "error_feedback": True}
    ask(run_config, 1, theta, **half)
    before = (stored(run_config, 1) / "personal-residual.pt").read_bytes()
    with pytest.raises(ProtocolError) as error:
        ask(run_config, 1, theta, batch_size=1000, client_lr=1e8, **half)
    assert error.value.reason == "not-encodable"
    assert (stored(run_config, 1) / "personal-residual.pt").read_bytes() == before


# A server that goes back to a checkpoint


@pytest.mark.parametrize(
    "changes",
    [{}, {"upload": "topk", "error_feedback": True}, {"method": "local"}],
    ids=["statistics", "residual", "local model"],
)
def test_a_server_that_goes_back_gets_the_answers_that_it_got_before(run_config, changes):
    config = run_config | {"models": "resnet10"}
    size = site(config).personal.parameters.size

    def exchange(server_round, checkpoint_round):
        theta = None if "method" in changes else random_theta(size, seed=server_round)
        told_now = {"server_round": server_round, "checkpoint_round": checkpoint_round, "evaluate": True}
        result, delta = ask(config, 0, theta, **told_now, **changes)
        return result, [] if delta is None else delta.tolist()

    first = {server_round: exchange(server_round, told_of) for server_round, told_of in ((1, 0), (2, 1), (3, 1))}
    later = {server_round: exchange(server_round, 3) for server_round in (4, 5)}
    assert first[2] != first[3]
    new_process()
    assert {server_round: exchange(server_round, 3) for server_round in (4, 5)} == later
    assert {server_round: exchange(server_round, 1) for server_round in (2, 3)} == {2: first[2], 3: first[3]}
    assert {server_round: exchange(server_round, 0) for server_round in (1, 2)} == {1: first[1], 2: first[2]}


def test_what_a_client_kept_in_a_round_counts_from_the_next_one(run_config):
    config = run_config | {"models": "resnet10"}
    theta = torch.zeros(site(config).personal.parameters.size)
    untouched = ask_to_evaluate(config, 0, theta)
    ask(config, 0, theta, server_round=4)
    assert ask_to_evaluate(config, 0, theta, server_round=4) == untouched
    assert ask_to_evaluate(config, 0, theta, server_round=5) != untouched


# A run that goes on from another


def test_a_run_goes_on_with_the_statistics_of_the_one_before_until_it_has_its_own(run_config):
    config = run_config | {"models": "resnet10"}
    theta = torch.zeros(site(config).personal.parameters.size)
    ask(config, 0, theta, run_name="before")
    of_before = ask_to_evaluate(config, 0, theta, run_name="before")
    new_process()
    assert ask_to_evaluate(config, 0, theta, run_name="after", previous_run="before") == of_before
    assert ask_to_evaluate(config, 0, theta, run_name="after") != of_before
    assert ask_to_evaluate(config, 2, theta, run_name="after", previous_run="before") == ask_to_evaluate(
        config, 2, theta
    )
    file_of_before = (stored(config, run="before") / "kept.pt").read_bytes()
    _, delta = ask(config, 0, theta, server_round=2, run_name="after", previous_run="before")
    assert (stored(config, run="before") / "kept.pt").read_bytes() == file_of_before
    assert torch.equal(delta, ask(config, 0, theta, server_round=2, run_name="before")[1])
    now = ask_to_evaluate(config, 0, theta, run_name="after")
    assert now != of_before
    assert ask_to_evaluate(config, 0, theta, run_name="after", previous_run="before") == now


def test_a_run_before_that_is_not_there_changes_nothing(run_config):
    theta = theta_for(site(run_config, 1))
    assert torch.equal(ask(run_config, 1, theta, previous_run="never")[1], ask(run_config, 1, theta)[1])


# The end


@pytest.mark.parametrize("architecture", ["lenet", "resnet10"])
def test_the_personal_model_loads_in_plain_pytorch_and_is_as_good_as_reported(run_config, architecture):
    config = run_config | {"models": architecture}
    theta = torch.zeros(site(config).personal.parameters.size)
    for server_round in (1, 2):
        _, delta = ask(config, 1, theta, server_round=server_round)
        theta = theta - delta
    reported = ask_to_finish(config, 1, theta)

    model = build_model(architecture, SHAPE, CLASSES, seed=77)  # another seed: all must come from the file
    model.load_state_dict(torch.load(stored(config, 1) / "personal-model.pt", weights_only=True))
    dataset, parts = divide(load_config(config), NUM_CLIENTS)
    images = (dataset.read_images(parts[1].test).float() / 255 - 0.5) / 0.25
    labels = dataset.labels[parts[1].test]
    with torch.no_grad():
        logits = model.eval()(images)
    assert reported.correct == int((logits.argmax(1) == labels).sum())
    assert reported.total == len(labels)
    assert reported.loss == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-4, abs=1e-5)
    assert torch.equal(ParameterVector(model).read(), site(config, 1).personal.anchor + theta)
    if architecture == "resnet10":
        assert all(torch.equal(tensor, kept(config, 1)[name]) for name, tensor in model.named_buffers())


# Local


def test_a_local_model_goes_on_where_it_was_and_survives_a_restart(run_config):
    run = {"method": "local"}
    fresh = site(run_config)
    loss, trained = trained_by_hand(run_config, 0, fresh.personal.anchor)
    result, delta = ask(run_config, 0, **run)
    assert delta is None
    assert result.train_loss == loss
    new_process()
    ask(run_config, 2, **run)
    assert ask(run_config, 0, server_round=2, **run)[0].train_loss == trained_by_hand(run_config, 0, trained, 2)[0]
    final = ask_to_finish(run_config, 0, **run)
    model = build_model("lenet", SHAPE, CLASSES, seed=1)
    model.load_state_dict(torch.load(stored(run_config) / "personal-model.pt", weights_only=True))
    assert torch.equal(ParameterVector(model).read(), trained_by_hand(run_config, 0, trained, 2)[1])
    assert final == evaluate(model, fresh.test)


def test_fedavg_clients_train_what_came_and_return_the_difference(run_config):
    fresh = site(run_config)
    theta = theta_for(fresh)
    _, delta = ask(run_config, theta=theta, method="fedavg")
    assert torch.equal(delta, ask(run_config, theta=theta)[1])


def test_both_halves_know_the_same_methods():
    from server_app.strategies import STRATEGIES

    assert set(METHODS) == set(STRATEGIES) == set(config_module.METHODS)
