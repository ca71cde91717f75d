"""A site that an operator brings: what its file may say, how every mistake is told, and how it trains."""

import random
import uuid

import numpy as np
import own_method
import pytest
import torch
import yaml
from asking import FINISH, GD, answered, greeting, handled, opened, registered
from example_site import nets
from example_site.messages import request
from site_files import GLOBAL, TABLE, TEXT, VISION, load, mistake_of, named, write
from torch import nn
from torch.nn import functional

from client_app.resident.serving import trainer_of
from client_app.samples import DatasetSamples, TensorSamples
from client_app.site import GeneratedModel
from client_app.site.private import load_site
from client_app.training import epochs, evaluate, forward, sgd, train
from common import protocol
from common.errors import ProtocolError, UserError
from common.models import build_model
from common.params import ParameterVector
from common.settings import LocalTraining

SETTINGS = LocalTraining(client_lr=0.05, client_weight_decay=0.0)  # as in `request`


def ask(site, **changes):
    """A personal round: result and delta."""
    content = request(site, **changes)
    return opened(content, handled(trainer_of(site), content), site.personal.parameters.size)


def trained(model, samples, generator, local_epochs=2, loss=None):
    """Train by hand; the mean loss."""
    batches = epochs(len(samples), 8, local_epochs, generator)
    criterion = loss or functional.cross_entropy
    return train(
        model,
        samples,
        batches,
        sgd(model.parameters(), SETTINGS),
        generator,
        50.0,
        lambda outputs, targets, indices: criterion(outputs, targets),
    )


# Mistakes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keep-locale": []}, ["there is no key 'keep-locale'", "did you mean 'keep-local'"]),
        ({"model": None}, ["model is missing", "hospital.nets:build"]),
        ({"data": None}, ["data is missing", "hospital.data:load"]),
        ({"state-dir": None}, ["state-dir is missing", "/var/lib/site"]),
        ({"state-dir": 7}, ["state-dir is 7, but must be the path of a folder"]),
        ({"model": "example_site.nets:vision"}, ["model is 'example_site.nets:vision', but must be a mapping"]),
        ({"model": {"factory": "example_site.nets"}}, ["model is", "module:name"]),
        ({"model": {"factory": "example_site.nets:Table", "arg": {}}}, ["no key 'arg'", "did you mean 'args'"]),
        ({"model": {"factory": "example_site.nets:Table", "args": [1]}}, ["its args are a mapping"]),
        ({"keep-local": "head.*"}, ["keep-local is 'head.*', but must be a list"]),
        ({"group": "a b"}, ["group is 'a b', but must be text of 1 to 64 letters"]),
        ({"group": 7}, ["group is 7, but must be text", "in quotes"]),
        ({"client-key": "x" * 65}, ["client-key is", "64 letters"]),
        ({"deploy-global": "yes please"}, ["deploy-global is 'yes please', but must be true or false"]),
        ({"deploy-global": True}, ["input-shape is missing", "num-classes is missing", "[3, 32, 32]"]),
        ({"input-shape": [32, 32]}, ["input-shape is [32, 32], but must be a list of channels, height and width"]),
        ({"num-classes": 1}, ["num-classes is 1, but must be a whole number of at least 2"]),
        ({"seed": -1}, ["seed is -1, but must be a whole number from 0"]),
        ({"seed": True}, ["seed is True"]),
        ({"device": "gpu"}, ["device is 'gpu', but must be auto, cpu or cuda"]),
        ({"methods": "lab.fed:Method"}, ["methods is 'lab.fed:Method', but must be a list", "package.module:Class"]),
        ({"methods": ["mh-pfedhn"]}, ["methods is ['mh-pfedhn'], but must be a list"]),
        ({"methods": [7]}, ["methods is [7], but must be a list"]),
    ],
)
def test_a_wrong_key_or_value_is_told_with_file_and_remedy(tmp_path, changes, words):
    content = {key: value for key, value in (TABLE | changes).items() if value is not None}
    mistake = mistake_of(tmp_path, content)
    assert all(line.startswith(f"{tmp_path}/site.yaml: ") for line in mistake.splitlines())
    for each in words:
        assert each in mistake
    expected = sum("is missing" in each for each in words) or 1
    assert len(mistake.splitlines()) == expected


@pytest.mark.parametrize(("text", "words"), [("model: [", "not readable as YAML"), ("- 1", "key: value"), ("", "key:")])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, words):
    assert words in mistake_of(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.yaml cannot be read: No such file"):
        load_site(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("no_such_module:build", ["module 'no_such_module' cannot be imported", "ModuleNotFoundError", "beside this"]),
        ("example_site.nets:visoin", ["there is no 'visoin' in module 'example_site.nets' (", "did you mean 'vision'"]),
        ("example_site.nets:NOT_CALLABLE", ["is of type int, but must be a function or a class"]),
        ("example_site.nets:raises", ["raised ZeroDivisionError: no layers, nets.py line "]),
        ("example_site.nets:leaves", ["raised SystemExit: 3"]),
        ("example_site.nets:no_parameters", ["has no parameters"]),
        ("example_site.nets:not_a_model", ["of type dict, but must return a torch.nn.Module"]),
        ("example_site.nets:lazy", ["'0.weight' has no size yet", "lazy"]),
        ("example_site.nets:partly_frozen", ["'body.0.weight' has requires_grad False: list it under freeze"]),
        ("example_site.nets:Pair", ["of type tuple (Tensor, Tensor), but must return a tensor", "[8, 5] float32"]),
        ("example_site.nets:detached", ["a training step on the first 8 training samples fails: RuntimeError"]),
    ],
)
def test_a_model_that_cannot_be_used_is_told_in_one_sentence(tmp_path, model, words):
    mistake = mistake_of(tmp_path, TABLE | {"model": {"factory": model}})
    assert mistake.startswith(f"{tmp_path}/site.yaml: model")
    assert len(mistake.splitlines()) == 1
    for each in words:
        assert each in mistake


@pytest.mark.parametrize("dtype", ["int64", "complex64"])
def test_parameters_that_are_not_real_numbers_are_refused(tmp_path, dtype):
    content = TABLE | {"model": named("nets:of_type", dtype=dtype)}
    assert f"parameter 'extra' is {dtype}, but must be floating point" in mistake_of(tmp_path, content)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"widht": 3}, "args (widht) do not fit example_site.nets:Table(width=8, outputs=3, dropout=0.0)"),
        ({"width": "wide"}, "raised TypeError"),
    ],
)
def test_args_that_do_not_fit_are_told_with_the_signature(tmp_path, args, words):
    assert f"model: {'its ' if 'do not' in words else ''}" in mistake_of(
        tmp_path, TABLE | {"model": named("nets:Table", **args)}
    )
    assert words in mistake_of(tmp_path, TABLE | {"model": named("nets:Table", **args)})


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("one split", ["must return (train, test)"]),
        ("three splits", ["of type tuple (tuple, tuple, tuple), but must return (train, test)"]),
        ("arrays", ["the train split", "(ndarray, ndarray), but must be a pair of tensors", "torch.from_numpy"]),
        ("lengths", ["the test split", "different lengths: inputs [9, 5] float32, targets [8] int64"]),
        ("empty", ["the train split", "empty, but must hold at least one sample"]),
        ("empty dataset", ["the train split", "empty, but must hold"]),
        ("loader", ["the train split", "of type DataLoader, but must be"]),
        ("no pairs", ["a Dataset whose first item is of type tuple (Tensor), but must be (input, target)"]),
        ("narrow", ["model: it fails on the first 8 training samples (inputs [8, 4] float32): RuntimeError"]),
        ("missing values", ["loss: for the first 8 training samples it is nan"]),
        ("test too wide", ["model: it fails on the first 8 test samples (inputs [8, 6] float32)"]),
    ],
)
def test_data_of_a_wrong_structure_are_told_with_what_they_are(tmp_path, what, words):
    mistake = mistake_of(tmp_path, TABLE | {"data": named("data:as_given", what=what)})
    assert len(mistake.splitlines()) == 1
    for each in words:
        assert each in mistake


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keep-local": ["heda.*"]}, "keep-local: pattern 'heda.*' matches no parameter"),
        ({"freeze": ["body"]}, "freeze: pattern 'body' matches no parameter"),
        ({"keep-local": ["head.*"], "freeze": ["body.*"]}, "match every parameter"),
        ({"loss": named("nets:closure")}, "loss: example_site.nets:closure() cannot be called with (outputs, targets)"),
        (
            {"loss": named("nets:smoothed", smoothing=[])},
            "loss: it fails on the first 8 training samples (outputs [8, 3]",
        ),
        ({"loss": named("nets:mean_of_each")}, "of type Tensor, [8] float32, but must return their mean loss"),
        ({"correct": named("nets:share")}, "but must return how many answers are correct, a whole number from 0 to 8"),
        ({"data": named("data:table", kind="too many classes")}, "loss: the default is for outputs [n, classes]"),
        ({"data": named("data:table", kind="real")}, "targets [20] float32"),
        ({"model": named("nets:Table", outputs=1)}, "the default is for"),
        (
            {
                "model": named("nets:Table", outputs=1),
                "data": named("data:table", kind="real"),
                "loss": named("nets:squared"),
            },
            "correct: the default is for",
        ),
    ],
)
def test_patterns_and_functions_that_do_not_fit_are_told_by_key(tmp_path, changes, words):
    mistake = mistake_of(tmp_path, TABLE | changes)
    assert words in mistake
    assert len(mistake.splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input-shape": [3, 9, 8]}, "input-shape: with deploy-global, inputs must be float32 of shape [8, 3, 9, 8]"),
        ({"num-classes": 2}, "num-classes is 2, but the targets are [20] int64, up to 2"),
    ],
)
def test_data_that_the_global_model_cannot_take_are_refused(tmp_path, changes, words):
    assert words in mistake_of(tmp_path, GLOBAL | changes)


def test_independent_mistakes_are_all_told(tmp_path):
    (tmp_path / "state").write_text("a file")
    content = TABLE | {
        "sed": 1,
        "model": {"factory": "example_site.nets:raises"},
        "data": named("data:as_given", what="empty"),
        "loss": {"factory": "example_site.nets:no_such"},
        "correct": {"factory": "example_site.nets:NOT_CALLABLE"},
    }
    lines = mistake_of(tmp_path, content).splitlines()
    keys = [line.removeprefix(f"{tmp_path}/site.yaml: ").partition(" ")[0].rstrip(":") for line in lines]
    assert sorted(keys) == ["correct", "data", "loss", "model", "state-dir", "there"]


def test_a_damaged_client_key_is_told(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state/client-key").write_text("\n")
    with pytest.raises(UserError, match="state/client-key holds '', but must hold text"):
        load(tmp_path, **{"client-key": None})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_told(tmp_path):
    assert "device is 'cuda', but must be auto or cpu" in mistake_of(tmp_path, TABLE | {"device": "cuda"})


# What is right


def test_modules_beside_the_file_come_first(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/private_module.py").write_text("build = None\n")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    (tmp_path / "private_module.py").write_text("from example_site.nets import Table as build\n")
    assert isinstance(load(tmp_path, model={"factory": "private_module:build"}).personal.model, nets.Table)


def test_numbers_like_1e_3_reach_the_factory_as_numbers(tmp_path):
    text = yaml.safe_dump({**TABLE}) + "loss: {factory: 'example_site.nets:smoothed', args: {smoothing: 1e-3}}\n"
    assert load_site(write(tmp_path, text)).first_loss > 0


def test_a_relative_state_dir_starts_at_the_files_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    site = load_site(write(tmp_path / "site", TABLE).relative_to(tmp_path))
    assert site.file.run_folder("r") == tmp_path / "site/state/runs/r"
    assert load(tmp_path / "site", **{"state-dir": str(tmp_path / "there")}).file.state_dir == tmp_path / "there"


@pytest.mark.parametrize("state_dir", ["/proc/x", "/proc/x/y", "site.yaml", "site.yaml/x", "x" * 300])
def test_a_state_dir_in_which_nothing_can_be_written_is_refused(tmp_path, state_dir):
    message = mistake_of(tmp_path, TABLE | {"state-dir": state_dir})
    assert f"state-dir is {tmp_path / state_dir}, but " in message
    assert "could not be written: " in message
    assert [path.name for path in tmp_path.iterdir()] == ["site.yaml"]


def test_trying_the_state_dir_leaves_what_is_there_and_makes_nothing(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state/kept").write_text("")
    load(tmp_path)
    load(tmp_path, **{"state-dir": "state/deep/er"})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "site.yaml", "state"]


def test_a_random_client_key_is_made_at_the_first_start_and_kept(tmp_path):
    site = load(tmp_path, **{"client-key": None})
    assert not (tmp_path / "state").exists()  # loading alone, as a check does it, leaves no trace
    key = site.for_seed().key
    assert str(uuid.UUID(key)) == key
    assert (tmp_path / "state/client-key").stat().st_mode & 0o777 == 0o600  # who reads it can pass for this site
    assert load(tmp_path, **{"client-key": None}).for_seed(3).key == key
    (tmp_path / "other").mkdir()
    assert load(tmp_path / "other", **{"client-key": None}).for_seed().key != key
    assert load(tmp_path).for_seed().key == "site-1"


def draws():
    return float(torch.rand(1)), random.random(), float(np.random.rand())  # noqa: NPY002


def test_the_runs_seed_decides_the_initialisation_and_global_generators_stay_as_they_were(tmp_path):
    site = load(tmp_path, model=named("nets:ThreeSources"))
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
    undisturbed = [draws(), draws()]
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
    first = draws()
    initial = {seed: site.for_seed(seed).personal.anchor.clone() for seed in (1, 2)}
    again = load(tmp_path, model=named("nets:ThreeSources")).for_seed(1).personal.anchor
    assert [first, draws()] == undisturbed
    assert torch.equal(initial[1], again)
    assert (initial[1] != initial[2]).all()
    assert torch.equal(site.for_seed(1).personal.anchor, again)


def test_an_architecture_of_the_projects_starts_as_in_a_simulation(tmp_path):
    model = {"factory": "common.models:lenet", "args": {"shape": [3, 8, 8], "num_classes": 3}}
    site = load(tmp_path, VISION, model=model)
    expected = ParameterVector(build_model("lenet", (3, 8, 8), 3, seed=4)).read()
    assert torch.equal(site.for_seed(4).personal.anchor, expected)


def test_a_seed_in_the_file_wins_for_the_private_model_but_not_for_the_global_one(tmp_path):
    site = load(tmp_path, GLOBAL, seed=3)
    private = {seed: site.for_seed(seed).personal.anchor for seed in (1, 2)}
    public = {seed: site.for_seed(seed).global_model("lenet").anchor for seed in (1, 2)}
    assert torch.equal(private[1], private[2])
    assert torch.equal(private[1], load(tmp_path, VISION).for_seed(3).personal.anchor)
    assert torch.equal(public[2], ParameterVector(build_model("lenet", (3, 8, 8), 3, seed=2)).read())
    assert not torch.equal(public[1], public[2])


def test_data_do_not_depend_on_the_runs_seed(tmp_path):
    site = load(tmp_path)
    inputs = site.train.inputs.clone()
    assert torch.equal(site.for_seed(9).train.inputs, inputs)
    assert torch.equal(load(tmp_path).for_seed(2).train.inputs, inputs)
    assert not torch.equal(load(tmp_path, seed=1).train.inputs, inputs)


def test_the_trial_on_a_first_batch_leaves_the_model_as_it_was(tmp_path):
    site = load(tmp_path, VISION)
    state = site.personal.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in site.personal.initial_state.items())
    assert int(state["1.num_batches_tracked"]) == 0
    assert torch.equal(site.personal.anchor, load(tmp_path, VISION).for_seed(0).personal.anchor)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nets.vision()
    inputs, targets = site.train.batch(torch.arange(8))
    assert site.first_loss == pytest.approx(functional.cross_entropy(model(inputs), targets).item())


@pytest.mark.parametrize(
    ("content", "dataset"),
    [
        (VISION, False),
        (TABLE, False),
        (TABLE | {"data": named("data:table_dataset")}, True),
        (TEXT, True),
        (TEXT | {"data": named("data:text", by_name=False)}, True),
        (TEXT | {"data": named("data:text_tensors")}, False),
    ],
    ids=["images", "table", "table as dataset", "text by name", "text by position", "text as tensors"],
)
def test_images_tables_and_text_are_trained_and_tested(tmp_path, content, dataset):
    site = load(tmp_path, content)
    assert isinstance(site.train, DatasetSamples if dataset else TensorSamples)
    fresh = site.for_seed(0)
    before = evaluate(fresh.personal.model, fresh.test)
    result, delta = ask(site, local_epochs=15)
    assert result.evaluations["test"] == before
    assert result.num_examples == len(site.train)
    assert delta.norm() > 0.1
    after = evaluate(site.for_seed(0).personal.model, site.train)
    assert after.loss < result.train_loss  # it learnt something: the mean over epochs is above the end
    assert after.total == len(site.train)


def test_a_dataset_trains_as_its_tensors_do(tmp_path):
    as_tensors = ask(load(tmp_path))
    (tmp_path / "other").mkdir()
    as_dataset = ask(load(tmp_path / "other", data=named("data:table_dataset")))
    assert torch.equal(as_tensors[1], as_dataset[1])
    assert as_tensors[0] == as_dataset[0]


def test_training_uses_the_sites_loss_and_testing_its_loss_and_count(tmp_path):
    content = TABLE | {
        "model": named("nets:Table", outputs=1),
        "data": named("data:table", kind="real"),
        "loss": named("nets:squared"),
        "correct": named("nets:near"),
    }
    site = load(tmp_path, content)
    fresh = site.for_seed(0)
    fresh.personal.model.eval()
    inputs, targets = fresh.test.inputs, fresh.test.targets
    outputs = fresh.personal.model(inputs).flatten()
    result, delta = ask(site, local_epochs=1)
    assert result.evaluations["test"].loss == pytest.approx((outputs - targets).square().mean().item())
    assert result.evaluations["test"].correct == int(((outputs - targets).abs() < 0.5).sum())
    assert 0 < result.evaluations["test"].correct < 9
    with torch.random.fork_rng():
        torch.manual_seed(0)
        by_hand = nets.Table(outputs=1)
    start = ParameterVector(by_hand).read()
    loss = trained(by_hand, site.train, fresh.generator(0, 1), local_epochs=1, loss=nets.squared)
    assert torch.equal(delta, start - ParameterVector(by_hand).read())
    assert result.train_loss == loss


@pytest.mark.parametrize("loss", ["torch.nn:CrossEntropyLoss", "torch.nn.functional:cross_entropy"])
def test_a_loss_may_be_a_function_or_a_class_with_args(tmp_path, loss):
    site = load(tmp_path, loss={"factory": loss, "args": {"label_smoothing": 0.3}})
    plain = load(tmp_path)
    inputs, targets = plain.train.batch(torch.arange(8))
    outputs = plain.personal.model.eval()(inputs)
    assert site.first_loss == pytest.approx(functional.cross_entropy(outputs, targets, label_smoothing=0.3).item())
    assert site.first_loss != pytest.approx(plain.first_loss)


def test_one_logit_is_tested_by_its_sign_and_trained_by_binary_cross_entropy(tmp_path):
    site = load(tmp_path, model=named("nets:Table", outputs=1), data=named("data:table", kind="binary"))
    result, _ = ask(site)
    fresh = load(tmp_path, model=named("nets:Table", outputs=1), data=named("data:table", kind="binary"))
    logits, targets = fresh.personal.model.eval()(fresh.test.inputs), fresh.test.targets
    assert result.evaluations["test"].correct == int(((logits > 0) == (targets == 1)).sum())
    assert 0 < result.evaluations["test"].correct < 9
    expected = functional.binary_cross_entropy(logits.sigmoid(), targets).item()
    assert result.evaluations["test"].loss == pytest.approx(expected, rel=1e-5)


def test_layers_kept_local_stay_and_frozen_ones_do_not_move(tmp_path):
    site = load(tmp_path, **{"keep-local": ["head.*"], "freeze": ["body.0.bias"]})
    assert site.personal.parameters.names == ("body.0.weight", "body.1.weight", "body.1.bias")
    _, delta = ask(site)
    assert len(delta) == 8 * 5 + 8 + 8
    kept = torch.load(tmp_path / "state/runs/run/kept.000001.pt", weights_only=True)["state"]
    assert set(kept) == {"head.weight", "head.bias"}
    assert not torch.equal(kept["head.weight"], site.personal.initial_state["head.weight"])
    assert torch.equal(site.personal.model.body[0].bias.detach(), site.personal.initial_state["body.0.bias"])


def test_a_parameter_with_two_names_is_not_kept_under_the_second(tmp_path):
    site = load(tmp_path, model=named("nets:Tied"))
    ask(site)
    assert not list((tmp_path / "state").rglob("*.pt"))
    assert GeneratedModel(nets.Tied(), keep_local=("first.weight",)).kept().keys() == {"first.weight", "second.weight"}


def test_dropout_follows_from_the_runs_seed_and_the_round_alone(tmp_path):
    def delta(**changes):
        return ask(load(tmp_path, model=named("nets:Table", dropout=0.5)), **changes)[1]

    torch.manual_seed(1)
    first = delta()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(delta(), first)
    assert torch.equal(torch.get_rng_state(), state)
    by_hand = load(tmp_path, model=named("nets:Table", dropout=0.5)).for_seed(0)

    def delta_by_hand(seed, dropout=0.5):
        by_hand.personal.load(torch.zeros(len(first)), True, {})
        by_hand.personal.model.body[3].p = dropout
        trained(by_hand.personal.model, by_hand.train, by_hand.generator(*seed))
        return by_hand.personal.anchor - by_hand.personal.parameters.read()

    assert torch.equal(delta_by_hand((0, 1)), first)
    for other in (delta_by_hand((0, 2)), delta_by_hand((7, 1)), delta_by_hand((0, 1), dropout=0.0)):
        assert not torch.equal(other, first)


def test_a_request_of_another_seed_starts_at_that_seeds_initialisation(tmp_path):
    site = load(tmp_path)
    trainer = trainer_of(site)
    for seed in (1, 2, 1):
        handled(trainer, request(site, seed=seed, **FINISH))  # theta is zero: what is kept is theta_0
        finished = torch.load(tmp_path / "state/runs/run/personal-model.pt", weights_only=True)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            expected = nets.Table().state_dict()
        assert all(torch.equal(finished[name], tensor) for name, tensor in expected.items())
        ask(site, seed=seed, run_name=f"run-{seed}")  # what training leaves in the model must not matter


def test_registration_tells_what_the_file_says_and_the_server_asks_for_and_nothing_else(tmp_path):
    facts = ("global-num-params", "group")
    size = sum(parameter.numel() for parameter in nets.vision().parameters())
    plain = load(tmp_path, VISION)
    samples = {"train-samples": len(plain.train), "test-samples": len(plain.test)}
    nothing_more = {"client-key": "site-1", "num-params": size} | samples
    assert registered(trainer_of(plain), *facts, method=GD) == nothing_more
    global_size = ParameterVector(build_model("lenet", (3, 8, 8), 3, seed=0)).size
    told = trainer_of(load(tmp_path, GLOBAL, group="a1"))
    everything = nothing_more | {"global-num-params": global_size, "group": "a1"}
    assert registered(told, *facts, method=GD) == everything
    assert registered(told, *facts, method=GD, gd_fraction=0.0) == everything  # that is of simulated clients
    assert registered(told, *facts) == nothing_more | {"group": "a1"}  # MH-pFedHN has no global model
    assert registered(told, method=GD) == nothing_more
    assert registered(told, *facts, method="fedavg") == nothing_more


def test_a_site_registers_with_the_model_that_it_has_in_a_run_of_the_servers_seed(tmp_path):
    site = load(tmp_path, TABLE)
    trainer_of(site).answer(protocol.REGISTER, greeting(seed=7))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        expected = ParameterVector(nets.Table()).read()
    assert torch.equal(site.personal.anchor, expected)


def test_a_real_site_takes_part_in_what_its_file_says(tmp_path):
    site = load(tmp_path).for_seed()
    assert (site.foreign_methods, site.deploys_global) == (frozenset(), False)
    assert site.num_params == sum(parameter.numel() for parameter in nets.Table().parameters())
    assert site.is_among(0.0, "gd-fraction")  # no draw decides for it
    assert load(tmp_path, GLOBAL).for_seed().deploys_global
    names = ["lab.fed:Method", "other:Outer.Inner"]
    assert load(tmp_path, methods=names).for_seed().foreign_methods == set(names)
    assert load(tmp_path, methods=[]).file.methods == ()


def test_a_site_takes_part_in_a_method_from_outside_that_its_file_lists_and_in_no_other(tmp_path):
    listed, other = load(tmp_path, methods=[own_method.NAME]), load(tmp_path)
    samples = {"train-samples": len(listed.train), "test-samples": len(listed.test)}
    told = {"client-key": "site-1", "num-params": listed.personal.parameters.size, "colour": "red"} | samples
    assert registered(trainer_of(listed), "colour", method=own_method.NAME) == told
    content = request(listed, **({"method": own_method.NAME} | FINISH))
    assert handled(trainer_of(listed), content)["metrics"]["test-total"] == 9
    for question in (greeting(method=own_method.NAME), content):
        message_type = protocol.DEPLOY if question is content else protocol.REGISTER
        with pytest.raises(ProtocolError, match="this site does not list it under methods") as error:
            answered(trainer_of(other), message_type, question)
        assert error.value.reason == "unknown-method"


def global_round(site, **changes):
    size = site.for_seed(0).global_model("lenet").parameters.size
    content = request(site, torch.zeros(size), method=GD, exchange="global_step", **changes)
    return handled(trainer_of(site), content)


def test_distillation_weighs_the_sites_own_loss(tmp_path):
    site = load(tmp_path, GLOBAL, loss=named("nets:smoothed", smoothing=0.4))
    global_round(site)
    gd = {"method": GD, "teacher_round": 1, "local_epochs": 1, "batch_size": 64}
    fresh = load(tmp_path, VISION).for_seed(0)
    inputs, targets = fresh.train.batch(torch.randperm(20, generator=fresh.generator(0, 1)))
    own = nets.smoothed(fresh.personal.model.train()(inputs), targets, 0.4).item()
    without = ask(site, **gd, distillation_coefficient=0.0)[0].train_loss
    assert without == pytest.approx(own, rel=1e-5)
    assert ask(site, **gd, distillation_coefficient=0.5)[0].train_loss != pytest.approx(own, rel=1e-3)


def test_distillation_is_refused_for_outputs_that_are_not_one_a_class(tmp_path):
    site = load(tmp_path, GLOBAL, model=named("nets:vision", classes=5))
    global_round(site)
    with pytest.raises(ProtocolError, match="needs 3 outputs a sample, one a class") as error:
        ask(site, method=GD, teacher_round=1)
    assert error.value.reason == "not-distillable"
    assert "5" not in str(error.value)  # the private model's shape
    assert ask(site, method=GD)[1].norm() > 0  # without a teacher it can take part


def test_the_models_arguments_are_the_batch_by_position_or_by_name():
    class Arguments(nn.Module):
        def forward(self, first, second=2.0):
            return first - second

    one, two = torch.ones(1), torch.full((1,), 5.0)
    assert forward(Arguments(), one) == -1
    assert forward(Arguments(), (two, one)) == 4
    assert forward(Arguments(), [one, two]) == -4
    assert forward(Arguments(), {"second": two, "first": one}) == -4
