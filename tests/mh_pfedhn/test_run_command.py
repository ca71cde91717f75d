"""What `mh-pfedhn run` says to mistakes, without starting Flower: exit status 2 and one line."""

import contextlib
import signal
import subprocess

import pytest
from writers import write

from common.config import load_config, parse_overrides
from common.text import shown
from mh_pfedhn import flower_run, runs, simulation
from mh_pfedhn.cli import main
from mh_pfedhn.flower_run import Ending


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch, tmp_path):
    """A mistake must be found before any process is started; relative folders are the test's own."""
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments, **options):
        pytest.fail(f"a process was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["-c", "num-round=3"], ["'num-round'", "did you mean 'num-rounds'?"]),
        (["-c", "num-rounds=0"], ["num-rounds is 0", "whole number of at least 1"]),
        (["-c", "num-rounds=many"], ["num-rounds is 'many'"]),
        (["-c", "anchor=perhaps"], ["anchor is 'perhaps'", "true or false"]),
        (["-c", "schedule=jiont"], ["schedule is 'jiont'", "'joint'"]),
        (["-c", "models=lenet,vg8"], ["models is 'lenet,vg8'", "'vgg8'"]),
        (["-c", "run-name=a/b"], ["run-name is 'a/b'"]),
        (["-c", "num-rounds"], ["'num-rounds'", "key=value"]),
        (["-c", "seed=1", "num-rounds=0"], ["num-rounds is 0"]),
        (["-c", "seed=1", "-c", "num-rounds=0"], ["num-rounds is 0"]),
        (["cifra100"], ["'cifra100'", "'cifar100'"]),
        (["nowhere.yaml"], ["'nowhere.yaml' names a file, but there is no such file in "]),
        (["sub/nowhere"], ["'sub/nowhere' names a file, but there is no such file in "]),
        (["num-rounds=5"], ["'num-rounds=5' is no profile: settings come after -c, as in mh-pfedhn run -c num-ro"]),
        (["cifar10", "num-rounds=5"], ["'num-rounds=5' is no profile: settings come after -c"]),
        (["cifar10", "paper-code"], ["2 profiles are given: join them, as in cifar10+paper-code."]),
        ([""], ["There is no profile ''"]),
        (["-c", "seed=1", "cifar10"], ["-c 'cifar10' is not of the form key=value", "a profile stands before -c"]),
        (["-c", "data-dir="], ["data-dir is empty in the command line, but must be text that is not empty."]),
        (["-c", "data-dir=" + "x" * 300], ["data-dir is 'xxx", "(302 characters), but there is no "]),
        (["-c", "results-dir=" + "x" * 300], ["results-dir ", "File name too long"]),
        (["-c", "resume=" + "x" * 300], ["resume is '", "no such run folder or checkpoint file"]),
        (["-c", "num-clients=1e12"], ["num-clients is 1000000000000.0", "at most 1000000"]),
        (["-c", "profile=cifra100"], ["'cifra100'", "'cifar100'"]),
        (["paper-code"], ["'paper-code'", "cifar100+paper-code"]),
        (["-c", "num-clients=3", "min-clients=4"], ["3 clients take part", "num-clients", "min-clients is 4"]),
        (
            ["-c", "num-clients=5", "held-out=3", "min-clients=3"],
            ["2 clients take part", "held-out", "min-clients is 3"],
        ),
        (["-c", "num-clients=5", "held-out=5"], ["held-out is 5", "below num-clients, which is 5"]),
        (["-c", "held-out-models=mlp"], ["held-out-models is set, but held-out is 0"]),
        (["-c", "mode=adapt"], ["mode is 'adapt', so resume must name the run folder"]),
        (["-c", "resume=results/before"], ["results/before', but there is no such run folder or checkpoint file"]),
        (["-c", "resume=latest"], ["resume is 'latest', so run-name must say of which run"]),
        (["-c", "resume=latest", "mode=adapt", "run-name=mine"], ["resume is 'latest', but mode 'adapt' starts from"]),
        (["consortium"], ["dataset is 'sites'", "nothing can be simulated", "--superlink", "choose a data set"]),
        (["-c", "dataset=sites"], ["dataset is 'sites'", "mh-pfedhn site run"]),
        (["--superlink", "anywhere", "-c", "num-rounds=0"], ["num-rounds is 0"]),
    ],
)
def test_a_mistake_in_what_is_asked_ends_with_2_and_one_line(complaint, arguments, parts):
    message = complaint("run", *arguments)
    for part in parts:
        assert part in message


def test_a_mistake_in_a_profile_of_the_users_own_names_the_file(complaint, tmp_path):
    (tmp_path / "mine.yaml").write_text("base: cifar10\nnum-rounds: 0\n")
    message = complaint("run", "mine.yaml")
    assert "num-rounds is 0" in message
    assert "mine.yaml" in message


def test_the_profile_before_the_options_wins(complaint):
    assert "'first'" in complaint("run", "first", "-c", "profile=second")


def test_missing_data_ends_with_2_and_says_where_it_was_looked_for_and_how_to_get_it(complaint, tmp_path):
    message = complaint("run", "-c", "dataset=cifar10", f"data-dir={tmp_path}")
    assert "'cifar10' is missing" in message
    assert str(tmp_path) in message
    assert "download=True" in message


def test_a_relative_data_folder_starts_where_the_command_is_given(complaint, tmp_path):
    assert str(tmp_path / "images") in complaint("run", "-c", "dataset=cifar10", "data-dir=images")


def test_a_run_folder_that_holds_a_run_is_not_written_again(complaint, tmp_path):
    folder = tmp_path / "results" / "mine"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("{}\n")
    message = complaint("run", "-c", "run-name=mine")
    assert str(folder) in message
    assert "run-name" in message
    assert "resume=latest" in message
    other = tmp_path / "elsewhere" / "mine"
    other.mkdir(parents=True)
    (other / "metrics.jsonl").write_text("{}\n")
    assert str(other) in complaint("run", "-c", "run-name=mine", "results-dir=elsewhere")


def test_a_mistake_leaves_no_files_behind(complaint, tmp_path):
    complaint("run", "-c", "dataset=cifar10", f"data-dir={tmp_path}", "run-name=mine")
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_data_folder_is_not_passed_over_for_the_data_that_come_with_the_project(complaint, tmp_path):
    assert "'no/such/folder'" in complaint("run", "-c", "data-dir=no/such/folder", f"results-dir={tmp_path}")


def test_a_results_folder_that_cannot_be_written_to_is_named(complaint, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in complaint("run", "-c", f"results-dir={tmp_path / 'file'}")


def test_an_interrupt_before_the_run_ends_with_one_line(monkeypatch, capsys):
    def interrupted(overrides, origin):
        raise KeyboardInterrupt

    monkeypatch.setattr("mh_pfedhn.runs.load_config", interrupted)
    assert main(["run"]) == 1
    assert capsys.readouterr().err == "mh-pfedhn: interrupted.\n"


@pytest.mark.parametrize("resume", ["nowhere", "results/before/checkpoints/round-3.pt"])
def test_a_run_to_go_on_from_that_does_not_exist_ends_with_2_and_says_where_it_was_looked_for(
    complaint, tmp_path, resume
):
    message = complaint("run", "-c", "mode=adapt", f"resume={resume}")
    assert message == f"resume is {shown(str(tmp_path / resume))}, but there is no such run folder or checkpoint file."


class StartedError(Exception):
    """All checks are passed."""


@pytest.fixture
def started(monkeypatch):
    """Run the command up to where Flower would start; returns the config that Flower would get."""
    configs = []

    def start(config, superlink, arguments, environment):
        configs.append(config)
        raise StartedError

    monkeypatch.setattr(flower_run, "drive", start)
    monkeypatch.setattr(simulation, "local_superlink", lambda config: contextlib.nullcontext(("simulation", {})))
    monkeypatch.setattr(runs, "connected", lambda name, environment: contextlib.nullcontext({}))

    def run(*arguments):
        with pytest.raises(StartedError):
            main(["run", *arguments])
        return configs.pop()

    return run


def test_latest_goes_on_with_a_run_that_is_there_and_starts_one_that_is_not(started, tmp_path, tiny_images):
    run = ["-c", "resume=latest", "run-name=mine", "dataset=npz", f"data-dir={tiny_images}", "num-clients=2"]
    assert (started(*run).resume, started(*run).run_name) == ("latest", "mine")
    (tmp_path / "results/mine").mkdir(parents=True)
    (tmp_path / "results/mine/metrics.jsonl").write_text("{}\n")
    config = started(*run)
    assert (config.resume, config.run_name, config.results_dir) == ("latest", "mine", str(tmp_path / "results"))


def test_a_run_to_go_on_from_is_looked_for_where_the_command_is_given_and_keeps_its_name(
    started, tmp_path, tiny_images
):
    (tmp_path / "results/before").mkdir(parents=True)
    data = ["dataset=npz", f"data-dir={tiny_images}", "num-clients=2"]
    config = started("-c", "resume=results/before", *data)
    assert (config.resume, config.run_name) == (str(tmp_path / "results/before"), "")  # the name is the checkpoint's
    adapting = started("-c", "resume=results/before", "mode=adapt", *data)
    assert adapting.run_name.startswith("mh-pfedhn-quickstart-2")


def test_sites_take_part_where_a_server_is_named(started, tmp_path):
    config = started("consortium", "--superlink", "consortium")
    assert (config.dataset, config.resume) == ("sites", "")
    assert config.results_dir == str(tmp_path / "results")  # the ServerApp runs in another folder of this machine
    assert config.run_name.startswith("mh-pfedhn-consortium-2")


def supernodes(*overrides):
    _, text = simulation.federation(load_config(parse_overrides([*overrides, "device=cpu"])))
    return dict(word.split("=") for word in text.split())["num-supernodes"]


def test_held_out_clients_have_no_node_until_they_are_adapted_to():
    five = ("num-clients=5", "held-out=2")
    assert supernodes("num-clients=5") == "5"
    assert supernodes(*five) == "3"
    assert supernodes(*five, "mode=adapt", "resume=before") == "5"


@pytest.fixture
def by_writer(tmp_path):
    """Settings of a run by-client on the data of six writers, who have 5, 12, 19, 26, 33 and 40 samples."""
    path = write().write_npz(tmp_path / "writers.npz", "owners")
    return ["dataset=npz", f"data-dir={path}", "partition=by-client"]


def test_no_number_of_clients_stands_for_all_owners(started, by_writer):
    assert started("-c", *by_writer, "num-clients=0").num_clients == 6
    assert started("-c", *by_writer, "num-clients=0", "min-samples=13").num_clients == 4
    config = started("-c", *by_writer, "num-clients=0", "held-out=2")
    assert (config.num_clients, config.num_nodes) == (6, 4)
    assert started("-c", *by_writer, "num-clients=3").num_clients == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["num-clients=7"], "There cannot be 7 clients: "),
        (["num-clients=0", "held-out=6"], "held-out is 6, but must be below the number of clients: num-clients is 0, "),
        (["num-clients=0", "min-samples=41"], "min-samples is 41, but the largest owner in "),
        (["num-clients=0", "min-samples=40"], "1 clients take part (num-clients less held-out), but min-clients is 2"),
    ],
)
def test_owners_that_are_too_few_are_found_before_anything_starts(complaint, by_writer, settings, message):
    assert complaint("run", "-c", *by_writer, *settings).startswith(message)


# How it ends


@pytest.mark.parametrize("resume", ["results/before", "results/before/checkpoints/round-3.pt"])
def test_a_server_gets_absolute_paths_of_what_lies_here(started, tmp_path, resume):
    config = started("consortium", "--superlink", "lab", "-c", f"resume={resume}", "results-dir=elsewhere")
    assert (config.resume, config.results_dir) == (str(tmp_path / resume), str(tmp_path / "elsewhere"))


def test_a_run_that_is_there_is_not_begun_again_on_a_server(complaint, tmp_path):
    (tmp_path / "results/mine").mkdir(parents=True)
    (tmp_path / "results/mine/metrics.jsonl").write_text("{}\n")
    message = complaint("run", "consortium", "--superlink", "lab", "-c", "run-name=mine")
    assert message.startswith(f"{tmp_path / 'results/mine'} holds a run already")


def test_a_server_that_is_not_known_ends_with_2_and_the_known_ones(complaint, monkeypatch, tmp_path):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text('[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "10.0.0.1:1"\n')
    message = complaint("run", "consortium", "--superlink", "nope")
    assert message == f"--superlink is 'nope', but {tmp_path / 'config.toml'} has no such connection: it has 'lab'."


@pytest.fixture
def ends_as(monkeypatch, tmp_path):
    """Run the command with a Flower that ends so, and writes a summary if asked; returns the exit code."""
    monkeypatch.setattr(runs, "connected", lambda name, environment: contextlib.nullcontext({}))
    monkeypatch.setattr("server_app.results.final_table", lambda run_dir: f"the table of {run_dir.name}")

    def run(ending, *, summary=False):
        def drive(config, superlink, arguments, environment):
            if summary:
                folder = config.results_path / config.run_name
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "summary.json").write_text("{}")
            return ending

        monkeypatch.setattr(flower_run, "drive", drive)
        return main(["run", "--superlink", "lab", "-c", "run-name=mine", f"results-dir={tmp_path / 'results'}"])

    return run


@pytest.mark.parametrize("drawn", [True, False])
def test_a_run_that_completes_ends_with_0_and_its_table(ends_as, capsys, tmp_path, drawn):
    report = tmp_path / "results/mine/report.html"
    if drawn:
        report.parent.mkdir(parents=True)
        report.touch()
    assert ends_as(Ending("finished:completed", interrupted=False), summary=True) == 0
    captured = capsys.readouterr()
    assert captured.out == "\nthe table of mine\n\n" + (f"Report: {report}\n" if drawn else "")
    assert captured.err == ""


def test_a_run_whose_files_are_on_another_machine_ends_with_0(ends_as, capsys):
    assert ends_as(Ending("finished:completed", interrupted=False)) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_run_that_does_not_complete_ends_with_1_and_its_status(ends_as, capsys, interrupted):
    # A summary in its folder is that of the earlier run that was to go on.
    assert ends_as(Ending("finished:stopped", interrupted), summary=True) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "mh-pfedhn: the run ended as finished:stopped; the log above says why.\n"


def test_a_serverapp_that_was_killed_is_told_as_that_and_how_to_go_on(ends_as, capsys):
    assert ends_as(Ending("finished:failed", interrupted=False, silent=True)) == 1
    said = capsys.readouterr().err
    assert "ServerApp ended without a word: killed, or for want of memory" in said
    assert "resume=latest run-name=mine" in said
    assert said.count("\n") == 1


def test_a_run_that_does_not_start_ends_with_1(ends_as, capsys):
    assert ends_as(Ending(None, interrupted=False)) == 1
    assert capsys.readouterr().err == "mh-pfedhn: Flower did not start the run; its own words are above.\n"


def test_sigterm_interrupts_the_run_and_means_afterwards_what_it_meant_before(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def drive(*arguments):
        seen.append(signal.getsignal(signal.SIGTERM))
        return Ending("finished:completed", interrupted=False)

    monkeypatch.setattr(flower_run, "drive", drive)
    monkeypatch.setattr(runs, "connected", lambda name, environment: contextlib.nullcontext({}))
    assert main(["run", "--superlink", "lab"]) == 0
    assert seen == [signal.default_int_handler]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_profile_that_is_given_twice_ends_with_2(complaint):
    assert complaint("run", "quickstart", "-c", "profile=cifar100").startswith("profile is given twice")


@pytest.mark.parametrize("key", ["keep-local", "freeze"])
@pytest.mark.parametrize("pattern", ["99.*", "*", "7"])
def test_patterns_that_do_not_fit_a_model_end_with_2_before_anything_starts(complaint, key, pattern):
    said = complaint("run", "quickstart", "-c", f"{key}={pattern}", "max-samples-per-class=12", "models=lenet")
    assert said.startswith("model 'lenet': keep-local and freeze do not fit the model")
