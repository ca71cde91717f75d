"""What `mh-pfedhn` says to mistakes, without starting Flower: exit status 2 and one line."""

import contextlib
import signal
import subprocess
import sys

import pytest
import torch
import yaml

from common.cli import _federation, main
from common.config import KEYS, load_config, parse_overrides, profiles

MISTAKE = 2


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch, tmp_path):
    """A mistake must be found before any process is started; relative folders are the test's own."""
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments, **options):
        pytest.fail(f"a process was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.fixture
def complaint(capsys):
    """Run the command with a mistake and return the one line that it writes to stderr."""

    def run(*arguments):
        assert main(arguments) == MISTAKE
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("mh-pfedhn: ")
        assert captured.err.endswith("\n")
        assert captured.err.count("\n") == 1
        return captured.err.removeprefix("mh-pfedhn: ").removesuffix("\n")

    return run


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
        (["nowhere.yaml"], ["'nowhere.yaml'"]),
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


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: None, lambda path: path.write_text("")])
def test_report_on_what_is_no_run_ends_with_2_and_names_it(complaint, tmp_path, make):
    make(tmp_path / "here")
    assert str(tmp_path / "here") in complaint("report", str(tmp_path / "here"))


def test_report_on_a_run_of_no_rounds_ends_with_2(complaint, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert str(tmp_path / "metrics.jsonl") in complaint("report", str(tmp_path))


def test_profiles_lists_every_profile_with_its_description_and_every_key(capsys):
    assert main(["profiles"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    for name, description in profiles():
        assert any(line.split(maxsplit=1) == [name, description] for line in lines)
    listed = {line.split(" = ")[0].strip() for line in lines if " = " in line}
    assert set(KEYS) <= listed


@pytest.mark.parametrize(
    "arguments",
    [[], ["train"], ["run", "--no-such-option"], ["run", "-c"], ["run", "one", "two"], ["report"], ["profiles", "x"]],
)
def test_a_wrong_command_line_ends_with_2_and_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == MISTAKE
    assert "usage: mh-pfedhn" in capsys.readouterr().err


def test_help_ends_with_0(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"    {command} " in text for command in ("run", "report", "profiles"))


def test_a_mistyped_data_folder_is_not_passed_over_for_the_data_that_come_with_the_project(complaint, tmp_path):
    assert "'no/such/folder'" in complaint("run", "-c", "data-dir=no/such/folder", f"results-dir={tmp_path}")


def test_a_results_folder_that_cannot_be_written_to_is_named(complaint, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in complaint("run", "-c", f"results-dir={tmp_path / 'file'}")


def test_an_interrupt_before_the_run_ends_with_one_line(monkeypatch, capsys):
    def interrupted(overrides):
        raise KeyboardInterrupt

    monkeypatch.setattr("common.cli.load_config", interrupted)
    assert main(["run"]) == 1
    assert capsys.readouterr().err == "mh-pfedhn: interrupted before the run began.\n"


@pytest.mark.parametrize("resume", ["nowhere", "results/before/checkpoints/round-3.pt"])
def test_a_run_to_go_on_from_that_does_not_exist_ends_with_2_and_says_where_it_was_looked_for(
    complaint, tmp_path, resume
):
    message = complaint("run", "-c", "mode=adapt", f"resume={resume}")
    assert message == f"resume is '{tmp_path / resume}', but there is no such run folder or checkpoint file."


class StartedError(Exception):
    """All checks are passed."""


@pytest.fixture
def started(monkeypatch):
    """Run the command up to where Flower would start; returns the config that Flower would get."""
    configs = []

    def start(config, superlink, arguments, environment):
        configs.append(config)
        raise StartedError

    monkeypatch.setattr("common.cli._run_with_flower", start)
    monkeypatch.setattr("common.cli._local_superlink", lambda: contextlib.nullcontext(("simulation", {})))

    def run(*arguments):
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(StartedError):
                main(["run", *arguments])
        finally:
            signal.signal(signal.SIGTERM, handler)
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


def test_sites_take_part_where_a_server_is_named(started):
    config = started("consortium", "--superlink", "consortium")
    assert (config.dataset, config.resume) == ("sites", "")
    assert config.run_name.startswith("mh-pfedhn-consortium-2")


def supernodes(*overrides):
    _, text = _federation(load_config(parse_overrides([*overrides, "device=cpu"])))
    return dict(word.split("=") for word in text.split())["num-supernodes"]


def test_held_out_clients_have_no_node_until_they_are_adapted_to():
    five = ("num-clients=5", "held-out=2")
    assert supernodes("num-clients=5") == "5"
    assert supernodes(*five) == "3"
    assert supernodes(*five, "mode=adapt", "resume=before") == "5"


# A site


@pytest.fixture
def site_file(tmp_path):
    """Write a site's YAML, its module beside it. 5 * 7 + 7 and 7 * 3 + 3 parameters: K is 66."""
    path = list(sys.path)
    (tmp_path / "private_net.py").write_text(
        """
import torch
from torch import nn

def build(width=7):
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3))

def load():
    targets = torch.arange(20) % 3
    return (torch.randn(20, 5), targets), (torch.randn(9, 5), targets[:9])

def fails():
    raise ValueError("no such table")
"""
    )

    def write(**changes):
        content = {
            "model": {"factory": "private_net:build"},
            "data": {"factory": "private_net:load"},
            "state-dir": "state",
            "device": "cpu",
        }
        (tmp_path / "site.yaml").write_text(yaml.safe_dump(content | changes))
        return str(tmp_path / "site.yaml")

    yield write
    sys.path[:] = path
    sys.modules.pop("private_net", None)


def test_site_check_shows_k_and_what_the_server_sees_and_writes_nothing(site_file, capsys, tmp_path):
    path = site_file()
    before = sorted(tmp_path.iterdir())
    assert main(["site", "check", path]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    here, _, there = captured.out.partition("What the server will see\n")
    assert "66 parameters (K)" in here
    assert "20 training samples, 9 test samples" in here
    assert "K                  66\n" in there
    assert "training samples   20" in there
    assert "private_net" in here
    assert "private_net" not in there
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == before


def test_site_check_names_all_mistakes_ends_with_2_and_shows_no_traceback(site_file, capsys):
    path = site_file(model={"factory": "private_net:biuld"}, data={"factory": "private_net:fails"}, sed=1)
    assert main(["site", "check", path]) == MISTAKE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mh-pfedhn: ")
    lines = captured.err.splitlines()
    assert len(lines) == 3
    assert all(f"{path}: " in line for line in lines)
    assert "there is no key 'sed'; did you mean 'seed'?" in lines[0]
    assert "model: there is no 'biuld' in module 'private_net'" in lines[1]
    assert "did you mean 'build'?" in lines[1]
    assert "data: private_net:fails raised ValueError: no such table, private_net.py line " in lines[2]
    assert "Traceback" not in captured.err


def test_site_check_of_a_file_that_is_not_there_names_it(complaint, tmp_path):
    assert f"{tmp_path}/nowhere.yaml cannot be read" in complaint("site", "check", str(tmp_path / "nowhere.yaml"))


def test_site_export_writes_the_model_of_a_run_for_plain_pytorch(site_file, capsys, tmp_path, complaint):
    path = site_file()
    assert "no run has finished here yet" in complaint("site", "export", path, "--run", "one", "--output", "model.pt")
    main(["site", "check", path])  # makes the module importable
    torch.manual_seed(6)
    state = sys.modules["private_net"].build().state_dict()
    (tmp_path / "state/runs/one").mkdir(parents=True)
    torch.save(state, tmp_path / "state/runs/one/personal-model.pt")
    capsys.readouterr()

    assert main(["site", "export", path, "--run", "one", "--output", "model.pt"]) == 0
    assert capsys.readouterr().out == "model.pt\n"
    exported = torch.load(tmp_path / "model.pt", weights_only=True)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in state.items())

    assert "model.pt exists already" in complaint("site", "export", path, "--run", "one", "--output", "model.pt")
    assert "did you mean 'one'?" in complaint("site", "export", path, "--run", "ona", "--output", "other.pt")
    assert not (tmp_path / "other.pt").exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["check"], ["export", "site.yaml"], ["export", "site.yaml", "--run", "one"], ["chek", "site.yaml"]],
)
def test_a_wrong_site_command_ends_with_2_and_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(["site", *arguments])
    assert ended.value.code == MISTAKE
    assert "usage: mh-pfedhn site" in capsys.readouterr().err


def test_the_console_script_loads_neither_app_before_it_needs_one(monkeypatch):
    monkeypatch.undo()
    program = (
        "import sys, common.cli\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('client_app', 'server_app', 'torch')])"
    )
    done = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert done == "[]\n"
