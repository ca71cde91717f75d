"""Simulations with real Flower processes, started as a user starts them."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from flower_processes import APP_DIR, BIN, environment, metrics, run

from common.models import build_model
from mh_pfedhn.processes import free_port

pytestmark = pytest.mark.e2e

SMALL = ["max-samples-per-class=12", "num-rounds=2", "chunk-size=1024", "hidden-dim=8", "run-name=run"]


def test_five_architectures_under_mh_pfedhn_run(tmp_path: Path):
    env = environment(tmp_path / "home")
    done = run(BIN / "mh-pfedhn", "run", "-c", *SMALL, "num-clients=5", env=env, cwd=tmp_path)
    assert done.returncode == 0
    folder = tmp_path / "results" / "run"
    assert done.stdout.rstrip().endswith(f"Report: {folder / 'report.html'}")
    lines = metrics(folder)
    assert [line["round"] for line in lines] == [1, 2]
    # One input channel takes 288 parameters less than CIFAR-10's three in every first convolution.
    sizes = {"0": 234_006, "1": 268_814, "2": 347_178, "3": 523_242, "4": 565_386}
    sizes = {client: size - 288 for client, size in sizes.items()}
    for line in lines:
        assert line["clients"] == 5
        assert line["failures"] == {}
        assert set(line["client-accuracy"]) == set("01234")
        # theta down and delta up: 4 bytes a parameter and NumPy's header of 128 bytes a vector.
        assert line["bytes-up"] == sum(4 * size + 128 for size in sizes.values())
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rounds"] == 2
    assert summary["config"]["models"] == "lenet,vgg8,resnet10,resnet12,resnet18"
    for name in ("config.yaml", "clients.csv", "curves.png", "report.html", "partition.json"):
        assert (folder / name).stat().st_size > 0
    personal = torch.load(folder / "clients" / "2" / "personal-model.pt", weights_only=True)
    build_model("resnet10", (1, 32, 32), 10, seed=1).load_state_dict(personal)


def test_misbehaving_clients_lose_their_round_and_nothing_else_happens(tmp_path: Path):
    app = tmp_path / "app"
    app.mkdir()
    for name in ("server_app", "client_app", "common", "conf"):
        shutil.copytree(APP_DIR / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("misbehaving_client.py"), app)
    project = (APP_DIR / "pyproject.toml").read_text().replace("client_app.app:app", "misbehaving_client:app")
    project = project.replace("fab-include = [", 'fab-include = ["misbehaving_client.py", ')
    (app / "pyproject.toml").write_text(project)
    (app / "README.md").write_text("An app that misbehaves.")
    other_app = """import sys
from mh_pfedhn import cli, flower_run
flower_run.APP_DIR = sys.argv.pop(1)
sys.exit(cli.main())"""
    options = [*SMALL, "num-clients=6", "models=lenet", "deadline=15", f"data-dir={APP_DIR / 'data'}"]
    env = environment(tmp_path / "home")
    done = run(BIN / "python", "-c", other_app, app, "run", "-c", *options, env=env, cwd=tmp_path)
    assert done.returncode == 0
    first, second = metrics(tmp_path / "results" / "run")
    assert first["failures"] == {"client-raised": 1, "wrong-length": 1, "not-finite": 1, "late": 1}
    blamed = {failure["client"]: failure["reason"] for failure in first["failure-list"]}
    assert blamed == {"2": "client-raised", "3": "wrong-length", "4": "not-finite", "5": "late"}
    assert set(first["client-train-loss"]) == {"0", "1"}
    assert "client 2: client-raised: " in done.stdout
    assert "this client is broken" in done.stdout
    # From round 2 on they are clients like the others; but the late one still works on round 1.
    assert second["failures"] == {"busy": 1}
    assert set(second["client-train-loss"]) == set("01234")
    assert set(second["client-accuracy"]) == set("012345")


def test_mlflow_gets_a_run_in_a_database_that_a_variable_of_the_users_names(tmp_path: Path):
    tracking = pytest.importorskip("mlflow.tracking")
    # A relative one: it starts where the user stands, whatever folder Flower runs the app in.
    env = environment(tmp_path / "home", MLFLOW_TRACKING_URI="sqlite:///mine.db")
    options = [*SMALL, "num-clients=2", "models=lenet", "log-to=mlflow"]
    done = run(BIN / "mh-pfedhn", "run", "-c", *options, env=env, cwd=tmp_path)
    assert done.returncode == 0
    assert "Logging to MLflow at sqlite:///mine.db: run run (" in done.stdout
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mine.db'}")
    (logged,) = client.search_runs([client.get_experiment_by_name("quickstart").experiment_id])
    assert (logged.info.run_name, logged.info.status) == ("run", "FINISHED")
    history = client.get_metric_history(logged.info.run_id, "accuracy-mean")
    lines = metrics(tmp_path / "results" / "run")
    assert [(each.step, each.value) for each in history] == [(line["round"], line["accuracy-mean"]) for line in lines]
    assert not (tmp_path / "results" / "run" / "tensorboard").exists()
    assert not (tmp_path / "mlruns").exists()


def test_plain_flwr_run_serves_the_two_nodes_that_flower_starts(tmp_path: Path):
    port = str(free_port())
    env = environment(tmp_path / "home", FLWR_LOCAL_SUPERLINK_HTTP_API_PORT=port)
    env.pop("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", None)
    settings = f"max-samples-per-class=12 num-rounds=1 hidden-dim=8 run-name='run' results-dir='{tmp_path}'"
    try:
        done = run(BIN / "flwr", "run", ".", "--stream", "-c", settings, env=env, cwd=APP_DIR)
        listed = run(BIN / "flwr", "list", "--format", "json", env=env, cwd=APP_DIR)
    finally:
        stop_local_superlink(port)
    assert [each["status"] for each in json.loads(listed.stdout)["runs"]] == ["finished:completed"]
    assert "2 clients joined, 2 in all." in done.stdout
    (line,) = metrics(tmp_path / "run")
    assert set(line["client-accuracy"]) == {"0", "1"}


def test_a_run_that_fails_exits_with_1_and_says_why(tmp_path: Path):
    # Without the script's own check of the data, the ServerApp finds that there is none.
    unchecked = """import sys
from mh_pfedhn import cli, simulation
simulation.check = lambda config: None
sys.exit(cli.main())"""
    options = [*SMALL, "num-clients=2", "models=lenet", "dataset=npz", f"data-dir={tmp_path}"]
    env = environment(tmp_path / "home")
    done = run(BIN / "python", "-c", unchecked, "run", "-c", *options, env=env, cwd=tmp_path)
    assert done.returncode == 1
    assert "looked for a .npz file in" in done.stdout
    assert "mh-pfedhn: the run ended as finished:failed" in done.stderr


def stop_local_superlink(port: str) -> None:
    """End the SuperLink that `flwr run` left behind, found by the port in its command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if port.encode() in words and any(word.endswith(b"flower-superlink") for word in words):
            os.kill(int(folder.name), signal.SIGTERM)
