"""`mh-pfedhn export`: the models of a small run, as programs that run where there is nothing but PyTorch."""

import contextlib
import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from fresh_process import new_process
from in_process import InProcessGrid

from client_app.app import app as client
from client_app.programs import FORMS
from client_app.site.simulated import simulated_site
from common.config import load_config
from mh_pfedhn.cli import main
from mh_pfedhn.commands.export import FORMATS
from server_app.app import serve
from server_app.results import tracking

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, and still offered

MODELS = ("lenet/keep-output", "resnet10", "mlp")

# What a machine without this project has: nothing but PyTorch and NumPy.
ELSEWHERE = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"mh_pfedhn", "server_app", "client_app", "common", "flwr", "torchvision", "yaml"}:
            raise ImportError(name)

sys.meta_path.insert(0, Nothing())
import numpy, torch

for path in sys.argv[1:]:
    program = torch.export.load(path).module() if path.endswith(".pt2") else torch.jit.load(path)
    data = numpy.load(path + ".npz")
    logits = program(torch.from_numpy(data["images"]))
    assert not logits.requires_grad
    alone = [program(torch.from_numpy(image[None])) for image in data["images"]]
    assert torch.allclose(torch.cat(alone), logits, atol=1e-4)
    print(int((logits.argmax(1) == torch.from_numpy(data["labels"])).sum()), *logits.shape)
"""


@pytest.fixture(scope="module")
def config(tiny_images, tmp_path_factory):
    """Of a run that has finished."""
    settings = {
        "num-rounds": 2,
        "dataset": "npz",
        "data-dir": str(tiny_images),
        "num-clients": 3,
        "classes-per-client": 2,
        "max-samples-per-class": 0,
        "models": ",".join(MODELS),
        "client-lr": 0.02,
        "chunk-size": 2048,
        "hidden-dim": 8,
        "device": "cpu",
        "results-dir": str(tmp_path_factory.mktemp("export")),
        "run-name": "run",
    }
    config = load_config(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "write_report", lambda run_dir: None)
        patch.setattr("server_app.strategy.at_the_end", lambda save: contextlib.nullcontext())
        serve(InProcessGrid(client, 3, dict(config.to_dict())), config, simulated=True)
    new_process()
    return config


@pytest.fixture
def run_dir(config, tmp_path, monkeypatch):
    """The folder of a copy of the run, beside which the test works."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(config.results_path / "run", tmp_path / "results/run")


def rows(run_dir):
    with (run_dir / "clients.csv").open(newline="") as file:
        return {row["client"]: row for row in csv.DictReader(file)}


def test_programs_have_the_accuracy_of_the_run_on_raw_images_without_this_project(config, run_dir, tmp_path, capsys):
    names, tests = [], []
    for number, form in enumerate(("torch-export", "torch-export", "torchscript")):
        assert main(["export", str(run_dir), str(number), "--format", form]) == 0
        names.append(f"run-{number}{FORMATS[form]}")
        assert capsys.readouterr().out == f"{names[-1]}\n"
        tests.append(simulated_site(config, number, 3).test)
        np.savez(tmp_path / f"{names[-1]}.npz", images=tests[-1].images.numpy(), labels=tests[-1].labels.numpy())
    words = [sys.executable, "-c", ELSEWHERE, *names]
    done = subprocess.run(words, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for number, line in enumerate(done.stdout.splitlines()):
        correct, count, classes = map(int, line.split())
        assert (count, classes) == (len(tests[number]), 4)
        accuracy = rows(run_dir)[str(number)]["last-accuracy"]
        assert round(correct / count, 6) == float(accuracy)
        assert float(accuracy) > 0.25  # it has learned something: a program of the initialisation would not do
    assert number == 2


def test_what_builds_a_model_lies_beside_it_and_in_the_program(run_dir):
    content = json.loads((run_dir / "clients/0/personal-model.json").read_text())
    expected = {
        "run-name": "run",
        "method": "mh-pfedhn",
        "round": 2,
        "client": "0",
        "model": "lenet/keep-output",
        "architecture": "lenet",
        "image-shape": [3, 8, 8],
        "num-classes": 4,
        "class-names": ["0", "1", "2", "3"],
        "inputs": {"shape": [3, 8, 8], "dtype": "float32"},
    }
    assert expected.items() <= content.items()
    assert (len(content["mean"]), len(content["std"])) == (3, 3)
    row = rows(run_dir)["0"]
    assert round(content["test-accuracy"], 6) == float(row["last-accuracy"])
    assert content["test-samples"] == int(row["test-samples"])
    for form in FORMATS:
        main(["export", str(run_dir), "0", "--format", form, "--output", f"model{FORMATS[form]}"])
    found = {"personal-model.json": ""}
    torch.export.load("model.pt2", extra_files=found)
    assert json.loads(found["personal-model.json"]) == content
    found = {"personal-model.json": ""}
    torch.jit.load("model.pt", _extra_files=found)
    assert json.loads(found["personal-model.json"]) == content


def test_a_run_or_a_client_that_is_not_there_is_told_with_what_there_is(run_dir, complaint):
    assert complaint("export", "results/rum", "0") == "results/rum is no folder of a run; did you mean 'run'?"
    assert complaint("export", "results/zzzz", "0").endswith("no folder of a run; runs there: run.")
    assert complaint("export", "results/run", "7") == "results/run has no client '7'; clients: 0, 1, 2."
    assert "has no client '../0'" in complaint("export", "results/run", "../0")
    shutil.rmtree(run_dir / "clients")
    assert "mh-pfedhn site export" in complaint("export", "results/run", "0")


def test_a_run_that_has_not_finished_has_no_models_yet(run_dir, complaint):
    (run_dir / "clients/1/personal-model.pt").unlink()
    assert "Client 1 got no personal model at the end" in complaint("export", "results/run", "1")
    (run_dir / "summary.json").unlink()
    for client_key in ("0", "1"):  # one that is there is of an earlier end, and the run has gone on
        assert "results/run is not finished" in complaint("export", "results/run", client_key)


def test_damaged_files_and_models_that_do_not_fit_are_told(run_dir, tmp_path, complaint):
    path = run_dir / "clients/0/personal-model.pt"
    description = run_dir / "clients/0/personal-model.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps(content | {"num-classes": 5}))
    assert "does not fit the model that its personal-model.json builds" in complaint("export", "results/run", "0")
    description.write_text(json.dumps(content | {"architecture": "lanet"}))
    assert "names architecture 'lanet', but must name one of lenet" in complaint("export", "results/run", "0")
    description.write_text("{")
    assert "personal-model.json is missing or damaged" in complaint("export", "results/run", "0")
    path.write_bytes(path.read_bytes()[:100])
    assert "personal-model.pt is damaged" in complaint("export", "results/run", "0")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["results"]


def test_nothing_is_overwritten_and_the_ending_is_the_one_that_pytorch_goes_by(run_dir, tmp_path, complaint):
    (tmp_path / "run-0.pt2").write_text("mine")
    assert complaint("export", "results/run", "0") == ("run-0.pt2 exists already: choose another name, or remove it.")
    assert (tmp_path / "run-0.pt2").read_text() == "mine"
    assert complaint("export", "results/run", "0", "--output", "model.pt") == (
        "output is model.pt, but a torch-export file must end in .pt2."
    )
    assert "nowhere/m.pt2 cannot be written" in complaint("export", "results/run", "0", "--output", "nowhere/m.pt2")


def test_a_model_of_the_users_own_is_built_by_what_its_description_names(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_export_nets.py").write_text(
        "from torch import nn\n"
        "def net(shape, num_classes):\n"
        "    assert isinstance(shape, tuple)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], num_classes))\n"
    )
    folder = run_dir / "clients/0"
    content = json.loads((folder / "personal-model.json").read_text())
    content = content | {"factory": "my_export_nets:net", "args": [[3, 8, 8], 4]}
    (folder / "personal-model.json").write_text(json.dumps(content))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    torch.save(model.state_dict(), folder / "personal-model.pt")
    assert main(["export", str(run_dir), "0"]) == 0
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(content[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    expected = model((images / 255 - mean) / std)
    torch.testing.assert_close(torch.export.load("run-0.pt2").module()(images), expected.detach())


def test_the_command_offers_the_forms_that_there_are():
    assert {name: form.suffix for name, form in FORMS.items()} == FORMATS
