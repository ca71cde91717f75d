"""The config.yaml of a run, given as a profile, repeats it: the same numbers, under another name."""

from pathlib import Path

import pytest
import yaml
from fresh_process import new_process
from in_process import InProcessGrid
from playing import lines_of, settings_for, timeless

import client_app.app
from common.config import load_config
from mh_pfedhn import simulation
from server_app.app import serve

pytestmark = pytest.mark.usefixtures("_no_drawing")


def play(config, folder):
    """Run a simulation of two clients in this process; the lines of its metrics without what a clock says."""
    new_process()
    serve(InProcessGrid(client_app.app.app, 2, dict(config.to_dict())), config, simulated=True)
    return timeless(lines_of(folder))


@pytest.mark.parametrize("method", ["mh-pfedhn", "fedavg"])
def test_a_repeated_run_has_the_same_numbers(run_config, tmp_path, method):
    models = "lenet" if method == "fedavg" else "lenet,mlp"
    given = settings_for(run_config, **{"method": method, "models": models, "num-clients": 2, "seed": 3})
    first = play(load_config(given), tmp_path / "results/run")
    again = load_config({"profile": str(tmp_path / "results/run/config.yaml"), "run-name": "again"})
    assert play(again, tmp_path / "results/again") == first
    assert len(first) == 2
    written = [yaml.safe_load((tmp_path / f"results/{name}/config.yaml").read_text()) for name in ("run", "again")]
    assert written[1] == written[0] | {"run-name": "again"}
    assert written[0]["profile"] == "quickstart"


@pytest.mark.parametrize("data_dir", ["data", "elsewhere"])
def test_a_run_writes_down_where_its_data_lie_and_is_repeated_from_any_folder(
    run_config, tmp_path, monkeypatch, data_dir
):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "elsewhere").mkdir(parents=True)  # holds nothing, so the data that come with the project are used
    there.mkdir()
    monkeypatch.chdir(here)
    run_config = {key: value for key, value in run_config.items() if key not in ("dataset", "data-dir", "results-dir")}
    given = run_config | {"data-dir": data_dir, "num-clients": 2, "max-samples-per-class": 12, "num-rounds": 1}
    config = simulation.from_here(load_config(given))
    play(config, here / "results/run")
    record = here / "results/run/config.yaml"
    written = yaml.safe_load(record.read_text())
    assert list(Path(written["data-dir"]).glob("t10k-images-idx3-ubyte*"))
    assert written["results-dir"] == str(here / "results")
    monkeypatch.chdir(there)
    again = simulation.from_here(load_config({"profile": str(record), "run-name": "again"}))
    assert again.to_dict() == written | {"run-name": "again"}


def test_data_where_the_run_looks_for_them_are_written_down_as_they_were_given(run_config, tmp_path, tiny_images):
    config = load_config(run_config | {"num-clients": 2, "num-rounds": 1})
    play(config, tmp_path / "results/run")
    assert yaml.safe_load((tmp_path / "results/run/config.yaml").read_text())["data-dir"] == str(tiny_images)
