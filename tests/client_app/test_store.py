"""What a client keeps on disk: whole or not at all, and never code."""

import contextlib
import os
import pickle
import re
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app.store import ClientStore
from common import files
from common.errors import UserError

STATE = {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(7)}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "clients" / "3"


@pytest.fixture
def store(folder):
    """In round 5, before any checkpoint."""
    return ClientStore(folder, 5)


@pytest.fixture
def next_round(folder):
    return ClientStore(folder, 6)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_what_is_saved_comes_back_in_the_next_round_in_another_process(store, folder):
    store.save("buffers", STATE)
    assert same(ClientStore(folder, 6).load("buffers"), STATE)
    assert [path.name for path in folder.iterdir()] == ["buffers.pt"]  # no temporary file stays


def test_names_are_kept_apart(store, next_round):
    store.save("buffers", STATE)
    store.save("model", {"other": torch.ones(1)})
    assert same(next_round.load("buffers"), STATE)
    assert next_round.load("personal-model") == {}


def test_trainable_parameters_are_saved_as_plain_tensors(store, next_round, folder):
    state = {"weight": torch.nn.Parameter(torch.ones(2))}
    store.save("model", state)
    store.export("exported", state)
    exported = torch.load(folder / "exported.pt", weights_only=True)["weight"]
    for weight in (next_round.load("model")["weight"], exported):
        assert type(weight) is torch.Tensor
        assert not weight.requires_grad


def test_nothing_is_written_for_no_tensors(store, folder, next_round):
    store.save("buffers", {})
    assert not folder.exists()
    assert next_round.load("buffers") == {}
    assert store.newest("buffers").round == 0


def test_what_is_exported_is_a_plain_state_dict_of_which_the_last_stays(store, folder):
    for number in (1.0, 2.0):
        store.export("personal-model", STATE | {"count": torch.tensor(number)})
    assert same(torch.load(folder / "personal-model.pt", weights_only=True), STATE | {"count": torch.tensor(2.0)})
    assert [path.name for path in folder.iterdir()] == ["personal-model.pt"]


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
def test_a_crash_leaves_what_was_there_before(store, next_round, folder, monkeypatch, module, name, broken):
    store.save("buffers", STATE)
    store.export("exported", STATE)
    with monkeypatch.context() as patched:
        patched.setattr(module, name, broken)
        for keep in (next_round.save, next_round.export):
            with pytest.raises(OSError, match=r"disk full|power cut"):
                keep("buffers" if keep == next_round.save else "exported", {"weight": torch.zeros(1)})
    assert same(next_round.load("buffers"), STATE)
    assert same(torch.load(folder / "exported.pt", weights_only=True), STATE)
    next_round.save("buffers", {"weight": torch.zeros(1)})
    assert same(ClientStore(folder, 7).load("buffers"), {"weight": torch.zeros(1)})


@pytest.mark.parametrize("survives", range(4))
def test_a_crash_while_versions_are_moved_loses_none_that_a_checkpoint_needs(folder, monkeypatch, survives):
    for server_round, checkpoint_round in ((2, 0), (5, 3), (8, 6)):
        ClientStore(folder, server_round, checkpoint_round).save("kept", numbered(server_round))
    replace, left = os.replace, [survives]

    def replace_some(*paths):
        if not left[0]:
            raise OSError("power cut")
        left[0] -= 1
        replace(*paths)

    store = ClientStore(folder, 11, 9)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace_some)
        with contextlib.suppress(OSError):
            store.save("kept", numbered(11))
    for server_round, expected in ((11, 8), (10, 8), (7, 5)):
        assert same(ClientStore(folder, server_round, 9).load("kept"), numbered(expected))
    store.save("kept", numbered(11))
    for server_round, expected in ((12, 11), (10, 8), (7, 5)):
        assert same(ClientStore(folder, server_round, 9).load("kept"), numbered(expected))


def saved(folder: Path) -> bytes:
    ClientStore(folder, 4).save("buffers", STATE)
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
    for read in (store.load, store.newest, lambda name: store.save(name, STATE)):
        with pytest.raises(UserError, match=re.escape(str(folder / "buffers.pt")) + ".*delete it"):
            read("buffers")
    assert (folder / "buffers.pt").read_bytes() == damaged


def test_a_file_of_another_form_is_named_to_the_user(store, folder):
    folder.mkdir(parents=True)
    for content in (STATE, {"round": 3}, [3, STATE]):
        torch.save(content, folder / "buffers.pt")
        with pytest.raises(UserError, match=re.escape(str(folder / "buffers.pt"))):
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
    write({"round": 1, "state": {"weight": Trap(tmp_path / "sprung")}}, folder / "model.pt")
    with pytest.raises(UserError, match=r"model\.pt"):
        store.load("model")
    assert not (tmp_path / "sprung").exists()


# A run that goes on from another


@pytest.fixture
def folder_before(tmp_path):
    return tmp_path / "run-before" / "clients" / "3"


@pytest.fixture
def previous(folder_before):
    return ClientStore(folder_before, 50)


@pytest.fixture
def following(folder, folder_before):
    """The first round of this run, which may be one that the run before had too."""
    return ClientStore(folder, 5, previous=folder_before)


def test_what_the_run_before_kept_is_read_until_this_one_has_kept_its_own(previous, following, folder, folder_before):
    previous.save("kept", STATE)
    previous.save("model", {"weight": torch.ones(1)})
    assert same(following.load("kept"), STATE)
    following.save("kept", {"weight": torch.zeros(2)})
    later = ClientStore(folder, 6, previous=folder_before)
    assert same(later.load("kept"), {"weight": torch.zeros(2)})
    assert same(later.load("model"), {"weight": torch.ones(1)})  # each name for itself
    assert later.load("other") == {}


def test_the_run_before_is_never_written_to(previous, following, folder, folder_before):
    previous.save("kept", STATE)
    following.load("kept")
    assert not folder.exists()
    following.save("kept", {"weight": torch.zeros(2)})
    ClientStore(folder, 60, 55, folder_before).save("kept", {"weight": torch.zeros(2)})
    assert same(ClientStore(folder_before, 51).load("kept"), STATE)
    assert [path.name for path in folder_before.iterdir()] == ["kept.pt"]


def test_a_run_before_without_a_folder_has_kept_nothing(following, next_round):
    assert following.load("kept") == {}
    following.save("kept", STATE)
    assert same(next_round.load("kept"), STATE)


def test_a_damaged_file_of_the_run_before_is_named_to_the_user(previous, following, folder_before):
    previous.save("kept", STATE)
    damaged = folder_before / "kept.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=re.escape(f"state {damaged} is damaged")):
        following.load("kept")


def test_a_damaged_file_is_not_passed_over_for_that_of_the_run_before(previous, following, folder):
    previous.save("kept", STATE)
    following.save("kept", STATE)
    (folder / "kept.pt").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(str(folder / "kept.pt"))):
        following.load("kept")


# Versions: a server that goes back finds what the client had then


def numbered(number):
    return {"value": torch.tensor(float(number))}


def number_in(state):
    """Which of the numbered states it is; 0: nothing."""
    return int(state["value"]) if state else 0


def test_nothing_of_the_round_itself_is_loaded_but_it_is_the_newest(folder):
    store = ClientStore(folder, 5)
    store.save("kept", numbered(5))
    assert store.load("kept") == {}
    assert store.newest("kept").round == 5
    assert number_in(store.newest("kept").state) == 5
    assert number_in(ClientStore(folder, 6).load("kept")) == 5


def test_files_hold_the_round_and_plain_tensors(store, folder):
    store.save("kept", STATE)
    content = torch.load(folder / "kept.pt", weights_only=True)
    assert content.keys() == {"round", "state"}
    assert content["round"] == 5
    assert same(content["state"], STATE)


@pytest.mark.parametrize("name", ["kept", "model", "personal-residual"])
def test_the_states_at_the_last_two_checkpoints_are_kept_and_no_more(folder, name):
    for server_round, checkpoint_round in ((2, 0), (5, 3), (8, 6), (9, 6), (11, 9), (12, 9)):
        ClientStore(folder, server_round, checkpoint_round).save(name, numbered(server_round))
    held = {path.name: number_in(torch.load(path, weights_only=True)["state"]) for path in sorted(folder.iterdir())}
    held_at = {f"{name}-before.pt": 11, f"{name}-checkpoint-1.pt": 9, f"{name}-checkpoint-2.pt": 5, f"{name}.pt": 12}
    assert held == held_at
    assert number_in(ClientStore(folder, 13, 12).load(name)) == 12
    assert number_in(ClientStore(folder, 10, 9).load(name)) == 9
    assert number_in(ClientStore(folder, 7, 6).load(name)) == 5


def test_the_round_of_a_checkpoint_belongs_to_it(folder):
    ClientStore(folder, 3).save("kept", numbered(3))
    ClientStore(folder, 4, 3).save("kept", numbered(4))
    assert number_in(ClientStore(folder, 4, 3).load("kept")) == 3
    ClientStore(folder, 5, 3).save("kept", numbered(5))
    assert number_in(ClientStore(folder, 4, 3).load("kept")) == 3


def test_a_client_that_seldom_takes_part_finds_its_old_state_at_either_checkpoint(folder):
    ClientStore(folder, 2).save("kept", numbered(2))
    ClientStore(folder, 13, 12).save("kept", numbered(13))  # it was not asked from checkpoint 3 to 12
    for server_round, checkpoint_round in ((13, 12), (10, 9)):
        assert number_in(ClientStore(folder, server_round, checkpoint_round).load("kept")) == 2
    ClientStore(folder, 20, 18).save("kept", numbered(20))
    assert number_in(ClientStore(folder, 19, 18).load("kept")) == 13
    assert number_in(ClientStore(folder, 16, 15).load("kept")) == 13
    assert number_in(ClientStore(folder, 13, 12).load("kept")) == 2  # it happens to be there still


def test_a_first_training_after_the_server_went_back_starts_from_nothing(folder):
    ClientStore(folder, 5, 3).save("kept", numbered(5))
    ClientStore(folder, 6, 3).save("kept", numbered(6))
    again = ClientStore(folder, 5, 3)
    assert again.load("kept") == {}
    again.save("kept", numbered(7))
    assert number_in(ClientStore(folder, 6, 3).load("kept")) == 7
    assert ClientStore(folder, 4, 3).load("kept") == {}


def test_several_saves_in_one_round_are_one(folder):
    ClientStore(folder, 2).save("kept", numbered(2))
    for number in (30, 31, 32):
        store = ClientStore(folder, 5, 3)
        assert number_in(store.load("kept")) == 2
        store.save("kept", numbered(number))
        assert number_in(store.newest("kept").state) == number
    assert number_in(ClientStore(folder, 6, 3).load("kept")) == 32
    assert number_in(ClientStore(folder, 4, 3).load("kept")) == 2


def test_going_back_and_on_replaces_what_came_after_the_checkpoint(folder):
    for server_round, checkpoint_round in ((2, 0), (5, 3), (8, 6)):
        ClientStore(folder, server_round, checkpoint_round).save("kept", numbered(server_round))
    again = ClientStore(folder, 7, 6)
    assert number_in(again.load("kept")) == 5
    again.save("kept", numbered(70))
    assert number_in(ClientStore(folder, 8, 6).load("kept")) == 70
    assert number_in(ClientStore(folder, 7, 6).load("kept")) == 5
    assert number_in(ClientStore(folder, 4, 3).load("kept")) == 2


ROUND, CHECKPOINT, BACK, BACK_TWICE = "round", "checkpoint", "back to the last", "back to the one before"
STOP = "stopped in a round, with a checkpoint of the one before"


def play(steps, participates):
    """Let a server and a client's store go through these steps; every load must be what the client had then.

    The clients of a round are drawn from the generator that a checkpoint holds, so that a round that is run again asks
    the same ones: `participates` are the rounds in which this client trains. In the others it is tested.
    """
    history, checkpoints, server_round, number = {}, [], 1, 0  # history: round -> number of the state
    with tempfile.TemporaryDirectory() as folder:
        for step in steps:
            last = checkpoints[-1] if checkpoints else 0
            if step in (ROUND, STOP):
                store = ClientStore(Path(folder), server_round, last)
                assert number_in(store.load("kept")) == (history[max(history)] if history else 0), (server_round, last)
                if server_round in participates:
                    number += 1
                    store.save("kept", numbered(number))
                    assert number_in(store.newest("kept").state) == number
                    history |= {server_round: number} if step == ROUND else {}
                server_round += step == ROUND
            if step in (CHECKPOINT, STOP) and server_round - 1 > last:
                checkpoints = [*checkpoints, server_round - 1][-2:]
            elif step in (BACK, BACK_TWICE):
                checkpoints = checkpoints[:1] if step == BACK_TWICE else checkpoints
                server_round = checkpoints[-1] + 1 if checkpoints else 1
                history = {key: value for key, value in history.items() if key < server_round}


TRAINED = st.sets(st.integers(1, 15))
STEPS = [ROUND, ROUND, ROUND, CHECKPOINT, BACK, BACK_TWICE]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=40), participates=TRAINED)
def test_whatever_checkpoint_a_server_goes_back_to_the_client_loads_what_it_had_then(steps, participates):
    play(steps, participates)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(steps=st.lists(st.sampled_from([*STEPS, STOP]), max_size=40), participates=TRAINED)
def test_a_server_that_is_stopped_in_a_round_finds_what_the_client_had_before_it(steps, participates):
    play(steps, participates)


def test_a_server_may_go_back_to_the_one_before_the_last_twice():
    three = [ROUND, ROUND, ROUND]
    again = [*three, CHECKPOINT, ROUND, BACK_TWICE]
    play([*three, CHECKPOINT, *again, *again, ROUND], {2, 4, 5, 7})


def test_a_first_training_that_is_repeated_starts_from_the_run_before(previous, following, folder, folder_before):
    previous.save("kept", numbered(50))
    following.save("kept", numbered(5))
    assert number_in(following.load("kept")) == 50
