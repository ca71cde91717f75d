"""`mh_pfedhn.run` and `load_results` as a script or notebook calls them, without starting Flower."""

import contextlib
import json
import threading

import pytest

import mh_pfedhn
from mh_pfedhn import flower_run, runs, simulation
from mh_pfedhn.flower_run import Ending
from mh_pfedhn.runs import RunInterruptedError
from server_app import checkpoint

NUMBERS = (
    "accuracy",
    "accuracy-mean",
    "accuracy-std",
    "accuracy-worst10",
    "loss",
    "train-loss",
    "clients",
    "bytes-down",
)
NUMBERS += ("bytes-up", "wall-seconds")
DETAILS = {"failures": {}, "seconds": {}, "client-accuracy": {}, "client-train-loss": {}, "failure-list": []}


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    """Relative folders are the test's own, and no SuperLink starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(simulation, "local_superlink", lambda config: contextlib.nullcontext(("simulation", {})))
    monkeypatch.setattr(runs, "connected", lambda name, environment: contextlib.nullcontext({}))


def write_run(folder, rounds):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"round": number, **dict.fromkeys(NUMBERS, 0.5), **DETAILS} for number in range(1, rounds + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(f"num-rounds: {rounds}\n")
    (folder / "clients.csv").write_text("client\n")


@pytest.fixture
def flower(monkeypatch):
    """A Flower that writes the files of a run and ends as its `ending` says; it keeps what it was asked for."""

    class Flower:
        ending = Ending("finished:completed", interrupted=False)
        writes = True

        def drive(self, config, superlink, arguments, environment):
            self.config, self.superlink = config, superlink
            if self.writes:
                write_run(config.results_path / (config.run_name or "before"), config.num_rounds)
            return self.ending

    fake = Flower()
    monkeypatch.setattr(flower_run, "drive", fake.drive)
    return fake


@pytest.fixture
def small(tiny_images):
    return {"dataset": "npz", "data_dir": tiny_images, "num_clients": 2}


def test_settings_are_keys_with_underscores_and_may_be_paths_and_lists(flower, small, tmp_path):
    result = mh_pfedhn.run(num_rounds=3, models=["lenet", "mlp"], run_name="mine", **small)
    assert (flower.config.num_rounds, flower.config.models, flower.config.profile) == (3, "lenet,mlp", "quickstart")
    assert flower.superlink == "simulation"
    assert result.run_dir == tmp_path / "results/mine"
    assert [line["round"] for line in result.metrics] == [1, 2, 3]
    assert result.config == {"num-rounds": 3}


def test_a_run_without_a_name_gets_one(flower, small, tmp_path):
    result = mh_pfedhn.run("cifar10", **small)
    assert result.run_dir.name == flower.config.run_name
    assert result.run_dir.name.startswith("mh-pfedhn-cifar10-2")


def test_a_run_on_a_superlink_is_not_checked_as_a_simulation(flower, tmp_path):
    result = mh_pfedhn.run("consortium", superlink="lab", run_name="mine", results_dir=tmp_path)
    assert flower.superlink == "lab"
    assert flower.config.dataset == "sites"
    assert result.run_dir == tmp_path / "mine"


@pytest.mark.parametrize("resume", ["results/before", "results/before/checkpoints/round-3.pt"])
def test_a_run_that_goes_on_has_its_results_where_they_were(flower, small, tmp_path, resume):
    checkpoint = tmp_path / "results/before/checkpoints/round-3.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert mh_pfedhn.run(resume=resume, **small).run_dir == tmp_path / "results/before"
    assert flower.config.run_name == ""  # the name is the checkpoint's


def test_a_run_whose_folder_was_renamed_goes_on_under_its_own_name(flower, small, tmp_path):
    write_run(tmp_path / "results/renamed", 1)
    (tmp_path / "results/renamed/config.yaml").write_text("num-rounds: 1\nrun-name: before\n")
    assert mh_pfedhn.run(resume="results/renamed", **small).run_dir == tmp_path / "results/before"


@pytest.mark.parametrize("name", ["backup/round-000003.pt", "round-000003.pt"])
def test_a_checkpoint_that_was_moved_away_goes_on_under_the_name_in_it(flower, small, tmp_path, name):
    saved = checkpoint.save(tmp_path / "saved", 3, {"run-name": "before"}, {}, {})
    (tmp_path / name).parent.mkdir(exist_ok=True)
    saved.rename(tmp_path / name)
    assert mh_pfedhn.run(resume=name, **small).run_dir == tmp_path / "results/before"


def test_a_profile_may_be_a_path(flower, small, tmp_path):
    (tmp_path / "mine.yaml").write_text("base: cifar10\nseed: 5\n")
    mh_pfedhn.run(tmp_path / "mine.yaml", **small)
    assert flower.config.seed == 5


def test_a_mistake_is_the_users_error(flower):
    with pytest.raises(mh_pfedhn.UserError, match="did you mean 'num-rounds'"):
        mh_pfedhn.run(num_round=3)
    with pytest.raises(mh_pfedhn.UserError, match="cifar100"):
        mh_pfedhn.run("cifra100")


def test_a_run_that_fails_raises_and_says_where_its_files_are(flower, small, tmp_path):
    flower.ending = Ending("finished:failed", interrupted=False)
    with pytest.raises(mh_pfedhn.RunFailedError, match="ended as finished:failed") as failed:
        mh_pfedhn.run(run_name="mine", **small)
    assert failed.value.run_dir == tmp_path / "results/mine"


def test_a_run_that_does_not_start_raises(flower, small):
    flower.ending, flower.writes = Ending(None, interrupted=False), False
    with pytest.raises(mh_pfedhn.RunFailedError, match="did not start") as failed:
        mh_pfedhn.run(**small)
    assert failed.value.run_dir is None


def test_an_interrupt_is_no_failure_that_a_loop_over_runs_would_pass_over(flower, small):
    flower.ending = Ending("finished:stopped", interrupted=True)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        mh_pfedhn.run(run_name="mine", **small)
    assert isinstance(interrupted.value, RunInterruptedError)


def test_results_on_another_machine_are_said_to_be_there(flower, tmp_path):
    flower.writes = False
    with pytest.raises(mh_pfedhn.UserError, match=r"has completed, but .* is not on this machine"):
        mh_pfedhn.run("consortium", superlink="lab", results_dir=tmp_path)


def test_a_run_works_in_any_thread(flower, small):
    results = []
    thread = threading.Thread(target=lambda: results.append(mh_pfedhn.run(num_rounds=2, **small)))
    thread.start()
    thread.join()
    assert len(results[0].metrics) == 2


def test_results_are_loaded_from_a_folder(tmp_path):
    write_run(tmp_path / "mine", 2)
    assert len(mh_pfedhn.load_results(tmp_path / "mine").metrics) == 2
    assert mh_pfedhn.load_results(str(tmp_path / "mine")).run_dir == tmp_path / "mine"
    with pytest.raises(mh_pfedhn.UserError, match="holds no metrics"):
        mh_pfedhn.load_results(tmp_path)
