"""Overrides: of which method their keys are, what may stand under them, and the sentences that a wrong one gets."""

import json
import math
import tomllib
from pathlib import Path

import pytest
from configs import assert_one_sentence, config_of, message_of, only_sentences_about, with_method
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import (
    DATASETS,
    DEFAULT_PROFILE,
    METHOD_SETTINGS,
    MODELS,
    RUN_OPTIONS,
    RUNS,
    SITES,
    keys_with_help,
    load_config,
    load_run_config,
    parse_overrides,
)
from common.data.datasets import DATASETS as DATA_SOURCES
from common.errors import UserError
from common.methods import built_in, find
from common.models import MODELS as ARCHITECTURES
from common.text import shown, split
from server_app.methods.mh_pfedhn import HyperNetworkSettings

PROJECT = Path(__file__).resolve().parents[3]
METHOD_KEYS = sorted({key for name in built_in() for key in find(name).options})
KEYS = [*RUN_OPTIONS, *METHOD_KEYS]


# Which keys there are


def test_a_setting_that_the_method_lacks_is_refused_with_the_methods_that_have_it():
    assert message_of({"method": "local", "hn-lr": 0.1}) == (
        "Method 'local' has no hn-lr (the command line): it is a setting of mh-pfedhn, mh-pfedhn-g, mh-pfedhn-gd."
    )
    assert message_of({"temperature": 3}, origin="the run config") == (
        "Method 'mh-pfedhn' has no temperature (the run config): it is a setting of mh-pfedhn-gd."
    )
    assert message_of({"method": "LOCAL", METHOD_SETTINGS: "hn-lr=0.1"}).startswith("Method 'local' has no hn-lr")


@pytest.mark.parametrize("method", built_in())
def test_a_config_holds_all_settings_of_its_method_and_no_others(method):
    config = load_config({"method": method})
    assert config.method_settings.keys() == find(method).options.keys()
    assert config.to_dict().keys() == RUN_OPTIONS.keys() | find(method).options.keys()
    for key in set(METHOD_KEYS) - set(find(method).options):
        assert message_of({"method": method, key: 1}).startswith(f"Method {method!r} has no {key} ")


def test_every_run_key_is_told_apart_from_those_of_methods():
    assert not set(RUN_OPTIONS) & set(METHOD_KEYS)
    assert METHOD_SETTINGS not in KEYS


def test_an_unknown_key_is_answered_with_the_nearest_or_with_all():
    message = message_of({"learning-rate": 1})
    assert "'learning-rate'" in message
    near = message_of({"clientlr": 1}, origin="the run config")
    assert near == "There is no key 'clientlr' (the run config); did you mean 'client-lr'?"
    far = message_of({"xyzzy": 1})
    assert_one_sentence(far)
    assert all(key in far for key in [*RUN_OPTIONS, *find("mh-pfedhn").options])


def test_a_misspelled_key_of_another_method_is_recognised():
    assert message_of({"method": "local", "hnlr": 1}).endswith("did you mean 'hn-lr'?")


def test_snake_case_is_not_a_second_spelling():
    assert "did you mean 'num-rounds'?" in message_of({"num_rounds": 3})


@pytest.mark.parametrize("key", [5, None, True, ("a",)])
def test_a_key_that_is_no_text_is_an_unknown_key(key):
    message = message_of({key: 1})
    assert message.startswith(f"There is no key {key!r} (the command line); known keys: ")


# Values


def test_a_number_as_yaml_1_1_reads_it_is_a_number(profile):
    # YAML 1.1 wants a dot: 1e-3 is a string to it.
    profile(
        "mine.yaml", "dataset: cifar10\nhn-lr: 1e-3\nembedding-init-std: 2E-3\nclient-lr: '0.25'\nmax-params: 1e6\n"
    )
    config = config_of("mine.yaml")
    values = [config.method_settings[key] for key in ("hn-lr", "embedding-init-std", "client-lr")]
    assert values == [0.001, 0.002, 0.25]
    assert all(type(value) is float for value in values)
    assert config.max_params == 1_000_000
    assert type(config.max_params) is int


def test_whole_numbers_may_come_as_floats_and_floats_as_whole_numbers():
    # `flwr run -c` keeps the type that TOML gives a value.
    config = load_config({"num-rounds": 20.0, "client-lr": 1, "head-init-scale": 2})
    values = (config.num_rounds, *(config.method_settings[key] for key in ("client-lr", "head-init-scale")))
    assert values == (20, 1.0, 2.0)
    assert [type(value) for value in values] == [int, float, float]


def test_names_that_look_like_numbers_become_text():
    config = load_config({"run-name": 7, "data-dir": 2026})
    assert (config.run_name, config.data_dir) == ("7", "2026")


@pytest.mark.parametrize(
    ("key", "typed", "taken"),
    [
        ("models", "LeNet,ResNet10", "lenet,resnet10"),
        ("models", " VGG8 , LeNet/Keep-Output ", "vgg8,lenet/keep-output"),
        ("models", ["LeNet", "MLP"], "lenet,mlp"),
        ("method", "FedAvg", "fedavg"),
        ("method", "MH-pFedHN", "mh-pfedhn"),
        ("method", "MH-PFEDHN-GD", "mh-pfedhn-gd"),
        ("profile", "CIFAR100", "cifar100"),
        ("dataset", "CIFAR10", "cifar10"),
        ("schedule", "Joint", "joint"),
        ("schedule", " sequential ", "sequential"),
        ("heads", "By-Tau", "by-tau"),
        ("upload", "TopK", "topk"),
        ("device", "CPU", "cpu"),
        ("mode", "TRAIN", "train"),
        ("global-model", "LeNet", "lenet"),
        ("chunk-size", "Auto", "auto"),
        ("embedding-lr", "AUTO", "auto"),
    ],
)
def test_names_are_taken_in_any_case_of_letters(key, typed, taken):
    assert load_config(with_method(key, typed)).to_dict()[key] == taken


def test_names_of_the_users_own_keep_their_letters():
    config = load_config({"run-name": "Mine", "data-dir": "Data", "keep-local": "Head.*"})
    assert (config.run_name, config.data_dir, config.keep_local) == ("Mine", "Data", "Head.*")


def test_models_may_be_a_list_in_a_profile(profile):
    profile("mine.yaml", "dataset: cifar10\nmodels: [lenet, vgg8]\n")
    assert config_of("mine.yaml").models == "lenet,vgg8"


def test_models_takes_variants_of_an_architecture(profile):
    profile("mine.yaml", "dataset: cifar100\nmodels: [lenet, vgg8/keep-output]\n")
    assert split(config_of("mine.yaml").models) == ("lenet", "vgg8/keep-output")
    assert load_config({"models": "resnet10/freeze-last-fifth"}).models == "resnet10/freeze-last-fifth"


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
    assert load_config(overrides).settings(HyperNetworkSettings).resolved_head_init_scale == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("participation", 1), ("participation", 1e-9), ("quorum", 1), ("num-rounds", 1), ("num-clients", 1)],
        *[("seed", 0), ("seed", 2**31 - 1), ("client-momentum", 0), ("client-momentum", 1), ("client-weight-decay", 0)],
        *[("embedding-init-std", 0), ("max-samples-per-class", 0), ("chunk-size", 1), ("min-clients", 1)],
        *[("held-out", 0), ("held-out", 9), ("gd-fraction", 0), ("gd-fraction", 1), ("topk-fraction", 1)],
        *[("distillation-coefficient", 0), ("distillation-coefficient", 1), ("checkpoint-every", 0)],
        *[("chunk-size", "auto"), ("error-feedback", True), ("clipping-norm", 0), ("noise-multiplier", 1e-3)],
        *[("privacy-delta", 0.5), ("evaluate-every", 1), ("max-params", 1)],
    ],
)
def test_the_ends_of_a_range_are_valid(key, value):
    assert load_config(with_method(key, value)).to_dict()[key] == value


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        # wrong type
        ("num-rounds", "many", "a whole number of at least 1."),
        ("num-rounds", 2.5, "a whole number of at least 1."),
        ("num-rounds", "2.5", "a whole number of at least 1."),
        ("num-rounds", True, "a whole number of at least 1."),
        ("num-rounds", [3], "a whole number of at least 1."),
        ("num-rounds", None, "a whole number of at least 1."),
        ("num-rounds", "", "a whole number of at least 1."),
        ("client-lr", "fast", "a number above 0."),
        ("client-lr", True, "a number above 0."),
        ("client-lr", [0.1], "a number above 0."),
        ("client-lr", "nan", "a number above 0."),
        ("client-lr", "", "a number above 0."),
        ("head-init-scale", "large", "a number above 0 or auto."),
        ("anchor", "true", "true or false."),
        ("anchor", 1, "true or false."),
        ("anchor", None, "true or false."),
        ("anchor", "", "true or false."),
        ("run-name", ["a"], "text."),
        ("data-dir", None, "text that is not empty."),
        ("method", ["local"], "text that is not empty."),
        ("method", None, "text that is not empty."),
        ("keep-local", {"a": 1}, "text, or a list of texts."),
        # out of range
        ("num-rounds", 0, "a whole number of at least 1."),
        ("num-clients", -3, "a whole number of at least 0 and at most 1000000."),
        ("test-fraction", 0, "a number above 0 and at most 0.9."),
        ("test-fraction", 1, "a number above 0 and at most 0.9."),
        ("validation-fraction", -0.1, "a number of at least 0 and at most 0.9."),
        ("min-samples", -1, "a whole number of at least 0."),
        ("seed", -1, "a whole number of at least 0 and at most 2147483647."),
        ("max-samples-per-class", -1, "a whole number of at least 0."),
        ("participation", 0, "a number above 0 and at most 1."),
        ("participation", 1.01, "a number above 0 and at most 1."),
        ("quorum", 0, "a number above 0 and at most 1."),
        ("quorum", "1e-400", "a number above 0 and at most 1."),
        ("client-lr", 0, "a number above 0."),
        ("client-lr", math.inf, "a number above 0."),
        ("client-lr", math.nan, "a number above 0."),
        ("client-momentum", 1.1, "a number of at least 0 and at most 1."),
        ("client-weight-decay", -1e-9, "a number of at least 0."),
        ("dirichlet-alpha", 0, "a number above 0."),
        ("deadline", 0, "a number above 0."),
        ("max-params", 0, "a whole number of at least 1."),
        ("max-params", 1.5, "a whole number of at least 1."),
        ("max-delta-norm", 0.0, "a number above 0."),
        ("head-init-scale", 0, "a number above 0 or auto."),
        ("chunk-size", 0, "a whole number of at least 1 or auto."),
        ("chunk-size", 2.5, "a whole number of at least 1 or auto."),
        ("chunk-size", "big", "a whole number of at least 1 or auto."),
        ("chunk-size", True, "a whole number of at least 1 or auto."),
        ("num-rounds", "auto", "a whole number of at least 1."),
        ("held-out", -1, "a whole number of at least 0."),
        ("checkpoint-every", -1, "a whole number of at least 0."),
        ("gd-fraction", -0.1, "a number of at least 0 and at most 1."),
        ("gd-fraction", 1.1, "a number of at least 0 and at most 1."),
        ("temperature", 0, "a number above 0."),
        ("distillation-coefficient", -0.1, "a number of at least 0 and at most 1."),
        ("distillation-coefficient", 1.1, "a number of at least 0 and at most 1."),
        ("topk-fraction", 0, "a number above 0 and at most 1."),
        ("topk-fraction", 1.1, "a number above 0 and at most 1."),
        ("noise-multiplier", 0, "a number of at least 0.001."),
        ("error-feedback", "yes", "true or false."),
        ("resume", None, "text."),
        # not among the choices
        ("mode", "adpat", "one of train, adapt; did you mean 'adapt'?"),
        ("mode", "resume", "one of train, adapt"),
        ("mode", "", "one of train, adapt."),
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
        ("method", "qqq", f"one of {', '.join(built_in())}, or package.module:Class"),
        ("method", "", "one of fedavg, local, mh-pfedhn"),
        ("schedule", "perclient", "did you mean 'per-client'?"),
        ("reduction", "average", "one of sum, mean"),
        ("partition", "non-iid-3", "did you mean 'non-iid-"),
        ("dataset", "cifar-10", "did you mean 'cifar10'?"),
        ("dataset", 5, "one of fashion-mnist, cifar10"),
        ("device", "gpu", "one of auto, cpu, cuda"),
        ("models", "lenet,vg8", "did you mean 'vgg8'?"),
        ("models", "lenet,", "a comma-separated list of lenet, vgg8"),
        ("models", "", "a comma-separated list of lenet, vgg8"),
        ("models", [], "a comma-separated list of lenet, vgg8"),
        ("models", ["lenet", 5], "a comma-separated list of lenet, vgg8"),
        ("models", 5, "a comma-separated list of lenet, vgg8"),
        ("schedule", ["joint"], "one of joint, per-client, sequential."),
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
    message = message_of(with_method(key, value), origin="the run config")
    assert message.startswith(f"{key} is {'empty' if value == '' else shown(value)} in the run config, but must be ")
    assert valid in message
    assert_one_sentence(message.replace("package.module", "package"))


@pytest.mark.parametrize("key", ["num-rounds", "batch-size", "max-samples-per-class", "local-epochs"])
def test_a_whole_number_that_no_message_of_flower_holds_is_refused(key):
    assert message_of({key: 2**63}).endswith(f", and at most {2**63 - 1}.")
    assert message_of(parse_overrides([f"{key}=1e30"])).endswith(f", and at most {2**63 - 1}.")
    assert load_config({key: 2**63 - 1, "num-clients": 3}).num_clients == 3


@pytest.mark.parametrize(
    "key", [*RUN_OPTIONS, "hn-lr", "chunk-size", "method-settings", pytest.param("n" * 3000, id="unknown")]
)
@pytest.mark.parametrize("value", ["9" * 3000, 10**3000, ["x" * 3000]], ids=["text", "number", "list"])
def test_no_sentence_repeats_what_is_longer_than_it(key, value):
    sentence = ""
    try:
        load_config({key: value})
    except UserError as error:
        sentence = str(error)
    assert len(sentence) < 1500


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 10**400])
def test_a_whole_number_that_is_not_finite_is_refused(value):
    assert "num-rounds is " in message_of({"num-rounds": value})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"held-out": 10}, "held-out is 10, but must be below num-clients, which is 10."),
        ({"held-out": 3, "num-clients": 2}, "held-out is 3, but must be below num-clients, which is 2."),
        (
            {"num-clients": 3, "held-out-models": "mlp"},
            "held-out-models is set, but held-out is 0: say how many clients are held out.",
        ),
        (
            {"mode": "adapt"},
            "mode is 'adapt', so resume must name the run folder or checkpoint file to start from.",
        ),
        (
            {"mode": "adapt", "resume": "results/a", "method": "fedavg"},
            "mode is 'adapt', but method 'fedavg' has nothing frozen that could adapt.",
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
        (
            {"dataset": "sites", "clipping-norm": 0.5},
            "clipping-norm is 0.5, but dataset is 'sites', and each site decides how it protects what it sends: set "
            "privacy in its own file.",
        ),
        (
            {"dataset": "sites", "test-fraction": 0.5},
            "test-fraction is 0.5, but dataset is 'sites', and each site splits its own data: leave test-fraction out.",
        ),
        (
            {"dataset": "sites", "validation-fraction": 0.1},
            "validation-fraction is 0.1, but dataset is 'sites', and each site splits its own data: leave "
            "validation-fraction out.",
        ),
        (
            {"dataset": "sites", "min-samples": 5},
            "min-samples is 5, but dataset is 'sites', and each site splits its own data: leave min-samples out.",
        ),
        (
            {"num-clients": 0},
            "num-clients is 0, which stands for all owners of samples, but partition is 'non-iid-1': set num-clients "
            "to a number above 0, or partition to by-client.",
        ),
        (
            {"min-samples": 5},
            "min-samples is 5, but partition is 'non-iid-1', which gives every client its classes once and has no draw "
            "to repeat: leave min-samples out, or choose another partition.",
        ),
        (
            {"evaluate-after-training": True, "clipping-norm": 0.5},
            "evaluate-after-training is true, but clipping-norm is 0.5, and a client that adds noise does not tell how "
            "a model does that was trained without it: leave one of the two out.",
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


def test_choices_are_exactly_what_the_other_modules_offer():
    assert set(MODELS) == set(ARCHITECTURES)
    assert set(DATASETS) == {*DATA_SOURCES, SITES}
    assert SITES not in DATA_SOURCES


KEYS_WITH_ANY_VALUE = st.sampled_from([key for key in [*KEYS, METHOD_SETTINGS] if key != "profile"])
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
    overrides = {key: value} if key == METHOD_SETTINGS else with_method(key, value)
    with only_sentences_about(key):
        config = load_config(overrides)
        assert key in config.to_dict() or key == METHOD_SETTINGS


# The settings of a method, packed into one key


@pytest.mark.parametrize(
    "packed",
    [
        "hn-lr=0.25 anchor=false heads=None chunk-size=512",
        "  hn-lr=0.25   anchor=false\nheads='none' chunk-size=512 ",
        '{"hn-lr": 0.25, "anchor": false, "heads": "none", "chunk-size": 512}',
        ' {"hn-lr": "0.25", "anchor": false, "heads": "NONE", "chunk-size": 512.0}\n',
    ],
)
def test_settings_of_a_method_may_come_packed_as_words_or_as_json(packed):
    config = load_config({METHOD_SETTINGS: packed})
    assert config == load_config({"hn-lr": 0.25, "anchor": False, "heads": "none", "chunk-size": 512})


def test_a_key_of_its_own_wins_over_the_packed_one():
    assert load_config({METHOD_SETTINGS: "hn-lr=0.5", "hn-lr": 0.25}).method_settings["hn-lr"] == 0.25


@pytest.mark.parametrize("packed", ["", "  ", "{}"])
def test_packed_settings_may_be_none(packed):
    assert load_config({METHOD_SETTINGS: packed}) == load_config({})


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (5, "but must be text such as 'hn-lr=0.001 anchor=true'."),
        (["hn-lr=1"], "but must be text such as"),
        ("hn-lr", "but must be JSON or text such as 'hn-lr=0.001 anchor=true': 'hn-lr' is not of the form key=value."),
        ("[1]", "'[1]' is not of the form key=value."),
        ("hn-lr='0.1", "No closing quotation."),
        ('{"hn-lr"', "Expecting ':' delimiter"),
    ],
)
def test_packed_settings_that_cannot_be_read_are_refused(packed, words):
    message = message_of({METHOD_SETTINGS: packed}, origin="the run config")
    assert message.startswith(f"method-settings is {packed!r} in the run config, ")
    assert words in message


@pytest.mark.parametrize("key", ["num-rounds", "method", "profile", "base", METHOD_SETTINGS])
@pytest.mark.parametrize("form", ["{}=x", '{{"{}": "x"}}'])
def test_a_key_of_every_run_is_not_packed(key, form):
    message = message_of({METHOD_SETTINGS: form.format(key)})
    assert message == (
        f"method-settings holds {key} in the command line, which is a key of every run: set it beside method-settings."
    )


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        ("hn-lr=fast", "hn-lr is 'fast' in the run config, but must be a number above 0."),
        ('{"hn-lr": NaN}', "hn-lr is nan in the run config, but must be a number above 0."),
        ('{"hn-lr": [1]}', "hn-lr is [1] in the run config, but must be a number above 0."),
        ("hn-lr=", "hn-lr is empty in the run config, but must be a number above 0."),
        ("hnlr=1", "There is no key 'hnlr' (the run config); did you mean 'hn-lr'?"),
    ],
)
def test_packed_settings_are_checked_as_others_are(packed, message):
    assert message_of({METHOD_SETTINGS: packed}, origin="the run config") == message


# Flower's run config


def test_pyproject_lists_the_keys_of_every_run_and_sets_none_but_the_profile():
    # `flwr run -c` takes no other keys than these; a method whose settings it does not list has METHOD_SETTINGS.
    run_config = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert {*RUN_OPTIONS, METHOD_SETTINGS, RUNS} <= set(run_config)
    assert set(run_config) <= {*KEYS, METHOD_SETTINGS, RUNS}
    ours = set().union(*(find(name).options for name in ("local", "fedavg", "mh-pfedhn", "mh-pfedhn-gd")))
    assert ours <= set(run_config)
    assert run_config.pop("profile") == DEFAULT_PROFILE
    assert set(run_config.values()) == {""}


EMPTY = dict.fromkeys([*KEYS, METHOD_SETTINGS], "")


def test_in_flowers_run_config_an_empty_string_means_as_the_profile_says():
    assert load_run_config(EMPTY) == load_config({})
    config = load_run_config(EMPTY | {"profile": "cifar100+paper-code", "num-rounds": 3})
    assert config == config_of("cifar100+paper-code", num_rounds=3)
    assert config.num_rounds == 3


@pytest.mark.parametrize("method", built_in())
def test_flowers_run_config_lists_settings_of_other_methods_and_sets_them_not(method):
    config = load_run_config(EMPTY | {"method": method, METHOD_SETTINGS: "local-epochs=7"})
    assert config.method == method
    assert config.method_settings["local-epochs"] == 7


def test_a_mistake_in_flowers_run_config_is_said_to_stand_there():
    with pytest.raises(UserError, match=r"^num-rounds is 0 in the run config, but must be "):
        load_run_config(EMPTY | {"num-rounds": 0})


def test_elsewhere_an_empty_string_is_a_value(profile):
    for key in ("models", "method", "num-rounds", "schedule", "mode", "data-dir", "results-dir", "partition"):
        assert message_of({key: ""}).startswith(f"{key} is empty in the command line, but must be ")
    for key in ("resume", "run-name", "keep-local", "freeze", "held-out-models"):
        assert load_config({key: ""}).to_dict()[key] == ""
    assert "dataset is empty" in message_of({"dataset": ""})
    profile("mine.yaml", "dataset: cifar10\nkeep-local: 0.*\nrun-name: a\n")
    config = config_of("mine.yaml", keep_local="", run_name="")
    assert (config.keep_local, config.run_name) == ("", "")


@pytest.mark.parametrize("method", ["mh-pfedhn", "mh-pfedhn-gd", "local"])
@pytest.mark.parametrize("name", ["quickstart", "cifar100-heterogeneous+paper-code", "emnist+paper-text"])
def test_a_resolved_config_loads_again_as_itself(name, method):
    config = config_of(name, run_name="again", method=method)
    assert load_config(config.to_dict()) == config
    assert load_run_config(EMPTY | config.to_run_config()) == config
    assert set(config.to_run_config()) == {*RUN_OPTIONS, METHOD_SETTINGS}


def test_a_run_config_holds_what_flower_and_toml_can_carry():
    run_config = config_of("cifar100", method="mh-pfedhn-gd").to_run_config()
    assert {type(value) for value in run_config.values()} <= {bool, int, float, str}
    assert json.loads(run_config[METHOD_SETTINGS])["temperature"] == 15


def test_a_resolved_config_loads_where_its_profile_file_is_not_there(profile, tmp_path):
    name = profile("mine.yaml", "dataset: cifar10\nnum-rounds: 7\nkeep-local: 0.*\n")
    config = config_of(name).named()
    (tmp_path / name).unlink()
    assert load_run_config(EMPTY | config.to_run_config()) == config
    assert load_config(config.to_run_config()) == config


# Help


def test_every_key_has_help_and_its_default():
    listed = {key: (of, default, text) for of, key, default, text in keys_with_help()}
    assert set(listed) == set(KEYS)
    assert all(text for _, _, text in listed.values())
    assert listed["hn-lr"][:2] == ("mh-pfedhn, mh-pfedhn-g, mh-pfedhn-gd", HyperNetworkSettings().hn_lr)
    assert listed["local-epochs"][0] == ", ".join(built_in())
    assert listed["num-rounds"][0] == ""
    assert listed["run-name"][1] == '""'
    assert "sequential" in listed["schedule"][2]
    assert "[section 4.1" in listed["batch-size"][2]
    assert not any("/keep-output" in text for _, _, text in listed.values())


def test_every_key_is_listed_once():
    listed = [key for _, key, _, _ in keys_with_help()]
    assert len(listed) == len(set(listed))


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
        (["num-rounds="], {"num-rounds": ""}),
        (["profile=cifar100+paper-code"], {"profile": "cifar100+paper-code"}),
        (["method-settings=hn-lr=1 heads=none"], {"method-settings": "hn-lr=1 heads=none"}),
        (["of-a-plugin=2.5"], {"of-a-plugin": 2.5}),
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
    with pytest.raises(UserError) as caught:
        parse_overrides(["num-clients=3", word])
    assert (
        str(caught.value)
        == f"-c {word!r} is not of the form key=value, such as -c num-rounds=20; a profile stands before -c."
    )


def test_an_unknown_key_of_the_command_line_is_answered_with_the_nearest():
    message = message_of(parse_overrides(["num-round=3"]))
    assert message == "There is no key 'num-round' (the command line); did you mean 'num-rounds'?"


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(key=KEYS_WITH_ANY_VALUE, text=st.text(max_size=20))
def test_whatever_is_typed_after_the_equals_sign_gives_a_config_or_a_sentence(key, text):
    method = {} if key in RUN_OPTIONS or key == METHOD_SETTINGS else with_method(key, text)
    with only_sentences_about(key):
        load_config(method | parse_overrides([f"{key}={text}"]))
