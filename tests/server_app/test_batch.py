"""Several runs in one simulation are the runs that they would be alone, and none of them stays when it is over."""

import gc
import json
import logging
import weakref
from pathlib import Path

import pytest
import torch
from flwr.app import Context, RecordDict
from fresh_process import new_process
from in_process import InProcessGrid
from playing import lines_of, settings_for, timeless

import client_app.app
import server_app.app
from common.config import RUNS, load_config
from common.config.batch import write_runs
from common.errors import UserError
from server_app import batch
from server_app.strategy import FederationStrategy

CLIENTS = 4

pytestmark = pytest.mark.usefixtures("_no_drawing", "_new_process")


@pytest.fixture(autouse=True)
def _plain_log():
    """What the ServerApp has added to the log is taken away afterwards."""
    yield
    logging.getLogger("flwr").filters.clear()


@pytest.fixture
def runs(run_config, tmp_path):
    """Configs of runs that differ in all that a worker keeps: method, seed, models, batch size."""

    def config(name, **changes):
        settings = run_config | {"run-name": name, "results-dir": str(tmp_path / "batch"), "num-clients": CLIENTS}
        return load_config(settings_for(settings, **changes))

    return [
        config("averaged", method="fedavg", models="lenet"),
        config("generated", seed=1),
        config("distilled", method="mh-pfedhn-gd", global_model="mlp", batch_size=4),
        config("averaged-again", method="fedavg", models="lenet"),
    ]


@pytest.fixture(autouse=True)
def _is_simulation(monkeypatch):
    """The grid of these tests stands for that of a simulation."""
    monkeypatch.setattr(server_app.app, "InMemoryGrid", InProcessGrid)


@pytest.fixture
def play(tmp_path):
    """Play runs in one simulation, with real clients or these."""

    def play(configs, answer=client_app.app.app):
        path = tmp_path / "runs.json"
        write_runs(path, configs)
        new_process()
        run_config = {RUNS: str(path)}
        grid = InProcessGrid(answer, CLIENTS, run_config)
        server_app.app.main(grid, Context(1, 1, {}, RecordDict(), run_config))
        return grid

    return play


def results_of(folder: Path):
    """What a run leaves behind but for times: its metrics, and all that its clients keep."""
    kept = {
        str(path.relative_to(folder)): torch.load(path, weights_only=True)
        for path in sorted(folder.glob("clients/*/personal-model.pt"))
    }
    return timeless(lines_of(folder)), kept


def assert_same(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for path, state in one[1].items():
        assert all(torch.equal(state[name], other[1][path][name]) for name in state), path


def test_each_run_is_bit_for_bit_what_it_is_alone(runs, play, tmp_path, run_config):
    play(runs)
    for config in runs:
        alone = load_config(config.to_dict() | {"results-dir": str(tmp_path / "alone")})
        new_process()
        grid = InProcessGrid(client_app.app.app, CLIENTS, dict(alone.to_run_config()))
        server_app.app.serve(grid, alone, simulated=True)
        own = results_of(tmp_path / "alone" / config.run_name)
        assert len(own[1]) == CLIENTS
        assert_same(results_of(tmp_path / "batch" / config.run_name), own)


def test_a_run_that_is_over_is_not_held(runs, play, monkeypatch):
    held = []
    start = FederationStrategy.start

    def started(self, *arguments, **options):
        gc.collect()
        alive.append([ref for ref in held if ref() is not None])
        held.append(weakref.ref(self))
        return start(self, *arguments, **options)

    alive = []
    monkeypatch.setattr(FederationStrategy, "start", started)
    play(runs)
    assert alive == [[], [], [], []]


def test_a_run_that_fails_ends_the_batch_and_its_reason_is_written_down(runs, play, tmp_path, monkeypatch):
    serve = server_app.app.serve

    def served(grid, config, **options):
        if config.run_name == "generated":
            raise UserError("The disk is full.")
        serve(grid, config, **options)

    monkeypatch.setattr(server_app.app, "serve", served)
    with pytest.raises(UserError, match="The disk is full"):
        play(runs)
    assert batch.failure(tmp_path / "runs.json") == ("generated", "The disk is full.")
    assert sorted(path.name for path in (tmp_path / "batch").iterdir()) == ["averaged"]


def test_a_fault_of_the_codes_is_written_down_with_its_type(runs, play, tmp_path, monkeypatch):
    def served(grid, config, **options):
        raise ValueError("no\nsuch thing")

    monkeypatch.setattr(server_app.app, "serve", served)
    with pytest.raises(ValueError, match="such thing"):
        play(runs)
    assert batch.failure(tmp_path / "runs.json") == ("averaged", "ValueError: no such thing")


def test_a_batch_without_a_failure_has_no_reason(tmp_path):
    assert batch.failure(tmp_path / "runs.json") is None


def test_a_message_of_another_run_is_refused(runs, tmp_path):
    path = tmp_path / "runs.json"
    write_runs(path, runs[:1])
    grid = InProcessGrid(client_app.app.app, CLIENTS, {RUNS: str(path)})
    with pytest.raises(UserError, match="clients are connected"):
        server_app.app.serve(grid, runs[1], simulated=True)


def test_a_deployment_plays_no_batch(tmp_path):
    with pytest.raises(UserError, match=r"^runs names several runs, which only a simulation plays"):
        server_app.app.main(None, Context(1, 1, {}, RecordDict(), {RUNS: str(tmp_path / "runs.json")}))


def test_runs_that_is_no_file_of_runs_is_refused_by_name(tmp_path):
    path = tmp_path / "none.json"
    grid = InProcessGrid(client_app.app.app, CLIENTS, {})
    for content in ("", "{}x", '[{"method": "local"}]', json.dumps(5)):
        path.write_text(content)
        with pytest.raises(UserError, match=rf"^runs is '{path}', but that is no file of runs"):
            server_app.app.main(grid, Context(1, 1, {}, RecordDict(), {RUNS: str(path)}))
        new_process()
