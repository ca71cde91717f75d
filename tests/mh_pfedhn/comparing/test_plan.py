"""From a comparison to its runs, and what is said to mistakes in it."""

import pytest
import yaml

from common.config import load_config
from common.errors import UserError
from mh_pfedhn.comparing.plan import make_plan

VALIDATION = "validation-fraction"


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plan(tmp_path):
    """The plan of what a file of this name says, in YAML or as a mapping."""

    def plan(content, overrides=(), stem="mine", **options):
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        (tmp_path / f"{stem}.yaml").write_text(text)
        return make_plan(f"{stem}.yaml", dict(overrides), **options)

    return plan


def names(plan):
    return [run.name for run in plan.runs]


def values(plan, key):
    return [run.config.to_dict()[key] for run in plan.runs]


# What runs


def test_methods_times_settings_times_seeds_one_seed_after_the_other(plan, tmp_path):
    found = plan("""
description: two
  lines
base: quickstart
methods: [local, FedAvg]
settings:
  one: {models: lenet}
  two:
seeds: [3, 1]
target-accuracy: 0.8
""")
    assert names(found) == [
        *("local-one-3", "FedAvg-one-3", "local-two-3", "FedAvg-two-3"),
        *("local-one-1", "FedAvg-one-1", "local-two-1", "FedAvg-two-1"),
    ]
    assert values(found, "seed") == [3, 3, 3, 3, 1, 1, 1, 1]
    assert values(found, "method")[:2] == ["local", "fedavg"]
    assert values(found, "models")[:3] == ["lenet", "lenet", load_config({}).models]
    assert {run.config.results_dir for run in found.runs} == {str(tmp_path / "results/mine")}
    assert {run.config.resume for run in found.runs} == {"latest"}
    assert found.folder == tmp_path / "results/mine"
    assert found.to_dict() == {
        "name": "mine",
        "description": "two lines",
        "target-accuracy": 0.8,
        "runs": [
            {"name": run.name, "method": run.method, "setting": run.setting, "seed": run.config.seed, "grid": {}}
            | {"rounds": 20}
            for run in found.runs
        ],
    }
    assert found.runs[1].title == "FedAvg, one, seed 3"


def test_a_run_has_the_settings_that_it_would_have_alone(plan):
    found = plan({"base": "quickstart", "methods": ["mh-pfedhn"], "num-rounds": 7}, stem="alone")
    alone = load_config({"num-rounds": 7, "method": "mh-pfedhn"})
    differing = {key for key, value in found.runs[0].config.to_dict().items() if value != alone.to_dict()[key]}
    assert differing <= {"run-name", "results-dir", "data-dir", "resume", "checkpoint-every"}


def test_what_is_said_of_a_method_wins_over_what_is_said_of_a_setting_and_the_command_line_over_both(plan):
    content = {
        "base": "quickstart",
        "num-rounds": 5,
        "client-lr": 0.1,
        "methods": {"slow": {"method": "local", "client-lr": 0.001}, "local": None},
        "settings": {"small": {"client-lr": 0.05, "batch-size": 8}, "large": {"base": "cifar100", "num-rounds": 9}},
    }
    found = plan(content)
    assert names(found) == ["slow-small-0", "local-small-0", "slow-large-0", "local-large-0"]
    assert values(found, "client-lr") == [0.001, 0.05, 0.001, 0.1]
    assert values(found, "num-rounds") == [5, 5, 9, 9]
    assert values(found, "dataset") == ["fashion-mnist", "fashion-mnist", "cifar100", "cifar100"]
    assert values(plan(content, {"client-lr": 0.2}), "client-lr") == [0.2] * 4


def test_a_setting_of_some_of_the_methods_is_left_out_for_the_others(plan):
    found = plan({"base": "quickstart", "methods": ["local", "mh-pfedhn"], "hn-lr": 0.002})
    assert "hn-lr" not in found.runs[0].config.method_settings
    assert found.runs[1].config.method_settings["hn-lr"] == 0.002


@pytest.mark.parametrize(
    ("given", "name", "runs"),
    [
        ("quickstart", "quickstart", ["mh-pfedhn-quickstart-0"]),
        ("cifar100+paper-code", "cifar100-paper-code", ["mh-pfedhn-cifar100-paper-code-0"]),
        ("partial-deployment", "partial-deployment", ["mh-pfedhn-gd-partial-deployment-0"]),
    ],
)
def test_a_profile_is_a_comparison_of_one_run(given, name, runs):
    found = make_plan(given, {})
    assert (found.name, names(found)) == (name, runs)


def test_a_file_of_settings_is_one_too_and_may_hold_what_other_methods_read(plan):
    found = plan({"base": "quickstart", "seed": 4, "temperature": 3})
    assert (names(found), values(found, "seed")) == (["mh-pfedhn-quickstart-4"], [4])


def test_a_mapping_is_a_comparison_without_a_file(tmp_path):
    content = {"base": "quickstart", "methods": ["local"], "seeds": [0, 1]}
    found = make_plan(content, {"num-rounds": 3}, name="mine", origin="the arguments")
    assert (names(found), found.folder) == (["local-quickstart-0", "local-quickstart-1"], tmp_path / "results/mine")


def test_name_seeds_and_the_folder_of_results_can_be_given(plan, tmp_path):
    found = plan({"base": "quickstart", "seeds": [0]}, {"results-dir": "elsewhere"}, name="other", seeds=["7", 2])
    assert values(found, "seed") == [7, 2]
    assert (found.name, found.folder) == ("other", tmp_path / "elsewhere/other")


def test_checkpoints_are_written_every_tenth_of_the_rounds_unless_the_comparison_says_other(plan):
    base = {"base": "quickstart", "methods": ["local"]}  # the profile says 0
    assert values(plan(base | {"num-rounds": 300}), "checkpoint-every") == [30]
    assert values(plan(base), "checkpoint-every") == [5]
    assert values(plan(base | {"checkpoint-every": 0}), "checkpoint-every") == [0]
    assert values(plan(base, {"checkpoint-every": 7}), "checkpoint-every") == [7]


def test_the_comparison_that_comes_with_the_project_is_five_methods_in_two_settings_of_three_seeds():
    found = make_plan("Fashion", {})
    assert len(found.runs) == 30
    assert len({run.method for run in found.runs}) == 5
    assert {(run.setting, run.config.models.count(",")) for run in found.runs} == {
        ("homogeneous", 0),
        ("heterogeneous", 4),
    }
    assert found.description


# Grids


def test_a_list_is_a_grid_of_the_methods_that_have_the_key(plan):
    found = plan({"base": "quickstart", "methods": ["local", "mh-pfedhn"], "hn-lr": [1e-3, "2e-3"], "seeds": [0, 1]})
    assert names(found) == [
        *("local-quickstart-0", "mh-pfedhn-quickstart-0-1", "mh-pfedhn-quickstart-0-2"),
        *("local-quickstart-1", "mh-pfedhn-quickstart-1-1", "mh-pfedhn-quickstart-1-2"),
    ]
    assert [run.grid for run in found.runs[:3]] == [{}, {"hn-lr": 0.001}, {"hn-lr": 0.002}]
    assert found.runs[2].config.method_settings["hn-lr"] == 0.002
    assert found.runs[2].title == "mh-pfedhn, quickstart, seed 0, hn-lr 0.002"
    assert found.to_dict()["choose-on"] == "validation"


def test_grids_at_the_top_in_a_method_and_in_a_setting_multiply_and_the_stronger_place_wins(plan):
    content = {
        "base": "quickstart",
        "client-lr": [0.1, 0.2],
        "methods": {"local": {"local-epochs": [1, 2]}, "fedavg": {"client-lr": 0.3}},
        "settings": {"a": {"batch-size": [8, 16]}, "b": {"client-lr": [0.4]}},
    }
    found = plan(content)
    grids = [(run.method, run.setting, dict(run.grid)) for run in found.runs]
    assert len([each for each in grids if each[:2] == ("local", "a")]) == 8
    assert [each[2] for each in grids if each[:2] == ("fedavg", "a")] == [{"batch-size": 8}, {"batch-size": 16}]
    assert ("local", "b", {"client-lr": 0.4, "local-epochs": 2}) in grids
    assert ("fedavg", "b", {}) in grids


def test_models_take_a_list_and_are_no_grid(plan):
    found = plan({"base": "quickstart", "methods": ["local"], "models": ["lenet", "vgg8"]})
    assert (values(found, "models"), found.runs[0].grid) == (["lenet,vgg8"], {})


def test_with_a_grid_all_runs_hold_back_validation_data_and_that_is_said(plan):
    content = {"base": "quickstart", "methods": ["local", "mh-pfedhn"], "hn-lr": [1e-3, 2e-3]}
    found = plan(content)
    assert values(found, VALIDATION) == [0.2] * 3
    assert [note for note in found.notes if VALIDATION in note]
    assert values(plan(content | {VALIDATION: 0.1}), VALIDATION) == [0.1] * 3
    assert not plan(content | {VALIDATION: 0.1}).notes
    assert values(plan({"base": "quickstart", "methods": ["local"]}), VALIDATION) == [0.0]


def test_what_a_base_says_of_validation_data_counts_with_a_grid_unless_it_is_none(plan, tmp_path):
    (tmp_path / "tenth.yaml").write_text(f"base: quickstart\n{VALIDATION}: 0.1\n")
    (tmp_path / "none.yaml").write_text(f"base: quickstart\n{VALIDATION}: 0\n")
    content = {"methods": ["local"], "client-lr": [0.1, 0.2]}
    found = plan(content | {"base": "tenth.yaml"})
    assert (values(found, VALIDATION), found.notes) == ([0.1] * 2, [])
    found = plan(content | {"settings": {"a": {"base": "tenth.yaml"}, "b": {"base": "none.yaml"}}})
    assert values(found, VALIDATION) == [0.1, 0.1, 0.2, 0.2]
    assert found.notes[0].endswith(f"{VALIDATION} is set to 0.2 in local, b, where nothing else sets it.")


# Mistakes

BASE = {"base": "quickstart", "methods": ["local", "mh-pfedhn"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BASE | {"num-round": 3}, "There is no key 'num-round' (mine.yaml); did you mean 'num-rounds'?"),
        (BASE | {"num-rounds": 0}, "num-rounds is 0 in mine.yaml, but must be a whole number of at least 1."),
        (BASE | {"num-rounds": [5, 0]}, "num-rounds is 0 in mine.yaml"),
        (BASE | {"hn-lr": []}, "hn-lr is an empty list in mine.yaml"),
        (BASE | {"hn-lr": [0.1, "1e-1"]}, "hn-lr has 0.1 twice in its grid in mine.yaml"),
        (BASE | {"hn-lr": [0.1, 0.2], VALIDATION: 0}, f"{VALIDATION} is 0 in local, quickstart, but there is a grid"),
        (BASE | {"temperature": 3}, "No method that is compared has temperature (mine.yaml): it is a setting of mh-pf"),
        (BASE | {"temperature": [3, 4]}, "No method that is compared has temperature (mine.yaml)"),
        (BASE | {"settings": {"a": {"temperature": 3}}}, "has temperature (setting 'a' of mine.yaml)"),
        (BASE | {"settings": {"a": {"models": "lenot"}}}, "models is 'lenot' in setting 'a' of mine.yaml"),
        (BASE | {"settings": {"a": {"base": "cifra10"}}}, "There is no profile 'cifra10'; did you mean 'cifar10'?"),
        (BASE | {"settings": {"a": {"base": "fashion"}}}, "fashion is a comparison of several runs"),
        (BASE | {"settings": {"a": "cifar100"}}, "settings has 'cifar100' under 'a' in mine.yaml"),
        (BASE | {"settings": ["a"]}, "settings is ['a'] in mine.yaml, but must be a mapping from labels"),
        (BASE | {"settings": {}}, "settings is empty in mine.yaml"),
        (BASE | {"methods": []}, "methods is empty in mine.yaml, but must be a list of names, or a mapping"),
        (BASE | {"methods": "local"}, "methods is 'local' in mine.yaml, but must be a list of names"),
        (BASE | {"methods": ["local", "local"]}, "methods names one method twice in mine.yaml"),
        (BASE | {"methods": ["locel"]}, "methods has 'locel' in mine.yaml, which is neither a method nor"),
        (BASE | {"methods": ["locel"]}, "did you mean 'local'?"),
        (BASE | {"methods": [3]}, "methods holds 3 in mine.yaml"),
        (BASE | {"methods": {"mine": {"method": "locel"}}}, "method is 'locel' in method 'mine' of mine.yaml"),
        (BASE | {"methods": {"local": {"hn-lr": 1}}}, "Method 'local' has no hn-lr (method 'local' of mine.yaml)"),
        (BASE | {"methods": {"local": {"hn-lr": [1, 2]}}}, "Method 'local' has no hn-lr (method 'local' of mine.yaml)"),
        (BASE | {"method": "local"}, "method is set in mine.yaml, but methods says which are compared."),
        (BASE | {"settings": {"local": {"method": "local"}}}, "method is set in setting 'local' of mine.yaml"),
        ({"base": "quickstart", "method": ["local"]}, "method is a list in mine.yaml: put the names under methods."),
        ({"base": "quickstart", "seed": [0, 1]}, "seed is set in mine.yaml, but seeds (--seeds) is the list of them."),
        (BASE | {"seed": 1, "seeds": [0]}, "seed is set in mine.yaml, but seeds"),
        (BASE | {"seeds": 3}, "seeds is 3 in mine.yaml, but must be a list such as [0, 1, 2]."),
        (BASE | {"seeds": [0, -1]}, "seed is -1 in seeds of mine.yaml"),
        (BASE | {"seeds": [0, 0]}, "seeds is [0, 0] in mine.yaml, but must name each seed once."),
        (BASE | {"target-accuracy": 80}, "target-accuracy is 80 in mine.yaml, but must be a number above 0 and at mo"),
        (BASE | {"description": ["a"]}, "description is ['a'] in mine.yaml, but must be text."),
        (BASE | {"run-name": "a"}, "run-name is set in mine.yaml, but a comparison names its runs itself"),
        (BASE | {"resume": "latest"}, "resume is set in mine.yaml, but a comparison goes on by itself"),
        (BASE | {"mode": "adapt"}, "mode is 'adapt' in local, quickstart, but what is compared are runs in mode 'tr"),
        (BASE | {"settings": {"a": {}, "b": {"results-dir": "x"}}}, "results-dir differs between the runs"),
        (BASE | {"settings": {"a b": {}, "a/b": {}}}, "would both be called local-a-b-0: use labels"),
        (BASE | {"settings": {"a" * 100: {}}}, "which names no folder: use labels"),
        (BASE | {"data-dir": "nowhere"}, "data-dir is 'nowhere', but there is no"),
    ],
)
def test_a_mistake_is_one_sentence_with_key_value_and_place(plan, content, words):
    with pytest.raises(UserError) as caught:
        plan(content)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "options", "words"),
    [
        ({"hn-lr": 0}, {}, "hn-lr is 0 in the command line"),
        ({"temperature": 3}, {}, "No method that is compared has temperature (the command line)"),
        ({"method": "local"}, {}, "method is set in the command line, but methods says which are compared."),
        ({"seed": 3}, {}, "seed is set in the command line, but seeds (--seeds) is the list of them."),
        ({"run-name": "x"}, {}, "and --name (in Python, name) its folder."),
        ({}, {"name": "a/b"}, "'a/b' cannot be a comparison's name"),
        ({}, {"seeds": ["0", "x"]}, "seed is 'x' in seeds of the command line"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_too(plan, overrides, options, words):
    with pytest.raises(UserError) as caught:
        plan(BASE, overrides, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.yaml", "fashon", "sub/nowhere"])
def test_a_comparison_that_does_not_exist_is_told_as_a_missing_profile_is(name):
    with pytest.raises(UserError, match=r"There is no profile|there is no such file"):
        make_plan(name, {})


@pytest.mark.parametrize("key", ["methods", "settings", "seeds", "target-accuracy"])
def test_a_comparison_given_as_a_profile_is_refused_with_the_command_that_takes_it(tmp_path, key):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"base": "quickstart", key: [0]}))
    with pytest.raises(UserError, match=r"^mine.yaml is a comparison of several runs: start it with `mh-pfedhn"):
        load_config({"profile": "mine.yaml"})
    with pytest.raises(UserError, match=r"`mh-pfedhn compare fashion`"):
        load_config({"profile": "fashion"})
