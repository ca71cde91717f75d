"""The tests of deployed weights beside that on the test samples: after one local epoch, and on validation samples."""

from dataclasses import replace

import pytest
import torch
from asking import (
    FINISH,
    GD,
    TEST,
    TRAINING,
    ask,
    ask_globally,
    handled,
    kept,
    random_theta,
    request,
    site,
    stored,
    theta_for,
    told,
    trainer,
)
from flwr.app import ConfigRecord
from fresh_process import new_process
from torch.nn import functional

from client_app.methods.base import ClientMethod, Task
from client_app.privacy import Privacy
from client_app.store import ClientStore
from client_app.trainer import Trainer
from client_app.training import argmax_correct
from common import protocol
from common.evaluation import AFTER_TRAINING, EVALUATIONS, VALIDATION, Evaluation
from common.evaluation import TEST as ON_TEST
from common.seeding import seeded_generator
from common.settings import LocalTraining, Settings

METHODS = ["mh-pfedhn", GD, "fedavg", "local"]
BOTH = (ON_TEST, AFTER_TRAINING)


def all_of(samples):
    return samples.batch(torch.arange(len(samples)))


def counted(model, samples):
    """Correct, total and mean loss, all samples at once."""
    inputs, labels = all_of(samples)
    with torch.no_grad():
        logits = model.eval()(inputs)
    return int((logits.argmax(1) == labels).sum()), len(labels), functional.cross_entropy(logits, labels).item()


def one_epoch_by_hand(model, samples, settings, generator):
    """SGD with momentum, weight decay and a bound on the gradient's norm, over all samples once."""
    inputs, labels = all_of(samples)
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(each) for each in parameters]
    batches = list(torch.randperm(len(labels), generator=generator).split(settings.batch_size))
    assert len(batches) > 1
    assert len(batches[-1]) > 1
    model.train()
    for batch in batches:
        loss = functional.cross_entropy(model(inputs[batch]), labels[batch])
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.cat([each.flatten() for each in gradients]).norm()
        with torch.no_grad():
            for parameter, moving, gradient in zip(parameters, velocity, gradients, strict=True):
                gradient = gradient * min(1.0, settings.client_max_grad_norm / norm)
                moving *= settings.client_momentum
                moving += gradient + settings.client_weight_decay * parameter
                parameter -= settings.client_lr * moving


def assert_counts(evaluation, expected):
    correct, total, loss = expected
    assert (evaluation.correct, evaluation.total) == (correct, total)
    assert evaluation.loss == pytest.approx(loss, rel=1e-4, abs=1e-5)


def own_trainer(config, tmp_path, client=0, **changes):
    """The trainer of a simulated client whose site differs in this."""
    own = replace(site(config, client), **changes)
    return Trainer(lambda seed: own, lambda run_name: tmp_path / "clients" / run_name)


def evaluations_of(trainer, theta=None, **changes):
    return protocol.decode_result(handled(trainer, request(theta, **(TEST | changes)))).evaluations


# After one local epoch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["lenet", "resnet10"])
@pytest.mark.parametrize("method", METHODS)
def test_after_training_is_what_one_epoch_by_hand_makes_of_the_deployed_weights(run_config, method, architecture):
    config = run_config | {"models": architecture}
    theta = None if method == "local" else theta_for(site(config, 1))
    ask(config, 1, theta, method=method, local_epochs=2)  # so that something is kept
    second = {"method": method, "server_round": 2, "local_epochs": 2}
    if method == GD:  # there is a teacher, from which the epoch does not learn
        teacher = theta_for(site(config, 1), seed=7)
        ask_globally(config, 1, teacher, **second, global_model=architecture)
        second |= {"teacher_round": 2, "global_model": architecture}
    result, _ = ask(config, 1, theta, **second, tests=BOTH)

    fresh = site(config, 1)
    if method == "local":
        # What was kept in round 1; round 2 has kept its own since.
        path = stored(config, 1) / "model.000001.pt"
        fresh.personal.model.load_state_dict(torch.load(path, weights_only=True)["state"])
    else:
        statistics = stored(config, 1) / "kept.000001.pt"
        assert statistics.exists() == (architecture == "resnet10")
        if statistics.exists():
            state = torch.load(statistics, weights_only=True)["state"]
            fresh.personal.model.load_state_dict(state, strict=False)
        fresh.personal.parameters.write(fresh.personal.anchor + theta)
    assert_counts(result.evaluations[ON_TEST], counted(fresh.personal.model, fresh.test))
    generator = seeded_generator(0, "1/2/after-training")
    one_epoch_by_hand(fresh.personal.model, fresh.train, TRAINING, generator)
    assert_counts(result.evaluations[AFTER_TRAINING], counted(fresh.personal.model, fresh.test))
    assert result.evaluations[AFTER_TRAINING].loss != result.evaluations[ON_TEST].loss


def what_lies_in(folder):
    """The tensors of each file, and the text of the others."""
    return {
        path.name: torch.load(path, weights_only=True) if path.suffix == ".pt" else path.read_text()
        for path in folder.iterdir()
    }


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, each in one.items():
            assert_same(each, other[name])
    else:
        assert one == other


@pytest.mark.parametrize(
    "changes",
    [*({"method": method} for method in METHODS), {"method": "mh-pfedhn", "upload": "topk", "error_feedback": True}],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_a_test_after_training_changes_no_bit_of_the_training_and_nothing_that_is_kept(run_config, changes):
    config = run_config | {"models": "resnet10"}
    size = site(config).num_params
    is_gd, is_local = changes["method"] == GD, changes["method"] == "local"

    def played(tests):
        """What three rounds and the end brought, and left at the client."""
        new_process()
        there = config | {"results-dir": f"{config['results-dir']}-{len(tests)}"}
        more, brought = dict(changes) | ({"global_model": "resnet10"} if is_gd else {}), {}
        for server_round in (1, 2, 3):
            theta = random_theta(size, seed=server_round)
            if is_gd:
                ask_globally(there, 0, theta, **more, server_round=server_round)
                more["teacher_round"] = server_round
            sent = None if is_local else theta
            result, delta = ask(there, 0, sent, **more, server_round=server_round, tests=tests)
            assert result.evaluations.keys() == set(tests)
            brought[server_round] = {"loss": result.train_loss, "test": result.evaluations[ON_TEST], "delta": delta}
        handled(trainer(there), request(sent, **(more | FINISH | {"tests": tests})))
        return brought | {"files": what_lies_in(stored(there))}

    with_it, without = played(BOTH), played((ON_TEST,))
    assert "personal-model.pt" in with_it["files"]
    assert_same(with_it, without)


def test_the_model_that_is_handed_over_is_the_one_that_was_deployed(run_config):
    config = run_config | {"models": "resnet10"}
    theta = theta_for(site(config))
    ask(config, 0, theta)
    own = trainer(config)
    evaluations_of(own, theta, **(FINISH | {"tests": BOTH}))
    fresh = site(config)
    fresh.personal.load(theta, True, kept(config))
    expected = fresh.personal.model.state_dict()
    exported = torch.load(stored(config) / "personal-model.pt", weights_only=True)
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())
    # And it is in the model again.
    there = own._site_of(0).personal.model.state_dict()
    assert all(torch.equal(there[name], tensor) for name, tensor in expected.items())


def test_a_site_that_noises_what_it_sends_does_not_answer_it_and_answers_the_others(run_config, tmp_path):
    theta = theta_for(site(run_config))
    privacy = Privacy(clipping_norm=1.0, noise_multiplier=0.7, is_secret=False)
    held_back = site(run_config, 2).test
    private = own_trainer(run_config, tmp_path, privacy=privacy, validation=held_back)
    assert evaluations_of(private, theta, tests=EVALUATIONS).keys() == {ON_TEST, VALIDATION}
    assert not (tmp_path / "clients").exists()  # a test costs nothing
    plain = own_trainer(run_config, tmp_path, validation=held_back)
    assert evaluations_of(plain, theta, tests=EVALUATIONS).keys() == set(EVALUATIONS)


def raising_at_nan(outputs, targets):
    if not torch.isfinite(outputs).all():
        raise ValueError("not a number of correct answers")
    return argmax_correct(outputs, targets)


@pytest.mark.parametrize(
    ("client_lr", "correct"), [(1e30, argmax_correct), (1e30, raising_at_nan), (1e4, argmax_correct)]
)
def test_an_epoch_that_diverges_has_no_result_or_one_that_can_be_sent(run_config, tmp_path, correct, client_lr):
    theta = theta_for(site(run_config))
    diverging = {"client_lr": client_lr, "client_momentum": 0.0, "tests": BOTH}
    own = own_trainer(run_config, tmp_path, correct=correct)
    found = evaluations_of(own, theta, **diverging)
    assert found[ON_TEST] == evaluations_of(trainer(run_config), theta)[ON_TEST]
    assert AFTER_TRAINING not in found or abs(found[AFTER_TRAINING].loss) <= 1e12
    if client_lr == 1e30:
        assert AFTER_TRAINING not in found
    # The weights are those that were deployed again.
    fresh = site(run_config)
    assert torch.equal(own._site_of(0).personal.parameters.read(), fresh.personal.anchor + theta)


def test_what_fails_in_a_sound_epoch_is_told_and_not_passed_over(run_config, tmp_path):
    calls = []

    def fails_the_second_time(outputs, targets):
        calls.append(len(targets))
        if len(calls) > 1:
            raise ValueError("the second test")
        return argmax_correct(outputs, targets)

    own = own_trainer(run_config, tmp_path, correct=fails_the_second_time)
    with pytest.raises(ValueError, match="the second test"):
        evaluations_of(own, theta_for(site(run_config)), tests=BOTH)


class WithoutTraining(ClientMethod):
    """A method that does not train as others do, so it has no settings for that."""

    Settings = Settings

    def load(self, task):
        task.site.personal.load_all({})


def test_a_method_without_settings_of_local_training_makes_the_epoch_with_their_defaults(run_config, tmp_path):
    own = site(run_config)
    instructions = told(client_key=own.key)
    task = Task(own, ClientStore(lambda run_name: tmp_path / run_name, instructions), instructions, {})
    defaults = LocalTraining()
    method = WithoutTraining(Settings())
    method.load(task)
    method.fine_tune(task)
    trained = own.personal.parameters.read()
    fresh = site(run_config)
    inputs, labels = all_of(fresh.train)
    assert len(labels) <= defaults.batch_size  # one step
    loss = functional.cross_entropy(fresh.personal.model(inputs), labels)
    gradients = torch.autograd.grad(loss, list(fresh.personal.model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(fresh.personal.model.parameters(), gradients, strict=True):
            parameter -= defaults.client_lr * (gradient + defaults.client_weight_decay * parameter)
    torch.testing.assert_close(trained, fresh.personal.parameters.read(), rtol=1e-4, atol=1e-6)
    assert (trained - fresh.personal.anchor).abs().max() > 1e-4


# On validation samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{"exchange": "personal"}, TEST, FINISH], ids=["to train", "to test", "at the end"])
def test_weights_are_tested_as_deployed_on_the_validation_samples_too(run_config, tmp_path, kind):
    theta, held_back = theta_for(site(run_config)), site(run_config, 2).train
    own = own_trainer(run_config, tmp_path, validation=held_back)
    found = evaluations_of(own, theta, **(kind | {"tests": (ON_TEST, VALIDATION)}))
    fresh = site(run_config)
    fresh.personal.parameters.write(fresh.personal.anchor + theta)
    assert_counts(found[ON_TEST], counted(fresh.personal.model, fresh.test))
    assert_counts(found[VALIDATION], counted(fresh.personal.model, held_back))
    assert found[VALIDATION].total != found[ON_TEST].total


def test_a_client_that_holds_nothing_back_leaves_that_test_out(run_config, tmp_path):
    own = own_trainer(run_config, tmp_path, validation=None)
    found = evaluations_of(own, theta_for(site(run_config)), tests=(ON_TEST, VALIDATION))
    assert found.keys() == {ON_TEST}


def test_nothing_beside_what_is_asked_for_is_tested(run_config, tmp_path):
    own = own_trainer(run_config, tmp_path, validation=site(run_config, 2).train)
    theta = theta_for(site(run_config))
    for asked in ((ON_TEST,), (VALIDATION,), (AFTER_TRAINING,), ()):
        assert evaluations_of(own, theta, tests=asked).keys() == set(asked)


class Counting(WithoutTraining):
    """Decides in a way of its own."""

    def test(self, task):
        return Evaluation(1, len(task.site.test), float(len(task.site.train)))


def test_a_method_that_tests_in_its_own_way_does_so_in_all_tests(run_config, tmp_path, monkeypatch):
    monkeypatch.setattr("client_app.trainer.find_client", lambda name: Counting)
    held_back = site(run_config, 2).train
    own = own_trainer(run_config, tmp_path, validation=held_back)
    content = request(None, method="local", **(TEST | {"tests": EVALUATIONS}))
    content["settings"] = ConfigRecord()
    found = protocol.decode_result(handled(own, content)).evaluations
    fresh = site(run_config)
    counts = {ON_TEST: len(fresh.test), VALIDATION: len(held_back), AFTER_TRAINING: len(fresh.test)}
    assert found == {name: Evaluation(1, total, float(len(fresh.train))) for name, total in counts.items()}
