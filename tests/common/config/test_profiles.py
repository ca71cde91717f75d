"""Profiles: those of the project hold the values of the paper (PAPER-NOTES), a user's own build on them."""

import math
import sys

import pytest
import yaml
from configs import FIVE_MODELS, assert_one_sentence, config_of, message_of

from common.config import DATASETS, DEFAULT_PROFILE, SITES, load_config, profiles
from common.config.profiles import METHODS_FOLDER, PROFILE_FOLDERS, comparisons
from common.methods import built_in, find
from common.options import AUTO
from common.text import shown, split
from server_app.methods.mh_pfedhn import HyperNetworkSettings

CONF_FILES = [path for folder in PROFILE_FOLDERS for path in sorted(folder.glob("*.yaml"))]
PROFILE_FILES = [path for path in CONF_FILES if path not in comparisons().values()]


def setting(config, *keys):
    """The method's settings under these keys."""
    return tuple(config.method_settings[key] for key in keys)


# Those of the project


@pytest.mark.parametrize("path", PROFILE_FILES, ids=lambda path: path.stem)
def test_every_profile_of_the_project_loads_alone_or_joined_to_a_data_set(path):
    content = yaml.safe_load(path.read_text())
    if "dataset" in content or "base" in content:
        config = config_of(path.stem)
    else:
        assert "dataset is empty" in message_of({"profile": path.stem})
        config = config_of(f"cifar10+{path.stem}")
    assert config.dataset in DATASETS


@pytest.mark.parametrize("path", sorted(METHODS_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_of_a_method_is_of_a_built_in_one_and_holds_nothing_that_it_lacks(path):
    assert path.stem in built_in()
    content = yaml.safe_load(path.read_text())
    assert set(content) <= {"description"} | find(path.stem).options.keys()
    assert config_of("cifar10", method=path.stem).method == path.stem


def test_no_two_profiles_have_one_name():
    names = [path.stem for path in CONF_FILES]
    assert len({name.lower() for name in names}) == len(names)
    assert not {path.suffix for path in CONF_FILES} - {".yaml"}


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
    assert setting(config, "local-epochs", "batch-size", "client-momentum") == (2, 64, 0.9)
    assert setting(config, "client-lr", "client-weight-decay", "hn-lr") == (1e-3, 1e-4, 2e-4)
    assert setting(config, "schedule", "anchor") == ("per-client", False)


def test_paper_code_holds_what_the_authors_ran():
    config = config_of("cifar100+paper-code")
    assert setting(config, "local-epochs", "batch-size", "client-momentum") == (1, 64, 0.9)
    assert setting(config, "client-lr", "client-weight-decay", "hn-lr") == (5e-3, 5e-4, 2e-4)
    assert setting(config, "schedule", "anchor") == ("sequential", False)


@pytest.mark.parametrize("name", ["paper-text", "paper-code"])
def test_paper_profiles_use_the_hypernetwork_of_the_authors_code(name):
    config = config_of(f"cifar100+{name}")
    assert setting(config, "embedding-dim", "embedding-init-std") == (64, 0.002)
    assert setting(config, "hidden-layers", "hidden-dim", "chunk-size") == (3, 128, 3072)
    assert config.settings(HyperNetworkSettings).resolved_head_init_scale == 1.0


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
    assert split(config_of(name).models) == ("lenet",)
    assert split(config_of(f"{name}-heterogeneous").models) == FIVE_MODELS


def test_the_profile_of_a_consortium_is_for_sites_with_data_of_their_own():
    config = config_of("consortium")
    assert (config.dataset, config.min_clients) == (SITES, 2)
    assert setting(config, "chunk-size") == (AUTO,)
    assert config.deadline <= 600  # what a site that is away may cost a round
    assert 0 < config.checkpoint_every <= 5
    latest = config_of("consortium", resume="latest", run_name="spring")
    assert (latest.mode, latest.resume, latest.run_name) == ("train", "latest", "spring")


def test_chunk_size_is_chosen_by_the_run_unless_a_profile_says_the_papers():
    assert HyperNetworkSettings().chunk_size == AUTO
    assert setting(config_of("cifar100"), "chunk-size") == (AUTO,)
    assert setting(config_of("cifar100", chunk_size=3072), "chunk-size") == (3072,)


@pytest.mark.parametrize(
    ("name", "temperature", "coefficient"),
    [("cifar10", 15, 0.01), ("cifar100", 15, 0.01), ("tiny-imagenet", 24, 0.2), ("emnist", 10, 0.1)],
)
def test_data_set_profiles_distil_as_in_the_paper(name, temperature, coefficient):
    for each in (name, f"{name}-heterogeneous"):
        config = config_of(each, method="mh-pfedhn-gd")
        assert setting(config, "temperature", "distillation-coefficient") == (temperature, coefficient)


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
    expected = config_of("cifar100", method=SETTINGS[name].get("method", "mh-pfedhn"))
    assert config.to_dict() == expected.to_dict() | SETTINGS[name] | same
    architectures = dict.fromkeys(model.partition("/")[0] for model in split(config.models))
    assert ",".join(architectures) == MODELS_OF_SETTINGS[name + suffix]


@pytest.mark.parametrize("name", ["lenet", "vgg8", "resnet10", "mlp"])
def test_the_global_model_differs_between_profiles_and_the_clients_do_not(name):
    config = config_of(f"global-{name}")
    assert (config.method, *setting(config, "global-model")) == ("mh-pfedhn-gd", name)
    assert split(config.models) == ("vgg8", "resnet10", "mlp")


def test_lenet_vgg8_and_mlp_can_share_a_head_at_the_chunk_size_of_their_profile():
    shared, separate = config_of("shared-heads"), config_of("heads-by-architecture")
    assert setting(shared, "heads") + setting(separate, "heads") == ("by-tau", "by-architecture")
    for config in (shared, separate):
        assert split(config.models) == ("lenet", "vgg8", "mlp")
        (chunk_size,) = setting(config, "chunk-size")
        assert {math.ceil(size / chunk_size) for size in (239_856, 274_664, 408_100)} == {2}


def test_unseen_architectures_are_none_of_those_trained():
    config = config_of("unseen-architectures")
    models = [config.model_of(client, config.num_clients) for client in range(100)]
    assert set(models[:80]) == {"lenet", "vgg8", "resnet10", "mlp", "squeezenet1_0"}
    assert set(models[80:]) == {"resnet18", "squeezenet1_1"}


def test_the_default_profile_needs_no_download_and_mixes_the_five_models():
    config = load_config({})
    assert config.profile == DEFAULT_PROFILE == "quickstart"
    assert config.dataset == "fashion-mnist"
    assert split(config.models) == FIVE_MODELS
    assert config.num_clients >= config.min_clients


def test_profiles_lists_every_file_with_its_description():
    listed = dict(profiles())
    assert list(listed) == [path.stem for path in PROFILE_FILES]
    for name, description in listed.items():
        assert 0 < len(description) < 100, name


# Those of a user


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


def test_a_base_is_looked_for_beside_the_file_that_names_it(profile, tmp_path):
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    profile("deep/deeper/top.yaml", "base: ../middle.yaml\n")
    profile("deep/middle.yaml", "base: deeper/bottom.yaml\nseed: 4\n")
    profile("deep/deeper/bottom.yaml", "base: cifar10\nnum-clients: 6\n")
    config = config_of("deep/deeper/top.yaml")
    assert (config.seed, config.num_clients) == (4, 6)


def test_of_several_bases_the_last_wins(profile):
    profile("mine.yaml", "base: [cifar10, paper-text, paper-code]\n")
    config = config_of("mine.yaml")
    assert (config.dataset, *setting(config, "schedule", "local-epochs")) == ("cifar10", "sequential", 1)


def test_two_profiles_may_share_a_base(profile):
    profile("left.yaml", "base: cifar10\nnum-clients: 5\n")
    profile("right.yaml", "base: cifar10\nseed: 4\n")
    profile("both.yaml", "base: [left.yaml, right.yaml]\n")
    assert config_of("both.yaml").seed == 4


def test_joined_profiles_apply_in_order(profile):
    profile("mine.yaml", "hn-lr: 0.5\nlocal-epochs: 9\n")
    assert setting(config_of("cifar100 + paper-code + mine.yaml"), "local-epochs") == (9,)
    config = config_of("cifar100+mine.yaml+paper-code")
    assert (*setting(config, "local-epochs", "hn-lr"), config.dataset) == (1, 2e-4, "cifar100")


def test_names_of_profiles_are_taken_in_any_case_of_letters(profile):
    config = config_of("CIFAR100+Paper-Code")
    assert config.profile == "cifar100+paper-code"
    assert config == config_of("cifar100+paper-code")
    profile("mine.yaml", "base: Cifar10\n")
    assert config_of("mine.yaml").dataset == "cifar10"


def test_names_of_files_are_taken_as_they_are(profile):
    profile("Mine.yaml", "dataset: cifar10\n")
    assert config_of("Mine.yaml").profile == "Mine.yaml"


def test_overrides_win_over_every_profile():
    config = config_of("cifar100+paper-code", num_rounds=3, schedule="joint", anchor=True)
    assert (config.num_rounds, *setting(config, "schedule", "anchor")) == (3, "joint", True)
    assert setting(config, "client-lr") == (5e-3,)


def test_an_empty_text_in_a_profile_clears_what_its_base_has_set(profile):
    profile("kept.yaml", "base: cifar10\nkeep-local: 0.*\n")
    profile("cleared.yaml", "base: kept.yaml\nkeep-local: ''\n")
    assert (config_of("kept.yaml").keep_local, config_of("cleared.yaml").keep_local) == ("0.*", "")
    profile("wrong.yaml", "base: kept.yaml\nmodels: ''\n")
    assert "models is empty in wrong.yaml" in message_of({"profile": "wrong.yaml"})


@pytest.mark.parametrize("files", [{"a.yaml": "a.yaml"}, {"a.yaml": "b.yaml", "b.yaml": "c.yaml", "c.yaml": "a.yaml"}])
def test_a_profile_that_is_its_own_base_is_refused_with_its_chain(profile, files):
    for name, base in files.items():
        profile(name, f"base: {base}\n")
    message = message_of({"profile": "a.yaml"})
    assert message == f"Profile 'a.yaml' is its own base: {' -> '.join([*files, 'a.yaml'])}."


def test_a_profile_that_is_its_own_base_by_another_path_is_refused_too(profile, tmp_path):
    (tmp_path / "deep").mkdir()
    profile("a.yaml", "base: deep/../a.yaml\n")
    assert message_of({"profile": "a.yaml"}) == "Profile 'deep/../a.yaml' is its own base: a.yaml -> deep/../a.yaml."


@pytest.mark.parametrize("more", ["", "run-name: mine\n", "run-name: mine\nmethod: local\nresume: ''\n"])
def test_a_profile_that_names_a_profile_is_told_of_base(profile, more):
    message = message_of({"profile": profile("mine.yaml", f"profile: cifar10\n{more}")})
    assert message == "profile is set in mine.yaml, which is one itself; use base to build on another."


def test_an_unknown_profile_is_answered_with_the_nearest_and_all_names():
    message = message_of({"profile": "cifra100"})
    assert "\n" not in message
    assert "profile 'cifra100'" in message
    assert "did you mean 'cifar100'?" in message
    assert "tiny-imagenet-heterogeneous" in message


def test_an_unknown_name_in_a_join_is_the_one_that_is_reported():
    assert "profile 'papercode'; did you mean 'paper-code'?" in message_of({"profile": "cifar100+papercode"})


@pytest.mark.parametrize("name", ["", "+", "cifar100+", "+cifar100", "cifar100++paper-code"])
def test_a_join_with_a_gap_is_refused(name):
    assert message_of({"profile": name}).startswith("There is no profile '' (known profiles: ")


@pytest.mark.parametrize(
    "name", ["nowhere.yaml", "nowhere.yml", "x" * 300 + ".yaml", "a\0b.yaml", "no/where", "no/where.yml"]
)
def test_a_profile_file_that_is_not_there_is_refused_without_a_list_of_all_profiles(profile, tmp_path, name):
    message = message_of({"profile": name})
    assert message == f"profile {shown(name)} names a file, but there is no such file in {tmp_path}."
    absolute = str(tmp_path / "nowhere.yaml")
    assert message_of({"profile": absolute}) == f"profile {shown(absolute)} names a file, but there is no such file."


def test_a_folder_or_a_file_of_another_kind_is_no_profile(profile, tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "sub").mkdir()
    profile("sub/small.txt", "base: cifar10\n")
    assert message_of({"profile": "folder.yaml"}) == "profile 'folder.yaml' names a file, but is a folder."
    assert message_of({"profile": "sub/small.txt"}).endswith("names a file, but its name must end in .yaml or .yml.")
    profile("sub/config.yaml", "")
    expected = "names a file, but is a folder; a run is repeated by the config.yaml in its folder."
    assert message_of({"profile": "sub/"}).endswith(expected)


def test_a_profile_that_is_no_name_is_refused():
    message = message_of({"profile": 5})
    assert_one_sentence(message)
    assert "profile is 5" in message
    assert "quickstart" in message


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
        "dataset: cifar10\n? [a, b]\n: 3\n",
        "dataset: cifar10\n{a: b}: 3\n",
    ],
)
def test_a_file_that_is_not_yaml_of_keys_and_values_is_refused_by_name(profile, content):
    message = message_of({"profile": profile("broken.yaml", content)})
    assert "\n" not in message
    assert message.startswith("broken.yaml ")


def test_a_mistake_in_yaml_is_named_with_its_place(profile):
    message = message_of({"profile": profile("broken.yaml", "dataset: cifar10\n? [a, b]\n: 3\n")})
    assert message == "broken.yaml is not readable as YAML: line 2, column 3: found unhashable key."


def test_a_file_that_is_not_text_is_refused_by_name(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    message = message_of({"profile": str(path)})
    assert "not readable as YAML" in message
    assert str(path) in message


def test_a_file_that_cannot_be_read_is_refused_by_name(profile, tmp_path):
    # Permissions would not stop root.
    (tmp_path / "mine.yaml").symlink_to("/proc/self/mem")
    assert message_of({"profile": "mine.yaml"}) == "mine.yaml cannot be read: Input/output error."


@pytest.mark.parametrize("content", ["run-name: 2026-13-45\n", "seed: !!int x\n"])
def test_yaml_whose_values_cannot_be_made_is_refused_by_name(profile, content):
    assert "broken.yaml" in message_of({"profile": profile("broken.yaml", content)})


@pytest.mark.parametrize("content", ["5", "", "true", "{a: b}", "[[cifar10]]", "[5]"])
def test_a_base_that_is_no_name_is_refused(profile, content):
    profile("mine.yaml", f"dataset: cifar10\nbase: {content}\n")
    message = message_of({"profile": "mine.yaml"})
    assert message.startswith("base is ")
    assert "in mine.yaml, but must be the name of a profile or a list of names." in message


@pytest.mark.parametrize("key", ["1", "on", "null", "2026-01-01", "3.5"])
def test_a_key_that_is_not_text_is_an_unknown_key(profile, key):
    message = message_of({"profile": profile("mine.yaml", f"dataset: cifar10\n{key}: 2\n")})
    assert "There is no key" in message
    assert "mine.yaml" in message
    assert "did you mean" not in message


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("num-round: 3", ["'num-round'", "'num-rounds'"]),
        ("num-rounds: many", ["num-rounds is 'many'", "whole number of at least 1"]),
        ("num-rounds:", ["num-rounds is None", "whole number of at least 1"]),
        ("schedule: jiont", ["schedule is 'jiont'", "did you mean 'joint'?"]),
        ("client-lr: 0", ["client-lr is 0", "number above 0"]),
        ("method: 7", ["method is '7'", "one of fedavg, local, mh-pfedhn"]),
        ("method: [fedavg]", ["method is ['fedavg']", "text"]),
        ("method:", ["method is None", "text"]),
        ("method: fedvag", ["method is 'fedvag'", "did you mean 'fedavg'?"]),
        ("models: [lenet, 5]", ["models is ['lenet', 5]", "a comma-separated list of lenet, vgg8"]),
        ("keep-local: [0.*, 5]", ["keep-local is ['0.*', 5]", "text, or a list of texts"]),
        ("results-dir: [a]", ["results-dir is ['a']", "text"]),
    ],
)
def test_a_mistake_in_a_profile_names_the_file(profile, line, parts):
    message = message_of({"profile": profile("mine.yaml", f"dataset: cifar10\n{line}\n")})
    assert_one_sentence(message.replace("0.*", "0*"))
    for part in ["mine.yaml", *parts]:
        assert part in message


# Settings of methods in profiles


def test_a_file_that_names_no_method_may_hold_settings_of_any(profile):
    profile("mine.yaml", "dataset: cifar10\nhn-lr: 0.5\ntemperature: 3\nlocal-epochs: 4\n")
    local = config_of("mine.yaml", method="local")
    assert local.method_settings["local-epochs"] == 4
    assert not {"hn-lr", "temperature"} & set(local.to_dict())
    assert setting(config_of("mine.yaml"), "hn-lr", "local-epochs") == (0.5, 4)
    assert setting(config_of("mine.yaml", method="mh-pfedhn-gd"), "hn-lr", "temperature") == (0.5, 3)


@pytest.mark.parametrize("spelling", ["fedavg", "FedAvg"])
def test_a_file_that_names_its_method_is_held_to_it(profile, spelling):
    profile("mine.yaml", f"dataset: cifar10\nmethod: {spelling}\nhn-lr: 0.5\n")
    assert message_of({"profile": "mine.yaml"}) == (
        "Method 'fedavg' has no hn-lr (mine.yaml): it is a setting of mh-pfedhn, mh-pfedhn-g, mh-pfedhn-gd."
    )


def test_a_file_that_names_another_method_than_the_runs_is_not_held_to_either(profile):
    profile("mine.yaml", "dataset: cifar10\nmethod: mh-pfedhn\nhn-lr: 0.5\n")
    assert "hn-lr" not in config_of("mine.yaml", method="local").to_dict()


def test_a_setting_that_is_left_out_is_checked_all_the_same(profile):
    profile("mine.yaml", "dataset: cifar10\nhn-lr: fast\n")
    message = message_of({"profile": "mine.yaml", "method": "local"})
    assert message == "hn-lr is 'fast' in mine.yaml, but must be a number above 0."


def test_the_method_of_the_last_profile_that_names_one_runs(profile):
    profile("first.yaml", "dataset: cifar10\nmethod: local\n")
    profile("second.yaml", "method: FedAvg\n")
    assert config_of("first.yaml+second.yaml").method == "fedavg"
    assert config_of("second.yaml+first.yaml").method == "local"
    assert config_of("first.yaml+cifar10").method == "local"


def test_what_conf_says_of_a_method_lies_below_every_profile(profile, tmp_path, monkeypatch):
    # The package's function `profiles` hides the module of its name.
    monkeypatch.setattr(sys.modules["common.config.profiles"], "METHODS_FOLDER", tmp_path)
    profile("local.yaml", "description: Alone\nlocal-epochs: 7\nbatch-size: 5\n")
    profile("mine.yaml", "dataset: cifar10\nbatch-size: 6\n")
    assert setting(config_of("mine.yaml", method="local"), "local-epochs", "batch-size") == (7, 6)
    assert setting(config_of("mine.yaml", method="fedavg"), "local-epochs", "batch-size") == (2, 6)
    profile("local.yaml", "hn-lr: 0.5\n")
    message = message_of({"profile": "mine.yaml", "method": "local"})
    assert message.startswith("Method 'local' has no hn-lr (")


def test_the_packed_settings_of_a_run_config_are_refused_in_a_profile(profile):
    for content in ("hn-lr=0.1", "{hn-lr: 0.1}"):
        profile("mine.yaml", f"dataset: cifar10\nmethod-settings: {content}\n")
        message = message_of({"profile": "mine.yaml"})
        assert_one_sentence(message)
        assert message.startswith("method-settings is set in mine.yaml, but is for Flower's run config")


def test_a_method_that_is_none_is_refused_even_where_another_is_chosen(profile):
    name = profile("mine.yaml", "base: quickstart\nmethod: fedprox\n")
    message = message_of({"profile": name, "method": "local"})
    assert message.startswith("method is 'fedprox' in mine.yaml, but must be one of fedavg, local")
