"""A method from outside: FedProto, a package of two files in the user's folder, run by `mh-pfedhn run`.

Class prototypes [n, d] with int64 labels come up, their means go down, and no model leaves its client.
"""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from flower_processes import BIN, environment, metrics, run

from common.config import load_config
from server_app.client import Client
from server_app.methods.base import Replies, Reply

PLUGIN = Path(__file__).with_name("plugin")
METHOD = "method=fedproto.server:FedProto"
SMALL = ["max-samples-per-class=12", "num-clients=5", "checkpoint-every=1", "run-name=run"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's working folder with the package in it."""
    shutil.copytree(PLUGIN / "fedproto", tmp_path / "fedproto")
    return tmp_path


@pytest.fixture
def fedproto(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(PLUGIN))
    config = load_config({METHOD.partition("=")[0]: METHOD.partition("=")[2]})
    yield config.halves.server(config)
    for name in [name for name in sys.modules if name.partition(".")[0] == "fedproto"]:
        del sys.modules[name]


def test_it_is_two_files_of_under_80_lines_together():
    files = [path for path in PLUGIN.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sorted(path.name for path in files) == ["client.py", "server.py"]
    assert sum(len(path.read_text().splitlines()) for path in files) < 80


def test_its_prototypes_are_the_plain_means_of_the_published_toy(fedproto):
    facts = {"num-classes": 3, "width": 2}
    clients = [Client("1", 10, 1, facts), Client("2", 10, 2, facts)]
    playing = fedproto.round(clients)
    exchange = next(playing)
    assert exchange.outgoing(clients)["1"]["prototypes"].shape == (0, 2)
    one = {"labels": torch.tensor([0, 1]), "prototypes": torch.tensor([[2.0, 0.0], [0.0, 2.0]])}
    two = {"labels": torch.tensor([0]), "prototypes": torch.tensor([[0.0, 4.0]])}
    with pytest.raises(StopIteration):
        playing.send(Replies({"1": Reply(one, 30), "2": Reply(two, 10)}))
    assert {label: each.tolist() for label, each in fedproto.prototypes.items()} == {0: [1.0, 2.0], 1: [0.0, 2.0]}
    # A class that nobody sends in a round keeps its last prototype.
    playing = fedproto.round(clients)
    next(playing)
    with pytest.raises(StopIteration):
        playing.send(Replies({"2": Reply(two, 10)}))
    assert {label: each.tolist() for label, each in fedproto.prototypes.items()} == {0: [0.0, 4.0], 1: [0.0, 2.0]}


@pytest.mark.e2e
def test_five_architectures_share_prototypes_and_nothing_else(folder: Path):
    env = environment(folder / "home")
    words = [BIN / "mh-pfedhn", "run", "-c", METHOD, "prototype-weight=0.5", *SMALL]
    assert run(*words, "num-rounds=2", env=env, cwd=folder).returncode == 0
    assert run(*words, "num-rounds=3", "resume=latest", env=env, cwd=folder).returncode == 0
    results = folder / "results" / "run"
    lines = metrics(results)
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert all(line["clients"] == 5 and line["failures"] == {} for line in lines)
    assert "prototype-weight: 0.5" in (results / "config.yaml").read_text()
    # Three labels and three rows of 64 values a client, with NumPy's headers of 128 bytes.
    assert {line["bytes-up"] for line in lines} == {5 * (3 * 8 + 128 + 3 * 64 * 4 + 128)}
    checkpoint = torch.load(results / "checkpoints" / "round-000003.pt", weights_only=True)
    prototypes = checkpoint["method"]["prototypes"]
    assert all(each.shape == (64,) and bool(torch.isfinite(each).all()) for each in prototypes.values())
    assert len(prototypes) > 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["method=fedproto.sever:FedProto"], "module 'fedproto.sever' cannot be imported"),
        (["method=fedproto.server:FedPrto"], "fedproto.server has no 'FedPrto'; did you mean 'FedProto'?"),
        (["method=fedproto.client:FedProto"], "must be a subclass of server_app.methods.base.Method."),
        ([METHOD, "prototype-wight=1"], "There is no key 'prototype-wight' (the command line); did you mean"),
        ([METHOD, "prototype-weight=-1"], "must be a number of at least 0."),
        ([METHOD, "hn-lr=1"], "has no hn-lr (the command line): it is a setting of mh-pfedhn"),
    ],
)
@pytest.mark.e2e
def test_what_is_typed_wrongly_is_one_sentence(folder: Path, words: list[str], sentence: str):
    done = run(BIN / "mh-pfedhn", "run", "-c", *words, env=environment(folder / "home"), cwd=folder)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
