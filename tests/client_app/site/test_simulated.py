"""Which data and model a simulated client has, what it takes part in, and how many take turns in one process."""

from dataclasses import replace

import own_method
import pytest
import torch
from asking import (
    ALWAYS_TOLD,
    CLASSES,
    GD,
    SHAPE,
    ask,
    ask_globally,
    ask_to_finish,
    random_theta,
    registered,
    site,
    stored,
    theta_for,
    trainer,
)
from fresh_process import new_process
from writers import write

from client_app.site import simulated
from client_app.site.simulated import simulated_site
from client_app.site.site import Place
from common.config import load_config
from common.data.sources.base import ArrayImages
from common.models import build_model
from common.params import ParameterVector

# Data, model and label


def samples(config, client, num_nodes):
    fresh = simulated_site(load_config(config), client, num_nodes)
    return fresh.train.images, fresh.train.labels, fresh.test.images, fresh.test.labels


@pytest.mark.parametrize("partition", ["non-iid-1", "non-iid-2"])
def test_a_client_has_the_same_data_in_training_and_when_others_are_adapted_to(run_config, partition):
    before = run_config | {"num-clients": 5, "held-out": 2, "partition": partition, "dirichlet-alpha": 100.0}
    adapting = before | {"mode": "adapt", "resume": "before"}
    undivided = before | {"held-out": 0}
    for client in range(3):
        data = samples(before, client, 3)
        assert all(map(torch.equal, data, samples(adapting, client, 5)))
        assert all(map(torch.equal, data, samples(undivided, client, 5)))
    everybody = [samples(adapting, client, 5) for client in range(5)]
    assert sum(len(labels) + len(test) for _, labels, _, test in everybody) == 160
    assert not torch.equal(
        samples(before, 0, 3)[0], samples(run_config | {"partition": partition, "dirichlet-alpha": 100.0}, 0, 3)[0]
    )


def sizes(config, num_nodes):
    return [
        simulated_site(load_config(config), client, num_nodes).personal.parameters.size for client in range(num_nodes)
    ]


def test_held_out_clients_have_the_models_set_for_them_or_go_on_with_those_of_all(run_config):
    size = {name: ParameterVector(build_model(name, SHAPE, CLASSES, seed=0)).size for name in ("lenet", "mlp", "vgg8")}
    lenet, mlp, vgg8 = size["lenet"], size["mlp"], size["vgg8"]
    config = run_config | {"num-clients": 5, "held-out": 2}
    adapting = {"mode": "adapt", "resume": "before"}
    assert sizes(config, 3) == [lenet, mlp, lenet]
    assert sizes(config | adapting, 5) == [lenet, mlp, lenet, mlp, lenet]
    other = config | {"held-out-models": "vgg8"}
    assert sizes(other, 3) == [lenet, mlp, lenet]
    assert sizes(other | adapting, 5) == [lenet, mlp, lenet, vgg8, vgg8]
    assert sizes(config | adapting | {"held-out-models": "mlp,vgg8"}, 5) == [lenet, mlp, lenet, mlp, vgg8]


def groups(config, count=4):
    """What clients tell of their architecture, when they are asked."""
    return [registered(trainer(config, client), "group")["group"] for client in range(count)]


def test_clients_of_one_architecture_send_one_label_that_does_not_name_it(run_config):
    config = run_config | {"models": "lenet,mlp"}
    lenet, mlp, other_lenet, other_mlp = groups(config)
    assert lenet == other_lenet != mlp == other_mlp
    assert not {"lenet", "mlp"} & {lenet, mlp}
    new_process()
    assert groups(config) == [lenet, mlp, lenet, mlp]
    assert groups(config | {"seed": 1})[0] != lenet  # nobody can tell it from another run
    variant = groups(config | {"models": "lenet,lenet/keep-output"})
    assert variant[0] == lenet != variant[1]


def test_every_simulated_client_has_the_label_of_its_architecture_and_tells_it_only_when_it_is_asked(run_config):
    lenet, mlp, other_lenet, _ = (site(run_config, client).group for client in range(4))
    assert lenet == other_lenet != mlp
    assert [lenet, mlp] == groups(run_config, 2)
    for heads in ("by-tau", "by-architecture"):  # the server's business
        assert set(registered(trainer(run_config | {"heads": heads}, 1))) == ALWAYS_TOLD


# What it takes part in


def among(config, fraction, num_clients=10, purpose="gd-fraction"):
    config = load_config(config)
    return {
        client
        for client in range(num_clients)
        if simulated_site(config, client, num_clients).is_among(fraction, purpose)
    }


def test_a_share_of_the_clients_is_drawn_from_seed_and_purpose(run_config):
    # What every run with `gd-fraction` 0.4 and seed 0 drew when this was written: a resumed one must not draw others.
    four = among(run_config, 0.4)
    assert four == {0, 5, 6, 7}
    assert len({frozenset(among(run_config | {"seed": seed}, 0.4)) for seed in range(4)}) > 1
    assert among(run_config, 0.4, purpose="something-else") != four
    assert four < among(run_config, 0.5)
    assert among(run_config, 0.0) == set()
    assert among(run_config, 1.0) == set(range(10))


def test_a_share_is_drawn_with_the_seed_of_the_clients_place(run_config):
    fresh = site(run_config)
    for seed in range(4):
        places = [replace(fresh, place=Place(index, 10, seed)) for index in range(10)]
        drawn = {index for index, each in enumerate(places) if each.is_among(0.4, "gd-fraction")}
        assert drawn == among(run_config | {"seed": seed}, 0.4)
    assert replace(fresh, place=None).is_among(0.0, "gd-fraction")  # a real site: no draw decides for it


def test_trained_and_held_out_clients_are_drawn_apart(run_config):
    before = run_config | {"num-clients": 10, "held-out": 4}
    adapting = before | {"mode": "adapt", "resume": "before"}
    trained = among(before, 0.5, num_clients=6)
    everybody = among(adapting, 0.5)
    assert len(trained) == 3
    assert {client for client in everybody if client < 6} == trained
    assert len(everybody) == 5


def test_every_simulated_client_can_deploy_the_global_model(run_config):
    fresh = site(run_config | {"method": GD, "gd-fraction": 0.0})
    assert fresh.deploys_global
    assert fresh.global_model("mlp").parameters.size == ParameterVector(build_model("mlp", SHAPE, CLASSES, 0)).size


def test_only_a_method_from_outside_is_foreign(run_config):
    config = load_config(run_config)
    assert simulated_site(config, 0, 4).foreign_methods == frozenset()
    # The name that clients are told is that of their own half.
    foreign = replace(config, method="own_server:Own", method_settings={})
    assert simulated_site(foreign, 0, 4).foreign_methods == {own_method.NAME}


# Many clients in one process


def test_personal_and_global_model_of_one_architecture_are_two_models(run_config):
    fresh = site(run_config)
    assert fresh.global_model("lenet").model is not fresh.personal.model
    assert fresh.global_model("lenet") is fresh.global_model("lenet")  # built once
    fresh.global_model("lenet").load(random_theta(fresh.global_model("lenet").parameters.size), True, {})
    assert torch.equal(fresh.personal.parameters.read(), fresh.personal.anchor)


def test_clients_of_one_architecture_share_a_model_and_others_do_not(run_config):
    config = load_config(run_config | {"models": "lenet,mlp,lenet/keep-output"})
    lenet, mlp, keeping, other = (simulated_site(config, client, 4) for client in range(4))
    assert other.personal is lenet.personal
    assert len({id(each.personal.model) for each in (lenet, mlp, keeping)}) == 3
    assert lenet.global_model("lenet") is mlp.global_model("lenet")
    assert simulated_site(replace(config, seed=1), 0, 4).personal is not lenet.personal
    assert simulated_site(replace(config, freeze="0.*"), 0, 4).personal is not lenet.personal


ROUNDS = (1, 2, 3)
BLOCKS = "resnet10/keep-norm-output"  # batch norm, and layers kept local; the last layer among them


def takes_part(config, client, server_round, method, exchange):
    """One message to a client; what of its answer can differ."""
    changes = {"server_round": server_round, "method": method}
    changes |= {"global_model": "resnet10"} if method == GD else {}
    if exchange == "global":
        w_g = 0.1 * random_theta(ParameterVector(build_model("resnet10", SHAPE, CLASSES, 0)).size, seed=server_round)
        return ask_globally(config, client, w_g, **changes)
    num_params = simulated_site(load_config(config), client, 4).num_params
    theta = None if method == "local" else random_theta(num_params, seed=10 * client + server_round)
    if exchange == "finish":
        return ask_to_finish(config, client, theta, **changes), None
    return ask(config, client, theta, tests=("test",), teacher_round=server_round, **changes)


def messages(method):
    exchanges = ["global", "personal"] if method == GD else ["personal"]
    return [(number, each) for number in ROUNDS for each in exchanges] + [(ROUNDS[-1] + 1, "finish")]


def test_the_models_of_another_seed_are_let_go_of_and_built_again_as_they_were(run_config):
    def weights(seed):
        return simulated_site(load_config(run_config | {"seed": seed}), 0, 4).personal.parameters.read()

    new_process()
    first = weights(0)
    for seed in (1, 2):
        assert not torch.equal(weights(seed), first)
        assert simulated._shared_model.cache_info().currsize == 1
    assert torch.equal(weights(0), first)


@pytest.mark.parametrize("models", [BLOCKS, "resnet10", "lenet/freeze-output"])
@pytest.mark.parametrize("method", ["mh-pfedhn", "fedavg", "local", GD])
def test_two_clients_that_take_turns_with_one_model_do_as_in_two_processes(run_config, method, models):
    config = run_config | {"models": models}
    together = {0: [], 1: []}
    for server_round, exchange in messages(method):
        for client in together:
            together[client].append(takes_part(config, client, server_round, method, exchange))
    assert simulated._shared_model.cache_info().currsize <= 2

    apart = config | {"results-dir": run_config["results-dir"] + "-apart"}
    for client, answers in together.items():
        new_process()
        for (server_round, exchange), (result, delta) in zip(messages(method), answers, strict=True):
            alone, alone_delta = takes_part(apart, client, server_round, method, exchange)
            assert alone == result
            assert (delta is None) == (alone_delta is None)
            assert delta is None or torch.equal(alone_delta, delta)
        files = sorted(path.name for path in stored(config, client).glob("*.pt"))
        assert files == sorted(path.name for path in stored(apart, client).glob("*.pt"))
        assert "personal-model.pt" in files
        for name in set(files) - {"history.json"}:
            one, other = (
                torch.load(stored(each, client) / name, weights_only=True, map_location="cpu")
                for each in (config, apart)
            )
            one, other = one.get("state", one), other.get("state", other)
            assert one.keys() == other.keys()
            assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_samples_are_read_once_a_process_while_they_fit(run_config):
    config = load_config(run_config)
    first, again = simulated_site(config, 0, 4), simulated_site(config, 0, 4)
    assert again.train is first.train
    assert simulated_site(config, 1, 4).train is not first.train


@pytest.fixture
def decoded(monkeypatch):
    """How many images were read."""
    counts, really = [], ArrayImages.read

    def read(source, rows):
        counts.append(len(rows))
        return really(source, rows)

    monkeypatch.setattr(ArrayImages, "read", read)
    return counts


def test_another_run_with_the_same_data_seed_and_partition_decodes_nothing_again(run_config, decoded):
    for client in range(4):
        simulated_site(load_config(run_config), client, 4)
    assert decoded
    decoded.clear()
    other = {"method": "fedavg", "models": "mlp", "run-name": "other", "num-rounds": 7, "client-lr": 0.1}
    given = {
        key: value for key, value in run_config.items() if key not in ("chunk-size", "embedding-dim", "hidden-dim")
    }
    again = [simulated_site(load_config(given | other), client, 4) for client in range(4)]
    assert decoded == []
    assert again[0].train is simulated_site(load_config(run_config), 0, 4).train
    for changes in ({"seed": 1}, {"classes-per-client": 3}, {"test-fraction": 0.5}, {"validation-fraction": 0.1}):
        simulated_site(load_config(run_config | changes), 0, 4)
        assert decoded, changes
        decoded.clear()


def test_a_validation_part_is_held_back_from_training_alone(run_config):
    plain = site(run_config)
    assert plain.validation is None
    held_back = site(run_config | {"validation-fraction": 0.25})
    assert torch.equal(held_back.test.images, plain.test.images)
    assert torch.equal(torch.cat([held_back.validation.images, held_back.train.images]), plain.train.images)
    assert len(held_back.validation) == len(plain.train) // 4
    assert torch.equal(held_back.validation.mean, held_back.train.mean)
    counts = registered(trainer(run_config | {"validation-fraction": 0.25}))
    assert counts["train-samples"] == len(held_back.train)


@pytest.mark.parametrize("dataset", ["npz", "parquet"])
def test_clients_may_be_the_owners_of_the_samples(run_config, tmp_path, dataset):
    written = write()
    files = {"npz": written.write_npz, "parquet": written.write_parquet}
    path = files[dataset](tmp_path / f"writers.{dataset}", {"npz": "owners", "parquet": "client"}[dataset], "split")
    config = load_config(run_config | {"dataset": dataset, "data-dir": str(path), "partition": "by-client"})
    for client, (name, size) in enumerate(written.sizes.items()):
        fresh = simulated_site(config, client, 6)
        assert len(fresh.train) + len(fresh.test) == size
        theirs = written.images[(written.owners == name) & written.is_test]
        assert sorted(map(bytes, fresh.test.images[:, 0].numpy())) == sorted(map(bytes, theirs))
    pixels = torch.from_numpy(written.images[~written.is_test]).double()
    assert fresh.train.mean.item() == pytest.approx(pixels.mean().item(), rel=1e-6)
    assert fresh.train.std.item() == pytest.approx(pixels.std(correction=0).item(), rel=1e-6)


def test_a_client_whose_samples_do_not_fit_trains_as_others_do(run_config, monkeypatch):
    theta = theta_for(site(run_config))
    expected = [ask(run_config, 0, theta, server_round=number)[1] for number in (1, 2)]
    new_process()
    monkeypatch.setattr(simulated, "_samples", simulated.SampleCache(limit=100))
    other = run_config | {"run-name": "other"}
    found = [ask(other, 0, theta, server_round=number, run_name="other")[1] for number in (1, 2)]
    assert all(map(torch.equal, found, expected))
