"""What `mh-pfedhn site check` and `site export` write and say."""

import json
import sys

import pytest
import torch
import yaml

from mh_pfedhn.cli import main

MISTAKE = 2


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


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
    description = {"run-name": "one", "inputs": {"shape": [5], "dtype": "float32"}}
    (tmp_path / "state/runs/one/personal-model.json").write_text(json.dumps(description))
    capsys.readouterr()

    assert main(["site", "export", path, "--run", "one", "--output", "model.pt"]) == 0
    assert capsys.readouterr().out == "model.pt\n"
    exported = torch.load(tmp_path / "model.pt", weights_only=True)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in state.items())
    assert json.loads((tmp_path / "model.pt.json").read_text()) == description

    assert main(["site", "export", path, "--run", "one", "--output", "model.pt2", "--format", "torch-export"]) == 0
    assert capsys.readouterr().out == "model.pt2\n"
    assert torch.export.load("model.pt2").module()(torch.zeros(4, 5)).shape == (4, 3)

    assert "model.pt exists already" in complaint("site", "export", path, "--run", "one", "--output", "model.pt")
    assert "did you mean 'one'?" in complaint("site", "export", path, "--run", "ona", "--output", "other.pt")
    assert not (tmp_path / "other.pt").exists()


def test_site_forget_unbinds_a_key_and_says_whose_it_was(capsys, tmp_path, complaint):
    (tmp_path / "state").mkdir()
    (tmp_path / "state/registered.json").write_text('{"hospital": {"key": "...", "node-id": "7"}}')
    (tmp_path / "state/bindings.json").write_text('{"0b6d1c9e-7a51-4c3f-9d5e": 7, "1a2b": 8}')
    assert "bound are: 0b6d1c9e… of hospital, 1a2b of node 8." in complaint("site", "forget", "x", "--state", "state")
    capsys.readouterr()
    assert main(["site", "forget", "hospital", "--state", "state"]) == 0
    assert capsys.readouterr().out == "Unbound 0b6d1c9e… of hospital: whoever claims that key next keeps it.\n"
    assert json.loads((tmp_path / "state/bindings.json").read_text()) == {"1a2b": 8}
    assert "bound are: 1a2b of node 8." in complaint("site", "forget", "hospital", "--state", "state")
    assert "There is no folder elsewhere: name" in complaint("site", "forget", "x", "--state", "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["check"],
        ["forget", "hospital"],
        ["export", "site.yaml"],
        ["export", "site.yaml", "--run", "one"],
        ["chek", "site.yaml"],
    ],
)
def test_a_wrong_site_command_ends_with_2_and_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(["site", *arguments])
    assert ended.value.code == MISTAKE
    assert "usage: mh-pfedhn site" in capsys.readouterr().err
