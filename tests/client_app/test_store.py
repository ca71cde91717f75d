"""What a client keeps on disk: whole or not at all, and never code."""

import pickle
import re
from pathlib import Path

import pytest
import torch

from client_app.store import ClientStore
from common import files
from common.errors import UserError

STATE = {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(7)}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "clients" / "3"


@pytest.fixture
def store(folder):
    return ClientStore(folder)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_what_is_saved_comes_back_in_another_process(store, folder):
    store.save("buffers", STATE)
    assert same(ClientStore(folder).load("buffers"), STATE)
    assert [path.name for path in folder.iterdir()] == ["buffers.pt"]  # no temporary file stays


def test_names_are_kept_apart(store):
    store.save("buffers", STATE)
    store.save("model", {"other": torch.ones(1)})
    assert same(store.load("buffers"), STATE)
    assert store.load("personal-model") == {}


def test_trainable_parameters_are_saved_as_plain_tensors(store):
    store.save("model", {"weight": torch.nn.Parameter(torch.ones(2))})
    weight = store.load("model")["weight"]
    assert type(weight) is torch.Tensor
    assert not weight.requires_grad


def test_nothing_is_written_for_no_tensors(store, folder):
    store.save("buffers", {})
    assert not folder.exists()
    assert store.load("buffers") == {}


def break_while_writing(state, file):
    file.write(b"half of it")
    raise OSError("disk full")


def break_while_renaming(*paths):
    raise OSError("power cut")


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [(torch, "save", break_while_writing), (files.os, "replace", break_while_renaming)],
    ids=["while writing", "before the new file takes the place of the old"],
)
def test_a_crash_leaves_what_was_there_before(store, monkeypatch, module, name, broken):
    store.save("buffers", STATE)
    with monkeypatch.context() as patched:
        patched.setattr(module, name, broken)
        with pytest.raises(OSError, match=r"disk full|power cut"):
            store.save("buffers", {"weight": torch.zeros(1)})
    assert same(store.load("buffers"), STATE)
    store.save("buffers", {"weight": torch.zeros(1)})
    assert same(store.load("buffers"), {"weight": torch.zeros(1)})


def saved(folder: Path) -> bytes:
    ClientStore(folder).save("buffers", STATE)
    return (folder / "buffers.pt").read_bytes()


# What damage leaves: `good` is the file as it was.
DAMAGE = {
    "empty": lambda good: b"",
    "cut in the middle": lambda good: good[: len(good) // 2],
    "last byte missing": lambda good: good[:-1],
    "zeros": lambda good: bytes(len(good)),
    "text": lambda good: b"nothing of the kind\n",
    "one bad byte in a key": lambda good: good.replace(b"weight", b"w\xffight", 1),
    "another byte order": lambda good: good.replace(b"little", b"LITTLE", 1),
    "one byte too many": lambda good: b"." + good,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_to_the_user(store, folder, damage):
    good = saved(folder)
    damaged = damage(good)
    assert damaged != good
    (folder / "buffers.pt").write_bytes(damaged)
    with pytest.raises(UserError, match=re.escape(str(folder / "buffers.pt")) + ".*delete it"):
        store.load("buffers")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("write", [torch.save, lambda trap, path: path.write_bytes(pickle.dumps(trap, protocol=2))])
def test_a_file_with_code_is_refused_and_the_code_not_run(store, folder, tmp_path, write):
    folder.mkdir(parents=True)
    write({"weight": Trap(tmp_path / "sprung")}, folder / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt"):
        store.load("model")
    assert not (tmp_path / "sprung").exists()


# A run that goes on from another


@pytest.fixture
def previous(tmp_path):
    return ClientStore(tmp_path / "run-before" / "clients" / "3")


@pytest.fixture
def following(folder, tmp_path):
    return ClientStore(folder, tmp_path / "run-before" / "clients" / "3")


def test_what_the_run_before_kept_is_read_until_this_one_has_kept_its_own(previous, following):
    previous.save("kept", STATE)
    previous.save("model", {"weight": torch.ones(1)})
    assert same(following.load("kept"), STATE)
    following.save("kept", {"weight": torch.zeros(2)})
    assert same(following.load("kept"), {"weight": torch.zeros(2)})
    assert same(following.load("model"), {"weight": torch.ones(1)})  # each name for itself
    assert following.load("other") == {}


def test_the_run_before_is_never_written_to(previous, following, folder, tmp_path):
    previous.save("kept", STATE)
    following.load("kept")
    assert not folder.exists()
    following.save("kept", {"weight": torch.zeros(2)})
    assert same(previous.load("kept"), STATE)
    assert [path.name for path in (tmp_path / "run-before" / "clients" / "3").iterdir()] == ["kept.pt"]


def test_a_run_before_without_a_folder_has_kept_nothing(following, store):
    assert following.load("kept") == {}
    following.save("kept", STATE)
    assert same(store.load("kept"), STATE)


def test_a_damaged_file_of_the_run_before_is_named_to_the_user(previous, following, tmp_path):
    previous.save("kept", STATE)
    damaged = tmp_path / "run-before" / "clients" / "3" / "kept.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=re.escape(f"state {damaged} is damaged")):
        following.load("kept")


def test_a_damaged_file_is_not_passed_over_for_that_of_the_run_before(previous, following, folder):
    previous.save("kept", STATE)
    following.save("kept", STATE)
    (folder / "kept.pt").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(str(folder / "kept.pt"))):
        following.load("kept")
