"""Simulated clients with a user's own models, data, loss and count: what each has, and how it trains."""

import json

import numpy as np
import own_code
import pytest
import torch
from asking import ask, random_theta
from fresh_process import new_process
from own_code import OWNERS
from torch.nn import functional

from client_app.personal import build_described
from client_app.samples import DatasetSamples, ImageSamples, PartOf, TensorSamples
from client_app.site.simulated import simulated_site
from client_app.training import epochs, evaluate, sgd, train
from common.config import load_config
from common.data.own import load_own
from common.errors import UserError
from common.evaluation import TEST
from common.params import ParameterVector
from common.settings import LocalTraining


@pytest.fixture
def visits(run_config):
    """The settings of a run whose clients are the owners of visits."""
    own = {"dataset": "own_code:visits", "partition": "by-client", "num-clients": 0, "models": "own_code:Visit"}
    return run_config | own


def site_of(settings, client=0, num_clients=4):
    return simulated_site(load_config(settings), client, num_clients)


def loaded(settings):
    return load_own(settings["dataset"], load_config(settings).data_path)


def all_of(samples):
    return samples.batch(torch.arange(len(samples)))


# Data


def test_a_client_has_the_samples_of_its_owner_and_no_copy_of_them(visits):
    own = loaded(visits)
    seen = []
    for client in range(4):
        site = site_of(visits, client)
        for samples in (site.train, site.test):
            inputs, targets = all_of(samples)
            rows = [int((own.split.inputs["numbers"] == row).all(1).nonzero()) for row in inputs["numbers"]]
            assert {own.owner_names[own.owners[row]] for row in rows} == {OWNERS[client]}
            assert torch.equal(inputs["code"], own.split.inputs["code"][rows])
            assert torch.equal(targets, own.split.targets[rows])
            seen += rows
    assert sorted(seen) == list(range(40))
    assert isinstance(site.train, PartOf)
    assert site.train.samples is site_of(visits, 0).test.samples


def test_a_dataset_is_read_as_its_tensors_are(visits):
    settings = visits | {"dataset": "own_code:as_dataset", "models": "own_code:linear"}
    as_dataset = site_of(settings).train
    as_tensors = site_of(settings | {"dataset": "own_code:visits", "models": "own_code:Visit"}).train
    assert isinstance(as_dataset.samples, DatasetSamples)
    (rows, targets), (inputs, expected) = all_of(as_dataset), all_of(as_tensors)
    assert torch.equal(rows, inputs["numbers"])
    assert torch.equal(targets, expected)


@pytest.mark.parametrize("partition", ["non-iid-1", "by-client"])
def test_byte_images_are_those_of_a_file_with_the_same(run_config, tmp_path, partition):
    own = load_own("own_code:images", tmp_path)
    images = own.split.inputs.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "same.npz", images=images, labels=own.labels.numpy(), owners=np.arange(80) % 4)
    settings = run_config | {"partition": partition, "models": "mlp"}
    from_file = site_of(settings | {"data-dir": str(tmp_path / "same.npz")}, 1)
    if partition == "by-client":
        own_code.GIVEN = {"inputs": own.split.inputs, "targets": own.labels, "owners": np.arange(80) % 4}
    name = "own_code:given" if partition == "by-client" else "own_code:images"
    from_code = site_of(settings | {"dataset": name}, 1)
    assert isinstance(from_code.train.samples, ImageSamples)
    for one, other in ((from_file.train, from_code.train), (from_file.test, from_code.test)):
        assert all(map(torch.equal, all_of(one), all_of(other)))
    assert torch.equal(from_code.personal.anchor, from_file.personal.anchor)


def test_other_inputs_reach_the_model_as_they_are(run_config):
    settings = run_config | {"dataset": "own_code:float_images", "models": "own_code:Viewing"}
    images, _ = all_of(site_of(settings).train)
    assert 0 <= float(images.min()) < 0.1 < 0.9 < float(images.max()) <= 1
    assert isinstance(site_of(settings).train.samples, TensorSamples)


def test_a_public_model_of_float_images_is_built_again_from_what_lies_beside_it(run_config):
    site = site_of(run_config | {"dataset": "own_code:float_images", "models": "lenet"})
    assert "mean" not in site.built_by  # they are used as they come
    model = build_described(json.loads(json.dumps(site.built_by)))
    model.load_state_dict(site.personal.model.state_dict(), strict=True)


def test_at_most_so_many_samples_of_a_class_are_kept(run_config):
    settings = run_config | {"dataset": "own_code:images", "max-samples-per-class": 6}
    sites = [site_of(settings, client) for client in range(4)]
    labels = torch.cat([all_of(samples)[1] for site in sites for samples in (site.train, site.test)])
    assert 0 < int(torch.bincount(labels).max()) <= 6


# Models


@pytest.mark.parametrize("dataset", ["own_code:images", "npz"])
def test_a_model_that_views_its_batch_gets_it_in_the_plain_order(run_config, dataset):
    settings = run_config | {"dataset": dataset, "models": "own_code:Viewing,mlp"}
    own, public = site_of(settings, 0), site_of(settings, 1)
    result, delta = ask(settings, 0, 0 * random_theta(own.num_params))
    assert delta.norm() > 0
    assert result.train_loss > 0
    assert all_of(public.train)[0].is_contiguous(memory_format=torch.channels_last)


def test_clients_of_one_architecture_start_at_the_same_weights_which_follow_from_the_seed(visits):
    settings = visits | {"dataset": "own_code:as_dataset", "models": "own_code:linear,own_code:Deep"}
    first, other, third = (site_of(settings, client) for client in (0, 1, 2))
    assert third.personal is first.personal
    assert first.group == third.group != other.group
    new_process()
    assert torch.equal(site_of(settings, 2).personal.anchor, first.personal.anchor)
    assert not torch.equal(site_of(settings | {"seed": 1}).personal.anchor, first.personal.anchor)


def test_layers_of_an_own_model_are_kept_local(visits):
    site = site_of(visits | {"keep-local": "head.*", "freeze": "embedding.*"})
    assert site.personal.parameters.names == ("body.0.weight", "body.0.bias")


def test_held_out_clients_may_have_own_models(visits):
    settings = visits | {"dataset": "own_code:as_dataset", "models": "own_code:linear", "held-out": 1}
    settings |= {"num-clients": 4, "held-out-models": "own_code:Deep"}
    adapting = settings | {"mode": "adapt", "resume": "before"}
    assert site_of(settings, 2, 3).num_params == site_of(adapting, 2).num_params != site_of(adapting, 3).num_params


@pytest.mark.parametrize("name", ["own_code:Nothing", "no_such:Visit"])
def test_a_worker_that_cannot_import_a_model_says_so(visits, name):
    with pytest.raises(UserError, match=r"^models: "):
        site_of(visits | {"models": name})


# Loss and count


def test_without_a_name_loss_and_count_are_those_of_classes(visits):
    site = site_of(visits)
    inputs, targets = all_of(site.test)
    outputs = site.personal.model.eval()(**inputs)
    tested = evaluate(site.personal.model, site.test, site.loss, site.correct)
    assert tested.loss == pytest.approx(functional.cross_entropy(outputs, targets).item())
    assert tested.correct == int((outputs.argmax(1) == targets).sum())


def test_training_and_testing_use_the_users_own(visits):
    settings = visits | {"dataset": "own_code:measurements", "models": "own_code:linear"}
    settings |= {"loss": "own_code:squared", "correct": "own_code:near"}
    site = site_of(settings)
    assert not site.deploys_global  # the public model is for images of classes
    theta = random_theta(site.num_params)
    result, delta = ask(settings, 0, theta, tests=(TEST,), batch_size=64)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        by_hand = own_code.linear((6,), None)
    vector = ParameterVector(by_hand)
    vector.write(vector.read() + theta)
    start = vector.read()
    outputs, targets = by_hand(all_of(site.test)[0]).flatten(), all_of(site.test)[1]
    assert result.evaluations[TEST].loss == pytest.approx((outputs - targets).square().mean().item())
    assert result.evaluations[TEST].correct == int(((outputs - targets).abs() < 0.5).sum())
    generator, training = site.generator(0, 1), LocalTraining(client_lr=0.02)
    batches = epochs(len(site.train), 64, 1, generator)
    optimizer = sgd(by_hand.parameters(), training)
    loss = train(by_hand, site.train, batches, optimizer, generator, 50.0, lambda o, t, indices: own_code.squared(o, t))
    assert torch.equal(delta, start - vector.read())
    assert result.train_loss == loss
