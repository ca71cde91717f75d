"""The SuperLink of a simulation and what drives `flwr run`, with small scripts in the place of Flower's commands."""

import dataclasses
import json
import os
import sys
import tomllib
from pathlib import Path

import pytest

from common.config import load_config
from mh_pfedhn import flower_run, simulation
from mh_pfedhn.flower_run import Ending
from mh_pfedhn.private_folder import OWNER
from mh_pfedhn.simulation import with_own_code

FLWR = """#!{python}
import json, os, sys, tomllib
with open({calls!r}, "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
if sys.argv[1] == "run":
    settings = sys.argv[sys.argv.index("-c") + 1]
    with open(settings, "rb") as file:
        print(json.dumps(tomllib.load(file)), file=open({settings!r}, "w"))
    print("\\x1b[92mINFO \\x1b[0m:      Successfully started run 77")
    print("\\x1b[93mWARNING \\x1b[0m:   The default simulated SuperNodes changed")
    print("\\x1b[93mWARNING \\x1b[0m:   careful")
elif sys.argv[1] == "list":
    print(json.dumps({{"runs": [{{"status": "finished:{status}", "status-details": "{details}"}}]}}))
"""


@pytest.fixture
def flwr(monkeypatch, tmp_path):
    """Put a `flwr` in place that keeps its calls and settings, and says so of its run; returns how to read them."""
    calls, settings = tmp_path / "calls", tmp_path / "settings.json"

    def put(status="completed", details=""):
        script = tmp_path / "flwr"
        files = {"calls": str(calls), "settings": str(settings)}
        script.write_text(FLWR.format(python=sys.executable, status=status, details=details, **files))
        script.chmod(0o755)
        monkeypatch.setattr(flower_run, "tool", lambda name: str(tmp_path / name))
        return lambda: ([json.loads(line) for line in calls.read_text().splitlines()], json.loads(settings.read_text()))

    return put


@pytest.fixture
def environment(tmp_path):
    """That of a command, which has a folder of its own."""
    return {**os.environ, OWNER: str(tmp_path)}


def test_flower_gets_every_setting_and_its_log_is_plain(flwr, environment, capsys):
    read = flwr()
    name = "K\u00f6ln \U0001f44d\\x"
    config = load_config({"run-name": "mine", "results-dir": name, "client-lr": 1e-5, "anchor": False})
    ending = flower_run.drive(config, "lab", ["--more"], environment)
    assert ending == Ending("finished:completed", interrupted=False)
    calls, settings = read()
    assert settings == config.to_run_config()
    assert calls[0][:4] == ["run", str(flower_run.APP_DIR), "lab", "--stream"]
    assert calls[0][-1] == "--more"
    assert calls[1] == ["list", "lab", "--run-id", "77", "--format", "json"]
    assert capsys.readouterr().out == "Successfully started run 77\nWARNING: careful\n"


@pytest.mark.parametrize(
    ("details", "silent"),
    [("No heartbeat received from the task", True), ("ServerApp failed with exception: no disk", False)],
)
def test_a_serverapp_that_was_killed_is_told_from_one_that_said_why_it_ended(flwr, environment, details, silent):
    flwr("failed", details)
    ending = flower_run.drive(load_config({}), "lab", [], environment)
    assert ending == Ending("finished:failed", interrupted=False, silent=silent)


def test_a_flower_that_starts_no_run_has_no_status(monkeypatch, environment):
    monkeypatch.setattr(flower_run, "tool", lambda name: "false")
    assert flower_run.drive(load_config({}), "lab", [], environment) == Ending(None, interrupted=False)


def test_a_simulation_has_a_superlink_and_a_flower_home_of_its_own(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(simulation, "tool", lambda name: started.append(name) or "true")
    monkeypatch.setattr(simulation, "wait_until_healthy", lambda *arguments: None)
    with simulation.local_superlink(load_config({})) as (name, environment):
        home = Path(environment["FLWR_HOME"])
        connection = tomllib.loads((home / "config.toml").read_text())["superlink"][name]
        assert connection["insecure"]
        assert connection["address"].startswith("127.0.0.1:")
        assert environment[OWNER] == str(home)
    assert started == ["flower-superlink"]
    assert not home.exists()
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "mine.method:Method"},
        {"models": "lenet,mine:vit"},
        {"held_out_models": "mine:vit"},
        {"dataset": "mine:load"},
        {"loss": "mine:focal"},
        {"correct": "mine:count"},
    ],
    ids=str,
)
def test_the_working_folder_is_searched_last_and_only_for_code_of_the_users_own(monkeypatch, tmp_path, changes):
    monkeypatch.chdir(tmp_path)
    ours = load_config({"method": "mh-pfedhn-gd", "models": "lenet,lenet/keep-output"})
    own = dataclasses.replace(ours, **changes)
    assert with_own_code({"PYTHONPATH": "/a", "X": "1"}, own) == {"PYTHONPATH": f"/a:{tmp_path}", "X": "1"}
    assert with_own_code({}, own) == {"PYTHONPATH": str(tmp_path)}
    assert with_own_code({"PYTHONPATH": ""}, own) == {"PYTHONPATH": str(tmp_path)}
    assert with_own_code({"PYTHONPATH": "/a"}, ours) == {"PYTHONPATH": "/a"}
    assert with_own_code({}, ours) == {}
