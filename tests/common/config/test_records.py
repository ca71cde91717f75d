"""The config.yaml of a run as a profile: it repeats the run."""

import pytest
import yaml
from configs import config_of

from common.settings import LocalTraining


@pytest.fixture
def record(profile):
    """Write what a run of this config writes down; returns the path."""

    def write(config, name="config.yaml"):
        return profile(name, yaml.safe_dump(config.to_dict(), sort_keys=False))

    return write


def test_what_a_run_has_written_down_repeats_it_under_a_new_name(record):
    config = config_of("cifar100+paper-code", method="mh-pfedhn-gd", run_name="mine", resume="latest", seed=5)
    again = config_of(record(config))
    assert again.to_dict() == config.to_dict() | {"run-name": "", "resume": ""}
    assert again.named().run_name.startswith("mh-pfedhn-gd-cifar100-paper-code-2")


def test_the_command_line_has_the_last_word_over_what_a_run_has_written_down(record, profile):
    path = record(config_of("cifar100", run_name="mine", hn_lr=0.5))
    assert config_of(path, run_name="other", seed=7).to_dict() == config_of(path).to_dict() | {
        "run-name": "other",
        "seed": 7,
    }
    assert config_of(path, run_name="mine", resume="latest").resume == "latest"
    assert config_of(path, method="local").settings(LocalTraining) == config_of(path).settings(LocalTraining)
    profile("more.yaml", "num-clients: 7\n")
    assert (config_of(f"{path}+more.yaml").num_clients, config_of(f"{path}+more.yaml").profile) == (
        7,
        "cifar100+more.yaml",
    )


def test_a_run_in_mode_adapt_is_repeated_from_where_it_started(record):
    adapting = config_of("unseen-clients", mode="adapt", resume="/results/trained", run_name="mine")
    again = config_of(record(adapting))
    assert (again.mode, again.resume, again.run_name) == ("adapt", "/results/trained", "")
