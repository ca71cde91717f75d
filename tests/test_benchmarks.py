"""The settings of the benchmarks and of the demo are ones that a run takes; nothing is run."""

import importlib
from pathlib import Path

import pytest
import yaml

from common.config import load_config, parse_overrides
from common.data.simulation import count_owners, divide

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmark_of(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    return importlib.import_module


def test_every_run_of_every_study_has_settings_that_its_method_has(benchmark_of):
    studies = benchmark_of("cifar100").STUDIES
    assert len(studies) == 5
    for title, study in studies.items():
        seen = []
        for name, run in study.runs.items():
            words = [*study.common, f"num-rounds={study.rounds[-1]}", *run.overrides]
            words += ["mode=adapt", "resume=before"] if run.after else []
            config = load_config({"profile": "cifar100", **parse_overrides(words)})
            assert run.after == "" or run.after in study.runs, (title, name)
            settings = config.to_dict() | {"after": run.after}
            assert settings not in seen, (title, name)  # each differs from the others
            seen.append(settings)


def test_runs_that_are_compared_differ_in_what_their_names_say_alone(benchmark_of):
    studies = benchmark_of("cifar100").STUDIES

    def settings(study, name):
        return load_config(
            {"profile": "cifar100", **parse_overrides([*studies[study].common, *studies[study].runs[name].overrides])}
        ).to_dict()

    schedules = {name: settings("schedules", name) for name in studies["schedules"].runs}
    assert {each["reduction"] for name, each in schedules.items() if name != "local"} == {"sum"}
    assert "reduction" not in schedules["local"]
    for name in studies["global"].runs:
        found = settings("global", name)
        assert found.get("temperature") == (15.0 if name.startswith("GD") else None)
        assert found["reduction"] == ("sum" if "sum" in name else "mean")
        assert found["anchor"] == ("no anchor" not in name)


def test_the_plain_loop_is_compared_with_the_run_of_its_settings(benchmark_of):
    settings = benchmark_of("simulation").SETTINGS
    profile = settings["profile"]
    words = [f"{key}={value}" for key, value in settings.items() if key != "profile"]
    assert load_config({"profile": profile, **parse_overrides(words)}) == load_config(settings)


def test_the_natural_clients_are_all_writers_of_a_file_that_can_be_divided(benchmark_of, tmp_path):
    benchmark = benchmark_of("natural_clients")
    sizes = benchmark.write_writers(tmp_path / "writers.npz")
    config = load_config(benchmark.SETTINGS | {"data-dir": str(tmp_path / "writers.npz")})
    assert count_owners(config) == len(sizes) == benchmark.NUM_CLIENTS
    division = divide(config, len(sizes))
    assert dict(zip(division.owners, map(total, division.parts), strict=True)) == sizes
    assert division.dataset.num_classes == 62


def total(part):
    return len(part.train) + len(part.validation) + len(part.test)


def test_the_demos_profile_is_a_consortium_of_four():
    path = PROJECT / "docker/consortium.yaml"
    config = load_config({"profile": str(path)})
    assert (config.dataset, config.min_clients) == ("sites", 3)
    settings = yaml.safe_load(path.read_text())
    assert config.method_settings["client-lr"] == settings["client-lr"]
    assert config.method_settings["local-epochs"] == settings["local-epochs"]
