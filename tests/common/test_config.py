"""Profiles, overrides and the sentences that a wrong one gets (DESIGN, section 6; the values of PAPER-NOTES)."""

import contextlib
import math
import tomllib
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import (
    DATASETS,
    DEFAULT_PROFILE,
    KEYS,
    MODELS,
    PROFILES_DIR,
    SITES,
    Config,
    keys_with_help,
    load_config,
    parse_overrides,
    profiles,
    split,
)
from common.data.datasets import DATASETS as DATA_SOURCES
from common.errors import UserError
from common.models import MODELS as ARCHITECTURES

PROJECT = Path(__file__).resolve().parents[2]
FIVE_MODELS = ("lenet", "vgg8", "resnet10", "resnet12", "resnet18")
PROFILE_FILES = sorted(PROFILES_DIR.rglob("*.yaml"))


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """Write a profile file of the user's own; relative names start at its folder."""
    monkeypatch.chdir(tmp_path)

    def write(name, content):
        (tmp_path / name).write_text(content)
        return name

    return write


def config_of(profile_name, **overrides):
    return load_config({"profile": profile_name, **{key.replace("_", "-"): value for key, value in overrides.items()}})


def message_of(overrides, **options):
    with pytest.raises(UserError) as caught:
        load_config(overrides, **options)
    return str(caught.value)


def assert_one_sentence(message):
    assert "\n" not in message
    assert message[-1] in ".?"
    assert ". " not in message


@contextlib.contextmanager
def only_sentences_about(key):
    """Let a UserError pass that names the key, and no other exception."""
    message = key
    try:
        yield
    except UserError as error:
        message = str(error)
    assert key in message


# Profiles


@pytest.mark.parametrize("path", PROFILE_FILES, ids=lambda path: path.stem)
def test_every_profile_of_the_project_loads_alone_or_joined_to_a_data_set(path):
    name = path.stem if path.parent == PROFILES_DIR else str(path)
    if "dataset" in yaml.safe_load(path.read_text()) or "base" in yaml.safe_load(path.read_text()):
        config = config_of(name)
    else:
        assert "no data set" in message_of({"profile": name})
        config = config_of(f"cifar10+{name}")
    assert config.dataset in DATASETS


@pytest.mark.parametrize("name", ["paper-text", "paper-code"])
def test_a_profile_of_hyperparameters_is_refused_until_a_data_set_is_given(name):
    message = message_of({"profile": name})
    assert f"'{name}'" in message
    assert f"cifar100+{name}" in message
    assert_one_sentence(message)
    assert config_of(name, dataset="cifar10").dataset == "cifar10"
    assert config_of(f"cifar10+{name}").dataset == "cifar10"


def test_paper_text_holds_what_the_paper_prints():
    config = config_of("cifar100+paper-text")
    assert (config.local_epochs, config.batch_size, config.client_momentum) == (2, 64, 0.9)
    assert (config.client_lr, config.client_weight_decay, config.hn_lr) == (1e-3, 1e-4, 2e-4)
    assert (config.schedule, config.anchor) == ("per-client", False)


def test_paper_code_holds_what_the_authors_ran():
    config = config_of("cifar100+paper-code")
    assert (config.local_epochs, config.batch_size, config.client_momentum) == (1, 64, 0.9)
    assert (config.client_lr, config.client_weight_decay, config.hn_lr) == (5e-3, 5e-4, 2e-4)
    assert (config.schedule, config.anchor) == ("sequential", False)


@pytest.mark.parametrize("name", ["paper-text", "paper-code"])
def test_paper_profiles_use_the_hypernetwork_of_the_authors_code(name):
    config = config_of(f"cifar100+{name}")
    assert (config.embedding_dim, config.embedding_init_std) == (64, 0.002)
    assert (config.hidden_layers, config.hidden_dim, config.chunk_size) == (3, 128, 3072)
    assert config.resolved_head_init_scale == 1.0


@pytest.mark.parametrize(
    ("name", "dataset", "clients", "classes", "alpha"),
    [
        ("cifar10", "cifar10", 50, 2, 0.1),
        ("cifar100", "cifar100", 50, 10, 0.01),
        ("emnist", "emnist-byclass", 200, 6, 0.01),
        ("tiny-imagenet", "tiny-imagenet", 50, 20, 0.01),
    ],
)
def test_data_set_profiles_divide_the_data_as_in_the_paper(name, dataset, clients, classes, alpha):
    for each in (name, f"{name}-heterogeneous"):
        config = config_of(each)
        assert (config.dataset, config.num_clients, config.num_rounds) == (dataset, clients, 500)
        assert (config.partition, config.classes_per_client, config.dirichlet_alpha) == ("non-iid-1", classes, alpha)
    assert config_of(name).model_names == ("lenet",)
    assert config_of(f"{name}-heterogeneous").model_names == FIVE_MODELS


def test_the_profile_of_a_consortium_is_for_sites_with_data_of_their_own():
    config = config_of("consortium")
    assert (config.dataset, config.chunk_size, config.min_clients) == (SITES, "auto", 2)
    assert config.deadline <= 600  # what a site that is away may cost a round
    assert 0 < config.checkpoint_every <= 5
    latest = config_of("consortium", resume="latest", run_name="spring")
    assert (latest.mode, latest.resume, latest.run_name) == ("train", "latest", "spring")


@pytest.mark.parametrize(("key", "wrong"), [("max-params", 0), ("max-params", 1.5), ("max-delta-norm", 0.0)])
def test_the_limits_of_what_a_client_may_be_and_send_are_above_zero(key, wrong):
    assert message_of({key: wrong}).startswith(f"{key} is {wrong!r} in the command line, but must be ")
    assert load_config({key: 1}).to_dict()[key] == 1


def test_chunk_size_is_chosen_by_the_run_unless_a_profile_says_the_papers():
    assert Config().chunk_size == "auto"
    assert config_of("cifar100").chunk_size == "auto"
    assert config_of("cifar100", chunk_size=3072).chunk_size == 3072


@pytest.mark.parametrize(
    ("name", "temperature", "coefficient"),
    [("cifar10", 15, 0.01), ("cifar100", 15, 0.01), ("tiny-imagenet", 24, 0.2), ("emnist", 10, 0.1)],
)
def test_data_set_profiles_distil_as_in_the_paper(name, temperature, coefficient):
    for each in (name, f"{name}-heterogeneous"):
        config = config_of(each)
        assert (config.temperature, config.distillation_coefficient) == (temperature, coefficient)


# What a named setting changes of cifar100, beside the models.
SETTINGS = {
    "extreme-personalisation": {},  # tests/common/test_variants.py
    "resource-constrained": {},
    "partial-deployment": {"method": "mh-pfedhn-gd", "gd-fraction": 0.4},
    "partial-participation": {"participation": 0.2},
    "top-30-percent": {"upload": "topk", "topk-fraction": 0.3},
    "no-heads": {"heads": "none"},
    "head-per-client": {"heads": "per-client"},
    "unseen-clients": {"num-clients": 100, "held-out": 20},
}
MODELS_OF_SETTINGS = {
    **{name: "lenet" for name in SETTINGS},
    **{f"{name}-heterogeneous": ",".join(FIVE_MODELS) for name in SETTINGS},
    "unseen-clients-heterogeneous": "lenet,vgg8,resnet10,mlp,squeezenet1_0",
}


@pytest.mark.parametrize("suffix", ["", "-heterogeneous"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_the_paper_is_cifar100_with_these_keys_changed(name, suffix):
    config = config_of(name + suffix)
    same = {"profile": config.profile, "models": config.models}
    assert config.to_dict() == config_of("cifar100").to_dict() | SETTINGS[name] | same
    architectures = dict.fromkeys(model.partition("/")[0] for model in config.model_names)
    assert ",".join(architectures) == MODELS_OF_SETTINGS[name + suffix]


@pytest.mark.parametrize("name", ["lenet", "vgg8", "resnet10", "mlp"])
def test_the_global_model_differs_between_profiles_and_the_clients_do_not(name):
    config = config_of(f"global-{name}")
    assert (config.method, config.global_model) == ("mh-pfedhn-gd", name)
    assert config.model_names == ("vgg8", "resnet10", "mlp")


def test_lenet_vgg8_and_mlp_can_share_a_head_at_the_chunk_size_of_their_profile():
    shared, separate = config_of("shared-heads"), config_of("heads-by-architecture")
    assert (shared.heads, separate.heads) == ("by-tau", "by-architecture")
    for config in (shared, separate):
        assert config.model_names == ("lenet", "vgg8", "mlp")
        assert {math.ceil(size / config.chunk_size) for size in (239_856, 274_664, 408_100)} == {2}


def test_unseen_architectures_are_none_of_those_trained():
    config = config_of("unseen-architectures")
    models = [config.model_of(client, config.num_clients) for client in range(100)]
    assert set(models[:80]) == {"lenet", "vgg8", "resnet10", "mlp", "squeezenet1_0"}
    assert set(models[80:]) == {"resnet18", "squeezenet1_1"}


def test_the_default_profile_needs_no_download_and_mixes_the_five_models():
    config = load_config({})
    assert config.profile == DEFAULT_PROFILE == "quickstart"
    assert config.dataset == "fashion-mnist"
    assert config.model_names == FIVE_MODELS
    assert config.num_clients >= config.min_clients


def test_profiles_lists_every_file_with_its_description():
    listed = dict(profiles())
    assert set(listed) == {path.stem for path in PROFILES_DIR.glob("*.yaml")}
    for name, description in listed.items():
        assert 0 < len(description) < 100, name


def test_a_profile_adds_to_its_base_and_wins_over_it(profile):
    profile("mine.yaml", "base: cifar10\nnum-clients: 7\n")
    config = config_of("mine.yaml")
    assert (config.num_clients, config.dataset, config.classes_per_client) == (7, "cifar10", 2)


def test_bases_form_a_chain_in_which_the_nearest_wins(profile):
    profile("oldest.yaml", "base: cifar10\nnum-clients: 5\nnum-rounds: 6\nseed: 1\n")
    profile("middle.yaml", "base: oldest.yaml\nnum-rounds: 7\nseed: 2\n")
    profile("newest.yaml", "base: middle.yaml\nseed: 3\n")
    config = config_of("newest.yaml")
    assert (config.num_clients, config.num_rounds, config.seed, config.dirichlet_alpha) == (5, 7, 3, 0.1)


def test_of_several_bases_the_last_wins(profile):
    profile("mine.yaml", "base: [cifar10, paper-text, paper-code]\n")
    config = config_of("mine.yaml")
    assert (config.dataset, config.schedule, config.local_epochs) == ("cifar10", "sequential", 1)


def test_two_profiles_may_share_a_base(profile):
    profile("left.yaml", "base: cifar10\nnum-clients: 5\n")
    profile("right.yaml", "base: cifar10\nseed: 4\n")
    profile("both.yaml", "base: [left.yaml, right.yaml]\n")
    assert config_of("both.yaml").seed == 4


def test_joined_profiles_apply_in_order(profile):
    profile("mine.yaml", "hn-lr: 0.5\nlocal-epochs: 9\n")
    assert config_of("cifar100 + paper-code + mine.yaml").local_epochs == 9
    config = config_of("cifar100+mine.yaml+paper-code")
    assert (config.local_epochs, config.hn_lr, config.dataset) == (1, 2e-4, "cifar100")


def test_overrides_win_over_every_profile():
    config = config_of("cifar100+paper-code", num_rounds=3, schedule="joint", anchor=True)
    assert (config.num_rounds, config.schedule, config.anchor) == (3, "joint", True)
    assert config.client_lr == 5e-3


@pytest.mark.parametrize("files", [{"a.yaml": "a.yaml"}, {"a.yaml": "b.yaml", "b.yaml": "c.yaml", "c.yaml": "a.yaml"}])
def test_a_profile_that_is_its_own_base_is_refused_with_its_chain(profile, files):
    for name, base in files.items():
        profile(name, f"base: {base}\n")
    message = message_of({"profile": "a.yaml"})
    assert message == f"Profile 'a.yaml' is its own base: {' -> '.join([*files, 'a.yaml'])}."


def test_an_unknown_profile_is_answered_with_the_nearest_and_all_names():
    message = message_of({"profile": "cifra100"})
    assert "\n" not in message
    assert "profile 'cifra100'" in message
    assert "did you mean 'cifar100'?" in message
    assert "tiny-imagenet-heterogeneous" in message


def test_an_unknown_name_in_a_join_is_the_one_that_is_reported():
    assert "profile 'papercode'; did you mean 'paper-code'?" in message_of({"profile": "cifar100+papercode"})


def test_a_profile_file_that_is_not_there_is_refused(profile):
    assert "profile 'nowhere.yaml'" in message_of({"profile": "nowhere.yaml"})


@pytest.mark.parametrize(
    "content",
    [
        "num-rounds: [1, 2",
        "a: b: c",
        "\tnum-rounds: 3",
        "num-rounds: !!python/name:os.system",
        "just words",
        "- num-rounds\n",
        "",
    ],
)
def test_a_file_that_is_not_yaml_of_keys_and_values_is_refused_by_name(profile, content):
    message = message_of({"profile": profile("broken.yaml", content)})
    assert "\n" not in message
    assert "broken.yaml" in message


def test_a_file_that_is_not_text_is_refused_by_name(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    message = message_of({"profile": str(path)})
    assert "not readable as YAML" in message
    assert str(path) in message


@pytest.mark.parametrize("content", ["run-name: 2026-13-45\n", "seed: !!int x\n"])
def test_yaml_whose_values_cannot_be_made_is_refused_by_name(profile, content):
    assert "broken.yaml" in message_of({"profile": profile("broken.yaml", content)})


@pytest.mark.parametrize("content", ["5", "", "true", "{a: b}", "[[cifar10]]", "[5]"])
def test_a_base_that_is_no_name_is_refused(profile, content):
    profile("mine.yaml", f"dataset: cifar10\nbase: {content}\n")
    message_of({"profile": "mine.yaml"})


@pytest.mark.parametrize("key", ["1", "on", "null", "2026-01-01", "3.5"])
def test_a_key_that_is_not_text_is_an_unknown_key(profile, key):
    message = message_of({"profile": profile("mine.yaml", f"dataset: cifar10\n{key}: 2\n")})
    assert "There is no key" in message
    assert "mine.yaml" in message


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("num-round: 3", ["'num-round'", "'num-rounds'"]),
        ("num-rounds: many", ["num-rounds is 'many'", "whole number of at least 1"]),
        ("num-rounds:", ["num-rounds is None", "whole number of at least 1"]),
        ("schedule: jiont", ["schedule is 'jiont'", "did you mean 'joint'?"]),
        ("client-lr: 0", ["client-lr is 0", "number above 0"]),
    ],
)
def test_a_mistake_in_a_profile_names_the_file(profile, line, parts):
    message = message_of({"profile": profile("mine.yaml", f"dataset: cifar10\n{line}\n")})
    assert_one_sentence(message)
    for part in ["mine.yaml", *parts]:
        assert part in message


# Values


def test_a_number_as_yaml_1_1_reads_it_is_a_number(profile):
    # YAML 1.1 wants a dot: 1e-3 is a string to it.
    profile("mine.yaml", "dataset: cifar10\nhn-lr: 1e-3\nembedding-init-std: 2E-3\nclient-lr: '0.25'\n")
    config = config_of("mine.yaml")
    assert (config.hn_lr, config.embedding_init_std, config.client_lr) == (0.001, 0.002, 0.25)
    assert all(type(value) is float for value in (config.hn_lr, config.embedding_init_std, config.client_lr))


def test_whole_numbers_may_come_as_floats_and_floats_as_whole_numbers():
    # `flwr run -c` keeps the type that TOML gives a value.
    config = load_config({"num-rounds": 20.0, "client-lr": 1, "head-init-scale": 2})
    assert (config.num_rounds, config.client_lr, config.head_init_scale) == (20, 1.0, 2.0)
    assert (type(config.num_rounds), type(config.client_lr), type(config.head_init_scale)) == (int, float, float)


def test_names_that_look_like_numbers_become_text():
    config = load_config({"run-name": 7, "data-dir": 2026})
    assert (config.run_name, config.data_dir) == ("7", "2026")


def test_models_may_be_a_list_in_a_profile(profile):
    profile("mine.yaml", "dataset: cifar10\nmodels: [lenet, vgg8]\n")
    assert config_of("mine.yaml").models == "lenet,vgg8"


def test_models_are_dealt_out_in_order():
    config = load_config({"models": "vgg8, lenet,resnet10"})
    assert config.model_names == ("vgg8", "lenet", "resnet10")
    assert [config.model_of(client, 7) for client in range(7)] == [*(["vgg8", "lenet", "resnet10"] * 2), "vgg8"]


def test_ten_quickstart_clients_hold_each_of_the_five_models_twice():
    config = load_config({})
    assert [config.model_of(client, 10) for client in range(10)] == [*FIVE_MODELS, *FIVE_MODELS]


def test_models_takes_variants_of_an_architecture(profile):
    profile("mine.yaml", "dataset: cifar100\nmodels: [lenet, vgg8/keep-output]\n")
    assert config_of("mine.yaml").model_names == ("lenet", "vgg8/keep-output")
    assert load_config({"models": "resnet10/freeze-last-fifth"}).model_names == ("resnet10/freeze-last-fifth",)


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


def test_models_for_held_out_clients_are_refused_where_none_is_held_out():
    with pytest.raises(UserError, match=r"^held-out-models is set, but held-out is 0"):
        load_config({"num-clients": 3, "models": "lenet,vgg8", "held-out-models": "mlp"})


def test_training_and_adapting_divide_the_data_into_the_same_parts():
    settings = {"num-clients": 10, "held-out": 4}
    train = load_config(settings)
    adapt = load_config(settings | {"mode": "adapt", "resume": "results/a-run"})
    assert (train.num_nodes, adapt.num_nodes) == (6, 10)
    assert train.num_parts(train.num_nodes) == adapt.num_parts(adapt.num_nodes) == 10


@pytest.mark.parametrize("key", ["keep-local", "freeze"])
def test_patterns_of_layers_may_be_a_list_in_a_profile(profile, key):
    profile("list.yaml", f"dataset: cifar10\n{key}: [0.*, '*.norm?.*']\n")
    profile("text.yaml", f"dataset: cifar10\n{key}: 0.*, *.norm?.*\n")
    for name in ("list.yaml", "text.yaml"):
        assert split(str(config_of(name).to_dict()[key])) == ("0.*", "*.norm?.*")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"anchor": True}, 0.1),
        ({"anchor": False}, 1.0),
        ({"anchor": True, "head-init-scale": 0.5}, 0.5),
        ({"anchor": False, "head-init-scale": "0.5"}, 0.5),
        ({"anchor": False, "head-init-scale": "auto"}, 1.0),
    ],
)
def test_head_init_scale_follows_the_anchor_unless_it_is_set(overrides, expected):
    assert load_config(overrides).resolved_head_init_scale == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("participation", 1), ("participation", 1e-9), ("quorum", 1), ("num-rounds", 1), ("num-clients", 1)],
        *[("seed", 0), ("seed", 2**31 - 1), ("client-momentum", 0), ("client-momentum", 1), ("client-weight-decay", 0)],
        *[("embedding-init-std", 0), ("max-samples-per-class", 0), ("chunk-size", 1), ("min-clients", 1)],
        *[("held-out", 0), ("held-out", 9), ("gd-fraction", 0), ("gd-fraction", 1), ("topk-fraction", 1)],
        *[("distillation-coefficient", 0), ("distillation-coefficient", 1), ("checkpoint-every", 0)],
        *[("chunk-size", "auto"), ("error-feedback", True)],
    ],
)
def test_the_ends_of_a_range_are_valid(key, value):
    assert load_config({key: value}).to_dict()[key] == value


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        # wrong type
        ("num-rounds", "many", "whole number of at least 1"),
        ("num-rounds", 2.5, "whole number of at least 1"),
        ("num-rounds", True, "whole number of at least 1"),
        ("num-rounds", [3], "whole number of at least 1"),
        ("num-rounds", None, "whole number of at least 1"),
        ("client-lr", "fast", "number above 0"),
        ("client-lr", True, "number above 0"),
        ("client-lr", [0.1], "number above 0"),
        ("client-lr", "nan", "number above 0"),
        ("head-init-scale", "large", "number above 0 or auto"),
        ("anchor", "true", "true or false"),
        ("anchor", 1, "true or false"),
        ("anchor", None, "true or false"),
        ("run-name", ["a"], "text"),
        ("data-dir", None, "text"),
        ("method", 7, "text"),
        # out of range
        ("num-rounds", 0, "whole number of at least 1"),
        ("num-clients", -3, "whole number of at least 1"),
        ("seed", -1, "whole number of at least 0"),
        ("max-samples-per-class", -1, "whole number of at least 0"),
        ("participation", 0, "number above 0 and at most 1"),
        ("participation", 1.01, "number above 0 and at most 1"),
        ("quorum", 0, "number above 0 and at most 1"),
        ("client-lr", 0, "number above 0"),
        ("client-lr", math.inf, "number above 0"),
        ("client-lr", math.nan, "number above 0"),
        ("client-momentum", 1.1, "number of at least 0 and at most 1"),
        ("client-weight-decay", -1e-9, "number of at least 0"),
        ("dirichlet-alpha", 0, "number above 0"),
        ("deadline", 0, "number above 0"),
        ("head-init-scale", 0, "number above 0 or auto"),
        ("chunk-size", 0, "whole number of at least 1 or auto"),
        ("chunk-size", 2.5, "whole number of at least 1 or auto"),
        ("chunk-size", "big", "whole number of at least 1 or auto"),
        ("chunk-size", True, "whole number of at least 1 or auto"),
        ("num-rounds", "auto", "whole number of at least 1"),
        ("held-out", -1, "whole number of at least 0"),
        ("checkpoint-every", -1, "whole number of at least 0"),
        ("gd-fraction", -0.1, "number of at least 0 and at most 1"),
        ("gd-fraction", 1.1, "number of at least 0 and at most 1"),
        ("temperature", 0, "number above 0"),
        ("distillation-coefficient", -0.1, "number of at least 0 and at most 1"),
        ("distillation-coefficient", 1.1, "number of at least 0 and at most 1"),
        ("topk-fraction", 0, "number above 0 and at most 1"),
        ("topk-fraction", 1.1, "number above 0 and at most 1"),
        ("error-feedback", "yes", "true or false"),
        ("resume", None, "text"),
        # not among the choices
        ("mode", "adpat", "did you mean 'adapt'?"),
        ("mode", "resume", "one of train, adapt"),
        ("heads", "by_tau", "did you mean 'by-tau'?"),
        ("heads", "shared", "one of by-tau, by-architecture, per-client, none"),
        ("upload", "top-k", "did you mean 'topk'?"),
        ("upload", "sparse", "one of dense, half, int8, topk"),
        ("download", "topk", "one of dense, half, int8"),
        ("global-model", "lenet5", "did you mean 'lenet'?"),
        ("global-model", "lenet/keep-output", "one of lenet, vgg8, resnet10"),
        ("held-out-models", "mlp,squeezenet", "did you mean 'squeezenet1_"),
        ("models", "lenet/keep-outptu", "did you mean 'lenet/keep-output'?"),
        ("models", "mlp/keep-output", "a comma-separated list of lenet, vgg8"),
        ("method", "mh-pfedh", "did you mean 'mh-pfedhn'?"),
        ("method", "qqq", "one of mh-pfedhn, mh-pfedhn-g, mh-pfedhn-gd, local, fedavg"),
        ("schedule", "perclient", "did you mean 'per-client'?"),
        ("reduction", "average", "one of sum, mean"),
        ("partition", "non-iid-3", "did you mean 'non-iid-"),
        ("dataset", "cifar-10", "did you mean 'cifar10'?"),
        ("device", "gpu", "one of auto, cpu, cuda"),
        ("models", "lenet,vg8", "did you mean 'vgg8'?"),
        ("models", "lenet,", "a comma-separated list of lenet, vgg8"),
        ("models", 5, "text"),
        # not a folder's name
        ("run-name", "a/b", "letters, digits, dots, dashes or underscores"),
        ("run-name", "..", "a letter or digit first"),
        ("run-name", "-x", "a letter or digit first"),
        ("run-name", "a b", "letters, digits, dots, dashes or underscores"),
        ("run-name", "a\n", "letters, digits, dots, dashes or underscores"),
        ("run-name", "x" * 101, "up to 100"),
    ],
)
def test_a_wrong_value_is_answered_with_key_value_place_and_what_is_valid(key, value, valid):
    message = message_of({key: value}, origin="the run config")
    assert message.startswith(f"{key} is {value!r} in the run config, but must be ")
    assert valid in message
    assert_one_sentence(message)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"held-out": 10}, "held-out is 10, but must be below num-clients, which is 10."),
        ({"held-out": 3, "num-clients": 2}, "held-out is 3, but must be below num-clients, which is 2."),
        (
            {"mode": "adapt"},
            "mode is 'adapt', so resume must name the run folder or checkpoint file to start from.",
        ),
        (
            {"mode": "adapt", "resume": "results/a", "method": "fedavg"},
            "mode is 'adapt', but method 'fedavg' has no hypernetwork that could adapt.",
        ),
        ({"resume": "latest"}, "resume is 'latest', so run-name must say of which run."),
        (
            {"resume": "latest", "run-name": "a", "mode": "adapt"},
            "resume is 'latest', but mode 'adapt' starts from another run: name its folder.",
        ),
        (
            {"resume": "latest", "mode": "adapt"},
            "resume is 'latest', but mode 'adapt' starts from another run: name its folder.",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides, expected):
    assert message_of(overrides) == expected


@pytest.mark.parametrize("method", ["mh-pfedhn", "mh-pfedhn-g", "mh-pfedhn-gd"])
def test_every_method_with_a_hypernetwork_can_adapt(method):
    config = load_config({"mode": "adapt", "resume": "results/a", "method": method})
    assert (config.mode, config.resume, config.method) == ("adapt", "results/a", method)


def test_settings_of_a_profile_and_of_the_command_line_are_checked_together(profile):
    profile("mine.yaml", "dataset: cifar10\nnum-clients: 4\nheld-out: 2\n")
    assert config_of("mine.yaml").held_out == 2
    assert "held-out is 2, but must be below num-clients, which is 2" in message_of(
        {"profile": "mine.yaml", "num-clients": 2}
    )


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_whole_number_that_is_not_finite_is_refused(value):
    assert "num-rounds is " in message_of({"num-rounds": value})


def test_the_limit_of_the_seed_is_spelled_out():
    assert "2147483647" in message_of({"seed": 2**31})


def test_an_empty_list_of_models_is_refused(profile):
    assert "models is " in message_of({"profile": profile("mine.yaml", "dataset: cifar10\nmodels: []\n")})


def test_a_profile_that_is_no_name_is_refused():
    message = message_of({"profile": 5})
    assert_one_sentence(message)
    assert "profile is 5" in message
    assert "quickstart" in message


def test_an_unknown_key_is_answered_with_the_nearest_or_with_all():
    message = message_of({"learning-rate": 1})
    assert "'learning-rate'" in message
    near = message_of({"clientlr": 1}, origin="the run config")
    assert near == "There is no key 'clientlr' (the run config); did you mean 'client-lr'?"
    far = message_of({"xyzzy": 1})
    assert_one_sentence(far)
    assert all(key in far for key in KEYS)


def test_snake_case_is_not_a_second_spelling():
    assert "did you mean 'num-rounds'?" in message_of({"num_rounds": 3})


KEYS_WITH_ANY_VALUE = st.sampled_from([key for key in KEYS if key != "profile"])
ANY_VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.one_of(st.text(max_size=5), st.integers()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(key=KEYS_WITH_ANY_VALUE, value=ANY_VALUE)
def test_whatever_a_key_is_set_to_gives_a_config_or_a_sentence(key, value):
    with only_sentences_about(key):
        assert key in load_config({key: value}).to_dict()


# Flower's run config


def test_pyproject_lists_every_key_and_sets_none_but_the_profile():
    run_config = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert set(run_config) == set(KEYS)
    assert run_config.pop("profile") == DEFAULT_PROFILE
    assert set(run_config.values()) == {""}


def test_an_empty_string_means_as_the_profile_says():
    empty = dict.fromkeys(KEYS, "")
    assert load_config(empty) == load_config({})
    config = load_config(empty | {"profile": "cifar100+paper-code", "num-rounds": 3})
    assert config == config_of("cifar100+paper-code", num_rounds=3)
    assert config.num_rounds == 3


@pytest.mark.parametrize("name", ["quickstart", "cifar100-heterogeneous+paper-code", "emnist+paper-text"])
def test_a_resolved_config_loads_again_as_itself(name):
    config = config_of(name, run_name="again")
    assert load_config(config.to_dict()) == config
    assert set(config.to_dict()) == set(KEYS)


def test_a_resolved_config_loads_where_its_profile_file_is_not_there(profile, tmp_path):
    name = profile("mine.yaml", "dataset: cifar10\nnum-rounds: 7\n")
    config = config_of(name).named()
    (tmp_path / name).unlink()
    assert load_config(config.to_dict(), origin="the run config") == config


def test_choices_are_exactly_what_the_other_modules_offer():
    assert set(MODELS) == set(ARCHITECTURES)
    assert set(DATASETS) == {*DATA_SOURCES, SITES}
    assert SITES not in DATA_SOURCES


def test_every_key_has_help_and_its_default():
    listed = {key: (default, text) for key, default, text in keys_with_help()}
    assert set(listed) == set(KEYS)
    assert all(text for _, text in listed.values())
    assert listed["hn-lr"][0] == Config().hn_lr
    assert "sequential" in listed["schedule"][1]


def test_a_run_without_a_name_is_named_after_method_profile_and_time():
    name = config_of("cifar100+paper-code").named().run_name
    assert name.startswith("mh-pfedhn-cifar100-paper-code-2")
    assert load_config({"run-name": name}).run_name == name
    assert config_of("cifar100", run_name="mine").named().run_name == "mine"


def test_a_run_is_named_after_the_name_of_a_profile_file_and_not_its_folder(profile, tmp_path):
    profile("my site.yaml", "dataset: cifar10\n")
    name = config_of(str(tmp_path / "my site.yaml")).named().run_name
    assert name.startswith("mh-pfedhn-my-site-2")


def test_an_absolute_folder_is_taken_as_it_is(tmp_path):
    config = load_config({"data-dir": str(tmp_path / "d"), "results-dir": str(tmp_path / "r")})
    assert (config.data_path, config.results_path) == (tmp_path / "d", tmp_path / "r")


# The command line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (["num-rounds=20"], {"num-rounds": 20}),
        (["hn-lr=1e-3"], {"hn-lr": 0.001}),
        (["hn-lr=0.5", "anchor=false"], {"hn-lr": 0.5, "anchor": False}),
        (["schedule=joint", "schedule=sequential"], {"schedule": "sequential"}),
        (["models=lenet,vgg8"], {"models": "lenet,vgg8"}),
        (["chunk-size=auto", "held-out=2"], {"chunk-size": "auto", "held-out": 2}),
        (["chunk-size=3072", "error-feedback=true"], {"chunk-size": 3072, "error-feedback": True}),
        (["keep-local=0.*,*.norm?.*", "freeze=11.*"], {"keep-local": "0.*,*.norm?.*", "freeze": "11.*"}),
        (["data-dir=a=b"], {"data-dir": "a=b"}),
        (["data-dir=a: b"], {"data-dir": "a: b"}),
        (["data-dir=~/images"], {"data-dir": "~/images"}),
        (["run-name="], {"run-name": ""}),
        (["profile=cifar100+paper-code"], {"profile": "cifar100+paper-code"}),
    ],
)
def test_words_of_the_command_line_become_typed_overrides(words, expected):
    overrides = parse_overrides(words)
    assert overrides == expected
    assert [type(value) for value in overrides.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    "text", ["1.10", "007", "20260101_1", "1e5", "0x10", "on", "2026-01-01", "nan", "mine", "2026-13-45"]
)
def test_text_keeps_its_spelling_on_the_command_line(text):
    assert load_config(parse_overrides([f"run-name={text}"])).run_name == text


@pytest.mark.parametrize("word", ["num-rounds", "", "3", "--num-rounds 3"])
def test_a_word_without_an_equals_sign_is_refused_with_an_example(word):
    with pytest.raises(UserError, match="key=value, such as -c num-rounds=20") as caught:
        parse_overrides([word])
    assert repr(word) in str(caught.value)


def test_an_unknown_key_of_the_command_line_is_answered_with_the_nearest():
    with pytest.raises(UserError) as caught:
        parse_overrides(["num-round=3"])
    assert str(caught.value) == "There is no key 'num-round' (the command line); did you mean 'num-rounds'?"


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(key=KEYS_WITH_ANY_VALUE, text=st.text(max_size=20))
def test_whatever_is_typed_after_the_equals_sign_gives_a_config_or_a_sentence(key, text):
    with only_sentences_about(key):
        load_config(parse_overrides([f"{key}={text}"]))
