"""Running a comparison, with a Flower that plays what the test says: what is skipped, gone on with, failed, tidied."""

import contextlib
import json
import subprocess

import pytest
import yaml
from filelock import FileLock

import mh_pfedhn
from common.config.batch import run_configs
from common.data import simulation as simulation_data
from common.errors import UserError
from mh_pfedhn import flower_run, simulation
from mh_pfedhn.cli import main
from mh_pfedhn.comparing.running import check, finished, run_plan
from mh_pfedhn.flower_run import Ending
from mh_pfedhn.private_folder import OWNER
from mh_pfedhn.runs import RunFailedError, RunInterruptedError
from server_app import batch
from server_app.results import comparison

COMPLETED = Ending("finished:completed", interrupted=False)
FAILED = Ending("finished:failed", interrupted=False)


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: pytest.fail(f"started: {arguments}"))


@pytest.fixture
def flower(monkeypatch, tmp_path, leave, drawn):
    """A Flower that finishes the runs it is given; returns what it was given, and takes what happens with a run.

    `happens[name]` is called in the place of a run, and returns how the simulation ends, or None to go on.
    """
    happens, simulations = {}, []

    def drive_all(runs, superlink, arguments, environment, shown):
        configs = run_configs({"runs": str(runs)})
        simulations.append(list(configs))
        for name in configs:
            print(shown(batch.BEGINS % name))
            if name in happens:
                ending = happens.pop(name)(runs)
                if ending:
                    return ending
            leave(plans[0][name], checkpoint=4)
            print(shown(batch.COMPLETE % name))
        return COMPLETED

    @contextlib.contextmanager
    def superlink(*configs):
        batch_folder = tmp_path / f"private-{len(simulations)}"
        batch_folder.mkdir()
        yield "simulation", {OWNER: str(batch_folder)}

    plans = []
    monkeypatch.setattr(flower_run, "drive_all", drive_all)
    monkeypatch.setattr(simulation, "local_superlink", superlink)

    def play(plan, **options):
        plans[:] = [{run.name: run for run in plan.runs}]
        return run_plan(plan, **options)

    play.happens, play.simulations, play.plans = happens, simulations, plans
    return play


def names(plan):
    return [run.name for run in plan.runs]


def test_all_runs_are_played_in_one_simulation_and_written_down(flower, small, drawn, capsys):
    plan = small()
    assert flower(plan) == {}
    assert flower.simulations == [names(plan)]
    assert all(finished(run) for run in plan.runs)
    assert yaml.safe_load((plan.folder / "comparison.yaml").read_text()) == plan.to_dict()
    assert json.loads((plan.folder / "failures.json").read_text()) == {}
    assert drawn == [plan.folder] * 4  # after each run
    assert "run 4 of 4 | fedavg, quickstart, seed 1 | is complete" in capsys.readouterr().out


def test_what_is_finished_is_skipped_and_the_rest_played(flower, small, leave):
    plan = small()
    leave(plan.runs[0])
    leave(plan.runs[2], rounds=2, finished=False)
    assert flower(plan) == {}
    assert flower.simulations == [[names(plan)[1], names(plan)[2], names(plan)[3]]]
    assert flower(plan) == {}
    assert len(flower.simulations) == 1


def test_settings_that_need_other_simulations_get_one_each(flower, small):
    plan = small({"settings": {"two": {}, "three": {"num-clients": 3}}, "seeds": [0, 1]})
    assert flower(plan) == {}
    assert flower.simulations == [
        [name for name in names(plan) if "two" in name],
        [name for name in names(plan) if "three" in name],
    ]


def fails(name, reason="The disk is full."):
    def fail(runs):
        batch._path(runs).write_text(json.dumps({"run": name, "reason": reason}))
        return FAILED

    return fail


def test_one_failed_run_does_not_stop_the_rest_and_is_tried_again_by_the_next_call(flower, small):
    plan = small()
    second = names(plan)[1]
    flower.happens[second] = fails(second)
    assert flower(plan) == {second: "The disk is full."}
    assert json.loads((plan.folder / "failures.json").read_text()) == {second: "The disk is full."}
    assert flower.simulations == [names(plan), names(plan)[2:]]
    assert [finished(run) for run in plan.runs] == [True, False, True, True]
    assert flower(plan) == {}
    assert flower.simulations[2:] == [[second]]
    assert json.loads((plan.folder / "failures.json").read_text()) == {}


def test_a_simulation_that_dies_without_a_word_costs_the_run_that_it_was_at(flower, small):
    plan = small()
    flower.happens[names(plan)[2]] = lambda runs: Ending("finished:failed", interrupted=False, silent=True)
    failures = flower(plan)
    assert list(failures) == [names(plan)[2]]
    assert "ended without a word" in failures[names(plan)[2]]


def test_a_flower_that_does_not_start_costs_no_run(flower, small):
    plan = small()
    flower.happens[names(plan)[0]] = lambda runs: Ending(None, interrupted=False)
    with pytest.raises(RunFailedError, match="did not start"):
        flower(plan)
    assert json.loads((plan.folder / "failures.json").read_text()) == {}


def test_an_interrupt_ends_all_and_the_next_call_goes_on(flower, small):
    plan = small()
    flower.happens[names(plan)[1]] = lambda runs: Ending("finished:stopped", interrupted=True)
    with pytest.raises(RunInterruptedError, match="the same command goes on"):
        flower(plan)
    assert flower(plan) == {}
    assert flower.simulations == [names(plan), names(plan)[1:]]


@pytest.mark.parametrize("keep", [True, False])
def test_checkpoints_of_finished_runs_are_deleted_unless_they_are_to_be_kept(flower, small, leave, keep):
    plan = small()
    before = leave(plan.runs[0], checkpoint=4)
    flower(plan, keep_checkpoints=keep)
    assert before.joinpath("checkpoints").exists() == keep
    assert (plan.folder / names(plan)[3] / "checkpoints").exists() == keep


def test_a_drawing_that_fails_costs_no_run_and_is_told_once(flower, small, drawn, monkeypatch, capsys):
    def fail(folder):
        raise ValueError("no fonts")

    monkeypatch.setattr(comparison, "write_comparison", fail)
    assert flower(small()) == {}
    assert capsys.readouterr().out.count("could not be drawn (ValueError: no fonts)") == 1


# Refusals


def test_a_run_that_was_begun_with_other_settings_is_refused_by_key(small, leave):
    folder = leave(small().runs[1], finished=False)
    with pytest.raises(UserError) as caught:
        check(small({"num-rounds": 6}))
    assert str(caught.value) == (
        "fedavg-quickstart-0 is there already, with num-rounds 4 instead of 6: give the comparison another --name, or "
        f"delete {folder} to run it anew."
    )
    check(small({"num-rounds": 4, "deadline": 7, "checkpoint-every": 1}))  # no result depends on these


def test_two_at_once_are_refused(flower, small):
    plan = small()
    plan.folder.mkdir(parents=True)
    with FileLock(plan.folder / ".lock"), pytest.raises(UserError, match="is being written by another"):
        flower(plan)


def test_the_folder_of_a_run_is_not_taken(small):
    plan = small()
    plan.folder.mkdir(parents=True)
    (plan.folder / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="is the folder of a run: give the comparison another --name"):
        check(plan)


def test_what_would_end_one_of_the_runs_is_found_before_the_first_and_says_which(small, tmp_path):
    plan = small({"settings": {"a": {}, "b": {"num-clients": 1}}})
    with pytest.raises(UserError, match=r"^local, b, seed 0: 1 clients take part"):
        check(plan)
    assert not (tmp_path / "results").exists()


def test_data_are_read_once_for_all_settings_and_seeds(small, monkeypatch):
    read = []
    open_dataset = simulation_data.open_dataset
    monkeypatch.setattr(
        simulation_data, "open_dataset", lambda *given, **more: read.append(1) or open_dataset(*given, **more)
    )
    simulation_data.forget_data_sets()
    plan = small({"settings": {"a": {}, "b": {"classes-per-client": 1}}, "seeds": [0, 1, 2]})
    check(plan)
    assert len(read) == 1
    assert simulation_data._opened.cache_info().currsize == 0  # the apps open them in processes of their own


def test_a_global_model_that_does_not_suit_the_data_is_found_whatever_method_comes_first(small):
    own = {"dataset": "own_code:as_dataset", "partition": "by-client", "num-clients": 4, "models": "own_code:linear"}
    methods = {"mh-pfedhn": {"hidden-dim": 4}, "mh-pfedhn-gd": {"hidden-dim": 4, "gd-fraction": 1.0}}
    check(small(own | {"methods": {"mh-pfedhn": methods["mh-pfedhn"]}}))
    with pytest.raises(UserError, match=r"^mh-pfedhn-gd, quickstart, seed 0: global-model: "):
        check(small(own | {"methods": methods}))


# The command, and Python


@pytest.fixture
def file(tmp_path, tiny_images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"base": "quickstart", "methods": ["local"], "seeds": [0, 1], "num-rounds": 4, "dataset": "npz"}
    content |= {"data-dir": str(tiny_images), "num-clients": 2, "models": "lenet", "classes-per-client": 2}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    return "mine.yaml"


@pytest.fixture
def planned(flower, monkeypatch):
    """Let the Flower of these tests know the runs of the plan that the command makes."""
    from mh_pfedhn.comparing import running

    def run(plan, **options):
        flower.plans[:] = [{run.name: run for run in plan.runs}]
        return run_plan(plan, **options)

    monkeypatch.setattr(running, "run_plan", run)
    return flower


def test_the_command_ends_with_0_and_the_table(planned, file, tmp_path, capsys):
    (tmp_path / "results/mine").mkdir(parents=True)
    (tmp_path / "results/mine/comparison.html").write_text("")
    assert main(["compare", file]) == 0
    said = capsys.readouterr()
    page = tmp_path / "results/mine/comparison.html"
    assert said.out.endswith(f"\nthe table of mine\n\nComparison: {page}\n")
    assert said.err == ""


def test_the_command_takes_settings_seeds_and_a_name(planned, file, tmp_path):
    assert main(["compare", file, "--seeds", "3,4", "--name", "other", "-c", "num-rounds=2"]) == 0
    assert planned.simulations == [["local-quickstart-3", "local-quickstart-4"]]
    config = yaml.safe_load((tmp_path / "results/other/local-quickstart-3/config.yaml").read_text())
    assert (config["num-rounds"], config["seed"]) == (2, 3)


def test_the_command_ends_with_1_and_names_what_has_failed(planned, file, capsys):
    planned.happens["local-quickstart-0"] = fails("local-quickstart-0")
    assert main(["compare", file]) == 1
    said = capsys.readouterr()
    assert "the table of mine" in said.out
    assert said.err == (
        "mh-pfedhn: 1 of 2 runs failed, and are tried again by the next call: local-quickstart-0 (The disk is full).\n"
    )


def test_an_interrupted_command_ends_with_1_and_one_line(planned, file, capsys):
    planned.happens["local-quickstart-1"] = lambda runs: Ending("finished:stopped", interrupted=True)
    assert main(["compare", file]) == 1
    assert capsys.readouterr().err == (
        "mh-pfedhn: mine was interrupted; what is complete is kept, and the same command goes on.\n"
    )


def test_a_mistake_ends_with_2_and_leaves_no_files_behind(planned, file, tmp_path, capsys):
    assert main(["compare", file, "-c", "num-rounds=0"]) == 2
    assert capsys.readouterr().err == (
        "mh-pfedhn: num-rounds is 0 in the command line, but must be a whole number of at least 1.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_from_python_it_is_the_same(planned, file, tmp_path):
    found = mh_pfedhn.compare(file, num_rounds=3, seeds=[5], name="mine2")
    assert found.folder == tmp_path / "results/mine2"
    assert planned.simulations == [["local-quickstart-5"]]
    planned.happens["local-quickstart-6"] = fails("local-quickstart-6")
    with pytest.raises(RunFailedError, match=r"1 of 1 runs failed.*local-quickstart-6") as failed:
        mh_pfedhn.compare(file, seeds=[6], name="mine2")
    assert failed.value.run_dir == tmp_path / "results/mine2"
