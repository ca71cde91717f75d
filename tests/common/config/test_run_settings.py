"""What a Config says of a run: who plays which model, where its files are, what its method may read."""

from dataclasses import dataclass

import pytest
from configs import FIVE_MODELS, config_of

from common.config import RUN_OPTIONS, Config, load_config
from common.options import option
from common.settings import Bounded, LocalTraining, Settings


def test_models_are_dealt_out_in_order():
    config = load_config({"models": "vgg8, lenet,resnet10"})
    assert config.models == "vgg8,lenet,resnet10"
    assert [config.model_of(client, 7) for client in range(7)] == [*(["vgg8", "lenet", "resnet10"] * 2), "vgg8"]


def test_ten_quickstart_clients_hold_each_of_the_five_models_twice():
    config = load_config({})
    assert [config.model_of(client, 10) for client in range(10)] == [*FIVE_MODELS, *FIVE_MODELS]


def test_held_out_clients_are_the_last_and_have_models_of_their_own():
    config = load_config(
        {"num-clients": 8, "held-out": 3, "models": "lenet,vgg8", "held-out-models": "mlp, resnet18/keep-norm-output"}
    )
    trained = ["lenet", "vgg8", "lenet", "vgg8", "lenet"]
    unseen = ["mlp", "resnet18/keep-norm-output", "mlp"]
    assert [config.model_of(client, 8) for client in range(8)] == trained + unseen


def test_held_out_clients_are_dealt_the_trained_models_unless_others_are_set():
    config = load_config({"num-clients": 5, "held-out": 2, "models": "lenet,vgg8,mlp"})
    assert [config.model_of(client, 5) for client in range(5)] == ["lenet", "vgg8", "mlp", "lenet", "vgg8"]


def test_training_and_adapting_divide_the_data_into_the_same_parts():
    settings = {"num-clients": 10, "held-out": 4}
    train = load_config(settings)
    adapt = load_config(settings | {"mode": "adapt", "resume": "results/a-run"})
    assert (train.num_nodes, adapt.num_nodes) == (6, 10)
    assert train.num_parts(train.num_nodes) == adapt.num_parts(adapt.num_nodes) == 10


def test_a_run_without_a_name_is_named_after_method_profile_and_time():
    name = config_of("cifar100+paper-code").named().run_name
    assert name.startswith("mh-pfedhn-cifar100-paper-code-2")
    assert load_config({"run-name": name}).run_name == name
    assert config_of("cifar100", run_name="mine").named().run_name == "mine"


def test_a_run_is_named_after_the_name_of_a_profile_file_and_not_its_folder(profile, tmp_path):
    profile("my site.yaml", "dataset: cifar10\n")
    name = config_of(str(tmp_path / "my site.yaml")).named().run_name
    assert name.startswith("mh-pfedhn-my-site-2")


def test_a_run_of_a_method_from_outside_is_named_after_its_class(plugin):
    assert load_config({"method": plugin()}).named().run_name.startswith("Server-quickstart-2")


def test_an_absolute_folder_is_taken_as_it_is(tmp_path):
    config = load_config({"data-dir": str(tmp_path / "d"), "results-dir": str(tmp_path / "r")})
    assert (config.data_path, config.results_path) == (tmp_path / "d", tmp_path / "r")


@dataclass(frozen=True, kw_only=True)
class Mixed(LocalTraining):
    """A group that local training has a part of."""

    only_here: int = option(5, "what nobody sets", minimum=1)


def test_settings_of_the_method_come_as_any_group_that_shares_keys_with_it():
    config = load_config({"method": "local", "local-epochs": 7, "client-lr": 0.005})
    assert config.settings(LocalTraining) == LocalTraining(local_epochs=7)
    assert config.settings(Mixed) == Mixed(local_epochs=7, only_here=5)
    assert config.settings(Bounded) == Bounded()  # local sends nothing that needs a bound
    assert config.settings(Settings) == Settings()


def test_a_bare_config_has_the_defaults_and_the_groups_theirs():
    assert Config().to_dict() == {key: each.default for key, each in RUN_OPTIONS.items()}
    assert Config().settings(LocalTraining) == LocalTraining()


@pytest.mark.parametrize("key", ["hn-lr", "local-epochs"])
def test_settings_of_the_method_make_two_configs_differ(key):
    one, other = load_config({}), load_config({key: 7})
    assert one != other
    assert one.to_dict() | {key: 7} == other.to_dict()
