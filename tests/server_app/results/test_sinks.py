"""Where a run's numbers go besides its folder: what is named, what fails, what a run that is gone on with adds."""

import importlib.util
import json
import os
import shutil
import struct
import sys
import time

import fake_clients
import pytest
from small_runs import CONFIG, record

from common.errors import UserError
from server_app.results import RunTracker, sinks
from server_app.results.sinks.base import LoggedRun

VARIABLES = ("MLFLOW_", "WANDB_", "NETRC")


@pytest.fixture(autouse=True)
def _plain_environment(tmp_path):
    """A user who has set nothing and logged in nowhere; what is set for the clients is undone afterwards."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(VARIABLES):
            del os.environ[name]
    os.environ["HOME"] = str(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(before)


def log(run_dir, log_to, rounds, resume_after=None, config=CONFIG, finish=True):
    """A run of these rounds, each with its number of right answers; returns its tracker."""
    tracker = RunTracker(run_dir, config, num_rounds=4, resume_after=resume_after, log_to=log_to)
    for key, label in (("a", "lenet"), ("b", "K = 239,856"), ("c", "mlp")):
        tracker.add_client(key, 1000, 2, label)
    for number, correct in rounds.items():
        seconds = {"generate": 0.1 * len(rounds), "exchange": 1.0, "update": 1.0, "total": 3.0}
        tracker.log_round(record(number, correct=(correct,) * 3, seconds=seconds))
    if finish:
        tracker.finish()
    return tracker


# --- What log-to names ---


@pytest.mark.parametrize(
    ("log_to", "names"),
    [("tensorboard", ("tensorboard",)), ("mlflow, wandb,mlflow", ("mlflow", "wandb")), ("none", ()), ("", ())],
)
def test_sinks_are_named_once_and_none_is_none(log_to, names):
    assert sinks.named(log_to) == names


def test_a_run_that_logs_to_none_writes_no_events(tmp_path, drawings):
    tracker = log(tmp_path / "run", sinks.named("none"), {1: 1})
    assert not (tracker.run_dir / "tensorboard").exists()
    assert not (tracker.run_dir / "logged-to.json").exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_client_that_is_not_installed_is_refused_by_name(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError) as refused:
        sinks.check(f"tensorboard,{name}")
    assert str(refused.value) == f"log-to names {name}, which is not installed: pip install 'mh-pfedhn[{name}]'."
    sinks.check("tensorboard")
    sinks.check("none")


def test_a_folder_is_no_client(monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()  # as its client leaves behind
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    with pytest.raises(UserError, match="wandb, which is not installed"):
        sinks.check("wandb")


@pytest.mark.parametrize(
    ("config", "beside", "group"),
    [
        ({"profile": "cifar100+paper-text"}, "", "cifar100+paper-text"),
        ({"profile": "/home/me/my nets.yaml"}, "", "my-nets"),
        ({}, "", "mh-pfedhn"),
        ({"profile": "cifar100"}, "comparison.yaml", "results"),
    ],
)
def test_runs_are_grouped_by_comparison_or_profile(tmp_path, config, beside, group):
    folder = tmp_path / "results"
    folder.mkdir()
    if beside:
        (folder / beside).touch()
    assert LoggedRun(folder / "run", config, None).group == group


# --- What fails ---


class Broken:
    """A sink whose methods of these names fail."""

    def __init__(self, *failing):
        self.failing, self.calls = failing, []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            if name in self.failing:
                raise ConnectionError(f"no {name}\nat all")

        return call


@pytest.mark.parametrize(
    ("failing", "calls"),
    [
        (["catch_up"], ["catch_up"]),
        (["add"], ["catch_up", "add"]),
        (["close"], ["catch_up", "add", "add", "close"]),
    ],
)
def test_a_run_goes_on_without_a_sink_that_fails_and_says_so_once(
    tmp_path, drawings, monkeypatch, caplog, failing, calls
):
    opened = {"mlflow": Broken(*failing), "wandb": Broken()}
    monkeypatch.setattr(sinks, "_opened", lambda name, run: opened[name])
    tracker = log(tmp_path / "run", ("mlflow", "wandb"), {1: 1, 2: 2})
    assert opened["mlflow"].calls == calls
    assert opened["wandb"].calls == ["catch_up", "add", "add", "close"]
    assert [each.getMessage() for each in caplog.records] == [
        f"Nothing more goes to MLflow, the same numbers are in metrics.jsonl: no {failing[0]} at all"
    ]
    assert (tracker.run_dir / "summary.json").exists()


def test_a_run_goes_on_without_a_sink_that_cannot_be_opened(tmp_path, drawings, monkeypatch, caplog):
    def fail(name, run):
        raise RuntimeError

    monkeypatch.setattr(sinks, "_opened", fail)
    log(tmp_path / "run", ("wandb",), {1: 1})
    assert "Nothing more goes to Weights & Biases, the same numbers are in metrics.jsonl: RuntimeError" in caplog.text


# --- MLflow ---


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """One of MLflow's, which takes seconds to make."""
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(params=["fake", "real"])
def mlflow(request, monkeypatch, tmp_path):
    """MLflow's client class, or what stands in for it."""
    if request.param == "real":
        shutil.copy(request.getfixturevalue("empty_database"), tmp_path)
        from mlflow.tracking import MlflowClient

        return MlflowClient
    modules = fake_clients.mlflow_modules()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules["mlflow.tracking"].MlflowClient


def runs_of(mlflow, folder, experiment="mh-pfedhn"):
    """The client of the database beside a run's folder, and the runs of an experiment in it."""
    client = mlflow(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def steps(client, run, key):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]


def test_mlflow_gets_settings_and_a_step_a_round(tmp_path, drawings, mlflow):
    log(tmp_path / "mine", ("mlflow",), {1: 2, 2: 4}, config=CONFIG | {"profile": "quickstart", "resume": ""})
    client, (run,) = runs_of(mlflow, tmp_path, "quickstart")
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params["num-rounds"] == "4"
    assert run.data.params["anchor"] == "True"
    assert "resume" not in run.data.params
    assert run.data.tags["method"] == "mh-pfedhn"
    assert steps(client, run, "accuracy-mean") == [(1, 0.166667), (2, 0.333333)]
    assert steps(client, run, "accuracy-by-architecture/K 239856") == [(1, 0.2), (2, 0.4)]
    assert steps(client, run, "bytes/up") == [(1, 40), (2, 40)]
    assert steps(client, run, "best-round") == [(2, 2)]
    # Nobody has asked for what MLflow tells of its users, or for minutes of waiting.
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"


def test_a_resumed_run_goes_on_in_its_run_of_mlflow_and_has_no_round_twice(tmp_path, drawings, mlflow):
    log(tmp_path / "run", ("mlflow",), {1: 1, 2: 2, 3: 3}, finish=False)
    more = CONFIG | {"num-rounds": 9, "seed": 1}
    log(tmp_path / "run", ("mlflow",), {3: 3, 4: 4}, resume_after=2, config=more)
    client, (run,) = runs_of(mlflow, tmp_path)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in steps(client, run, "accuracy")] == [1, 2, 3, 4]
    assert [step for step, _ in steps(client, run, "seconds/generate")] == [1, 2, 3, 4]
    # What it was begun with stays, since MLflow lets nobody change it.
    assert (run.data.params["num-rounds"], run.data.params["seed"]) == ("4", "1")
    assert run.data.tags["resumed with num-rounds"] == "9"


def test_of_a_round_that_came_out_otherwise_mlflow_has_the_later_numbers_last(tmp_path, drawings, mlflow):
    log(tmp_path / "run", ("mlflow",), {1: 1, 2: 2})
    log(tmp_path / "run", ("mlflow",), {2: 8}, resume_after=1)
    client, (run,) = runs_of(mlflow, tmp_path)
    assert [step for step, _ in steps(client, run, "accuracy")] == [1, 2, 2]
    assert run.data.metrics["accuracy"] == pytest.approx(0.6)


def test_mlflow_gets_the_rounds_that_it_lacks_when_the_run_goes_on(tmp_path, drawings, mlflow):
    log(tmp_path / "run", ("tensorboard",), {1: 1, 2: 2}, finish=False)
    log(tmp_path / "run", ("mlflow",), {3: 3}, resume_after=2)
    client, (run,) = runs_of(mlflow, tmp_path)
    assert [step for step, _ in steps(client, run, "accuracy-by-architecture/lenet")] == [1, 2, 3]


def test_a_run_that_somebody_deleted_from_mlflow_is_begun_again(tmp_path, drawings, mlflow):
    log(tmp_path / "run", ("mlflow",), {1: 1, 2: 2})
    client, (first,) = runs_of(mlflow, tmp_path)
    client.delete_run(first.info.run_id)
    log(tmp_path / "run", ("mlflow",), {3: 3}, resume_after=2)
    (second,) = [run for run in runs_of(mlflow, tmp_path)[1] if run.info.lifecycle_stage == "active"]
    assert [step for step, _ in steps(client, second, "accuracy")] == [1, 2, 3]


def test_a_run_that_fails_is_failed_in_mlflow(tmp_path, drawings, mlflow):
    log(tmp_path / "run", ("mlflow",), {1: 1}, finish=False).close()
    _, (run,) = runs_of(mlflow, tmp_path)
    assert run.info.status == "FAILED"


def test_what_the_user_has_set_for_mlflow_is_kept(tmp_path, drawings, mlflow):
    elsewhere = tmp_path / "elsewhere" / "ours.db"
    elsewhere.parent.mkdir()
    if (tmp_path / "mlflow.db").exists():
        (tmp_path / "mlflow.db").rename(elsewhere)
    os.environ |= {
        "MLFLOW_TRACKING_URI": f"sqlite:///{elsewhere}",
        "MLFLOW_EXPERIMENT_NAME": "ours",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "70",
    }
    log(tmp_path / "run", ("mlflow",), {1: 1})
    client = mlflow(tracking_uri=f"sqlite:///{elsewhere}")
    experiment = client.get_experiment_by_name("ours")
    assert [run.info.run_name for run in client.search_runs([experiment.experiment_id])] == ["run"]
    assert not (tmp_path / "mlflow.db").exists()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "70"


def test_a_password_of_mlflow_is_not_written_down(tmp_path, drawings, monkeypatch, caplog):
    for name, module in fake_clients.mlflow_modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    os.environ["MLFLOW_TRACKING_URI"] = "https://me:secret@example.org:5000"
    with caplog.at_level("INFO", logger="flwr"):
        log(tmp_path / "run", ("mlflow",), {1: 1, 2: 2})
        log(tmp_path / "run", ("mlflow",), {3: 3}, resume_after=2)
    assert "Logging to MLflow at https://example.org:5000: run run (run-0)." in caplog.text
    assert json.loads((tmp_path / "run" / "logged-to.json").read_text()) == {
        "mlflow": {"tracking-uri": "https://example.org:5000", "run-id": "run-0"}
    }
    assert "secret" not in caplog.text


def test_a_server_of_mlflow_that_goes_away_costs_one_warning(tmp_path, drawings, monkeypatch, caplog):
    modules = fake_clients.mlflow_modules()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    tracker = log(tmp_path / "run", ("mlflow",), {1: 1}, finish=False)
    monkeypatch.setattr(modules["mlflow.tracking"].MlflowClient, "down", True)
    tracker.log_round(record(2))
    tracker.log_round(record(3))
    tracker.finish()
    assert caplog.text.count("Nothing more goes to MLflow") == 1
    assert "no route to host" in caplog.text


# --- Weights & Biases ---


@pytest.fixture
def wandb(monkeypatch):
    """What stands in for the client of Weights & Biases."""
    fake = fake_clients.Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_settings_and_a_step_a_round(tmp_path, drawings, wandb):
    log(tmp_path / "mine", ("wandb",), {1: 2, 2: 4}, config=CONFIG | {"profile": "a+b"})
    (run,) = wandb.runs
    assert (run.given["name"], run.given["project"], run.given["dir"]) == ("mine", "a-b", str(tmp_path / "mine"))
    assert run.given["config"]["num-rounds"] == 4
    assert [(step, numbers["accuracy-by-architecture/lenet"]) for step, numbers in run.lines] == [(1, 0.2), (2, 0.4)]
    assert run.summary["best-round"] == 2
    assert run.ended == 0


@pytest.mark.parametrize(
    ("variables", "netrc", "mode"),
    [
        ({}, "", "offline"),
        ({}, "machine example.org login user password key", "offline"),
        ({}, "machine api.wandb.ai login user password key", None),
        ({"WANDB_BASE_URL": "https://example.org/w"}, "machine example.org login user password key", None),
        ({"WANDB_API_KEY": "key"}, "", None),
        ({"WANDB_MODE": "disabled"}, "", None),
    ],
)
def test_wandb_is_off_line_unless_the_user_has_logged_in_or_says_else(
    tmp_path, drawings, wandb, variables, netrc, mode
):
    os.environ |= variables
    (tmp_path / ".netrc").write_text(netrc)
    (tmp_path / ".netrc").chmod(0o600)
    log(tmp_path / "run", ("wandb",), {1: 1})
    assert wandb.runs[0].given["mode"] == mode


def test_wandb_is_never_left_to_ask_for_a_key(monkeypatch):
    monkeypatch.setattr(sinks, "_is_installed", lambda name: True)
    os.environ["WANDB_MODE"] = "online"
    with pytest.raises(UserError, match="there is no key: run `wandb login`, set WANDB_API_KEY, or leave WANDB_MODE"):
        sinks.check("wandb")
    os.environ["WANDB_API_KEY"] = "key"
    sinks.check("wandb")


def test_the_newest_files_of_a_resumed_run_hold_all_of_its_rounds_under_one_id(tmp_path, drawings, wandb):
    log(tmp_path / "run", ("wandb",), {1: 1, 2: 2, 3: 3}, finish=False).close()
    log(tmp_path / "run", ("wandb",), {3: 5, 4: 4}, resume_after=2)
    first, second = wandb.runs
    assert first.given["id"] == second.given["id"]
    assert first.ended == 1
    assert [(step, numbers["accuracy-by-architecture/lenet"]) for step, numbers in second.lines] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.5),
        (4, 0.4),
    ]


def wandb_records(content):
    """The records of its file: 7 bytes, then LevelDB's log, blocks of 32 KiB with records of checksum, length, kind."""
    start, parts = 7, []
    while start + 7 <= len(content):
        if (left := -start % 32768) < 7 and left:
            start += left
        _, length, kind = struct.unpack_from("<IHB", content, start)
        parts.append(content[start + 7 : start + 7 + length])
        start += 7 + length
        if start > len(content):
            return  # the rest is not written yet
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def wandb_rounds(path):
    """Step and accuracy of an architecture, for each round in a file."""
    from wandb.proto import wandb_internal_pb2

    rounds = []
    for content in wandb_records(path.read_bytes()):
        message = wandb_internal_pb2.Record()
        message.ParseFromString(content)
        if message.HasField("history"):
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in message.history.item}
            rounds.append((json.loads(items["_step"]), json.loads(items["accuracy-by-architecture/lenet"])))
    return rounds


def test_wandbs_own_files_hold_the_numbers(tmp_path, drawings):
    pytest.importorskip("wandb")
    log(tmp_path / "run", ("wandb",), {1: 2, 2: 4})
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    ends = time.monotonic() + 20
    while len(rounds := wandb_rounds(path)) < 2 and time.monotonic() < ends:
        time.sleep(0.1)  # a process of the client's own writes the file
    assert rounds == [(1, 0.2), (2, 0.4)]
