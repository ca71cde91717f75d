"""What a client keeps on disk: whole or not at all, never code, and never another round's in place of the right one."""

import pickle
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from asking import taken, told
from hypothesis import given, settings
from hypothesis import strategies as st

from client_app.store import ClientStore
from common import files
from common.errors import ProtocolError
from common.lineage import Point

STATE = {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(7)}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def at(tmp_path):
    """The store in a round, with other changes of the instructions."""

    def at_round(server_round, **changes):
        if "seen" not in changes:
            here = Point(changes.get("run_name", "run"), changes.get("line", "first"), server_round)
            changes["seen"] = taken(lambda run_name: tmp_path / run_name, here, changes.get("lineage", ()))
        return ClientStore(lambda run_name: tmp_path / run_name, told(server_round=server_round, **changes))

    return at_round


@pytest.fixture
def store(at):
    return at(5)


@pytest.fixture
def next_round(at):
    return at(6, seen=Point("run", "first", 5))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def keep(store, name, state):
    store.save(name, state)
    store.commit()


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back_in_the_next_round_in_another_process(store, folder, at):
    keep(store, "buffers", STATE)
    assert same(at(6).load("buffers"), STATE)
    assert files_in(folder) == ["buffers.000005.pt", "history.json"]  # no temporary file stays


def test_names_are_kept_apart(store, next_round):
    store.save("buffers", STATE)
    keep(store, "model", {"other": torch.ones(1)})
    assert same(next_round.load("buffers"), STATE)
    assert next_round.load("personal-model") == {}


def test_trainable_parameters_are_saved_as_plain_tensors(store, next_round, folder):
    state = {"weight": torch.nn.Parameter(torch.ones(2))}
    keep(store, "model", state)
    store.export("exported", state)
    exported = torch.load(folder / "exported.pt", weights_only=True)["weight"]
    for weight in (next_round.load("model")["weight"], exported):
        assert type(weight) is torch.Tensor
        assert not weight.requires_grad


def test_for_no_tensors_nothing_is_written_but_the_round(store, folder, at):
    store.save("buffers", {})
    assert not folder.exists()
    store.commit()
    assert files_in(folder) == ["history.json"]
    assert at(6).load("buffers") == {}
    assert at(6).newest("buffers").round == 0


def test_what_is_exported_is_a_plain_state_dict_of_which_the_last_stays(store, folder):
    for number in (1.0, 2.0):
        store.export("personal-model", STATE | {"count": torch.tensor(number)})
    assert same(torch.load(folder / "personal-model.pt", weights_only=True), STATE | {"count": torch.tensor(2.0)})
    assert files_in(folder) == ["personal-model.pt"]


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
def test_a_crash_leaves_what_was_there_before(store, next_round, folder, at, monkeypatch, module, name, broken):
    keep(store, "buffers", STATE)
    store.export("exported", STATE)
    with monkeypatch.context() as patched:
        patched.setattr(module, name, broken)
        for write in (next_round.save, next_round.export):
            with pytest.raises(OSError, match=r"disk full|power cut"):
                write("buffers" if write == next_round.save else "exported", {"weight": torch.zeros(1)})
    assert same(next_round.load("buffers"), STATE)
    assert same(torch.load(folder / "exported.pt", weights_only=True), STATE)
    keep(next_round, "buffers", {"weight": torch.zeros(1)})
    assert same(at(7).load("buffers"), {"weight": torch.zeros(1)})


def test_what_was_written_before_a_crash_counts_only_with_its_round_in_the_history(store, next_round, folder, at):
    keep(store, "kept", numbered(5))
    next_round.save("kept", numbered(6))  # and then the power fails
    assert number_in(at(7).load("kept")) == 5
    keep(at(7), "other", STATE)
    assert files_in(folder) == ["history.json", "kept.000005.pt", "other.000007.pt"]


# What is lost is refused, not replaced


def refused(ask, *words):
    with pytest.raises(ProtocolError) as error:
        ask()
    assert error.value.reason == "state-missing"
    for word in words:
        assert word in error.value.detail


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
def test_a_damaged_file_is_refused_by_name_though_an_older_one_is_there(folder, at, damage):
    keep(at(4), "buffers", STATE)
    keep(at(5), "buffers", STATE)
    path = folder / "buffers.000005.pt"
    good = path.read_bytes()
    damaged = damage(good)
    assert damaged != good
    path.write_bytes(damaged)
    for read in (at(6).load, at(6).newest):
        refused(lambda read=read: read("buffers"), str(path), "round 5", "is damaged", "backup")
    assert path.read_bytes() == damaged


def test_a_file_of_another_form_is_refused(store, next_round, folder):
    keep(store, "buffers", STATE)
    for content in (STATE, {"round": 5}, [5, STATE]):
        torch.save(content, folder / "buffers.000005.pt")
        refused(lambda: next_round.load("buffers"), "buffers.000005.pt")


def test_a_lost_file_is_refused_as_long_as_it_is_the_one_that_is_needed(folder, at):
    keep(at(4), "kept", numbered(4))
    keep(at(5), "kept", numbered(5))
    (folder / "kept.000005.pt").unlink()
    refused(lambda: at(6).load("kept"), "kept.000005.pt is gone")
    assert number_in(at(5).load("kept")) == 4
    keep(at(6), "kept", numbered(6))
    assert number_in(at(7).load("kept")) == 6


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"lines": 3}', b'{"lines": {"first": {"x": []}}}'])
def test_a_damaged_history_is_refused_by_name(store, next_round, folder, content):
    keep(store, "kept", STATE)
    (folder / "history.json").write_bytes(content)
    refused(lambda: next_round.load("kept"), str(folder / "history.json"), "is damaged")


def test_a_client_whose_disk_was_lost_or_restored_is_refused_where_the_server_learned_from_it(folder, at, tmp_path):
    at(1, seen=None).check()  # nothing is expected of a new one
    for server_round in (4, 5):
        at(server_round).commit()
    backup = shutil.copytree(folder, tmp_path / "backup")
    at(6).commit()
    seen = Point("run", "first", 6)
    at(7, seen=seen).check()
    shutil.rmtree(folder)
    refused(at(7, seen=seen).check, "round 6", str(folder))
    backup.rename(folder)
    refused(at(7, seen=seen).check, "round 6", str(folder))
    refused(at(7, seen=Point("run", "other", 5)).check)  # a round of that number, but on another line
    at(7, seen=Point("run", "first", 5)).check()


def test_a_round_again_on_another_line_does_not_pass_for_the_first_try(at):
    keep(at(5), "kept", numbered(5))
    keep(at(6), "kept", numbered(6))
    again = {"line": "second", "lineage": (Point("run", "first", 5),)}
    keep(at(6, **again), "kept", numbered(60))
    refused(lambda: at(7).load("kept"), "holds another try at that round")
    assert number_in(at(7, **again).load("kept")) == 60


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("write", [torch.save, lambda trap, path: path.write_bytes(pickle.dumps(trap, protocol=2))])
def test_a_file_with_code_is_refused_and_the_code_not_run(store, next_round, folder, tmp_path, write):
    keep(store, "model", STATE)
    content = {"line": "first", "round": 5, "state": {"weight": Trap(tmp_path / "sprung")}}
    write(content, folder / "model.000005.pt")
    refused(lambda: next_round.load("model"), "model.000005.pt")
    assert not (tmp_path / "sprung").exists()


# Lines of history: a server that goes back finds what the client had then


def numbered(number):
    return {"value": torch.tensor(float(number))}


def number_in(state):
    """Which of the numbered states it is; 0: nothing."""
    return int(state["value"]) if state else 0


def test_nothing_of_the_round_itself_is_loaded_but_it_is_the_newest(store, at):
    keep(store, "kept", numbered(5))
    for again in (store, at(5)):
        assert again.load("kept") == {}
        assert again.newest("kept").round == 5
        assert number_in(again.newest("kept").state) == 5
    assert number_in(at(6).load("kept")) == 5


def test_a_round_that_is_run_again_does_not_see_its_own_first_try(at):
    for server_round in (4, 5):
        keep(at(server_round), "kept", numbered(server_round))
    again = {"line": "second", "lineage": (Point("run", "first", 4),)}
    assert number_in(at(5, **again).newest("kept").state) == 4
    keep(at(5, **again), "kept", numbered(50))
    assert number_in(at(6, **again).load("kept")) == 50


def test_several_saves_in_one_round_are_one(at):
    keep(at(2), "kept", numbered(2))
    for number in (30, 31, 32):
        store = at(5, returns_to=(4,))
        assert number_in(store.load("kept")) == 2
        keep(store, "kept", numbered(number))
        assert number_in(store.newest("kept").state) == number
    assert number_in(at(6).load("kept")) == 32
    assert number_in(at(4).load("kept")) == 2


def test_files_hold_line_and_round_and_plain_tensors(store, folder):
    keep(store, "kept", STATE)
    content = torch.load(folder / "kept.000005.pt", weights_only=True)
    assert content.keys() == {"line", "round", "state"}
    assert (content["line"], content["round"]) == ("first", 5)
    assert same(content["state"], STATE)


def test_what_the_server_may_come_back_to_stays_and_no_more(folder, at):
    for server_round in range(1, 21):
        store = at(server_round, returns_to=(3, 10, 15))
        store.save("always", numbered(server_round))
        if server_round in (2, 9, 18):
            store.save("seldom", numbered(server_round))
        store.commit()
    assert files_in(folder) == [
        *("always.000003.pt", "always.000010.pt", "always.000015.pt", "always.000019.pt", "always.000020.pt"),
        *("history.json", "seldom.000002.pt", "seldom.000009.pt", "seldom.000018.pt"),
    ]
    for back, always, seldom in ((3, 3, 2), (10, 10, 9), (15, 15, 9), (19, 19, 18)):
        store = at(back + 1, line="second", lineage=(Point("run", "first", back),))
        assert number_in(store.load("always")) == always
        assert number_in(store.load("seldom")) == seldom
    refused(lambda: at(13, line="second", lineage=(Point("run", "first", 12),)).load("always"), "round 12")


def test_the_run_before_is_never_written_to_and_one_without_a_folder_has_kept_nothing(at, tmp_path):
    keep(at(50, run_name="before"), "kept", STATE)
    before = {path: path.read_bytes() for path in (tmp_path / "before").iterdir()}
    branch = {"line": "other", "lineage": (Point("before", "first", 50),)}
    for server_round in (51, 52, 60):
        keep(at(server_round, **branch), "kept", numbered(server_round))
    assert {path: path.read_bytes() for path in (tmp_path / "before").iterdir()} == before
    assert at(51, line="other", lineage=(Point("never", "first", 50),)).load("kept") == {}


def test_a_branch_that_is_itself_resumed_finds_the_state_of_its_parent_at_the_round_of_the_branch(at):
    for server_round in (40, 50, 60):
        keep(at(server_round, run_name="parent", returns_to=(50,)), "kept", numbered(server_round))
    branched = Point("parent", "first", 50)
    at(51, run_name="branch", line="second", lineage=(branched,)).commit()
    resumed = {"run_name": "branch", "line": "third", "lineage": (branched, Point("branch", "second", 55))}
    assert number_in(at(56, **resumed).load("kept")) == 50
    keep(at(56, **resumed), "kept", numbered(56))
    assert number_in(at(57, **resumed).load("kept")) == 56


def test_a_round_that_the_server_did_not_take_does_not_count_at_the_client_either(at, folder):
    """Refused, or too late: what it made of the client is not what the server goes on from."""
    keep(at(1, seen=None), "kept", numbered(1))
    assert at(2, seen=None).load("kept") == {}
    taken_in_1 = Point("run", "first", 1)
    keep(at(2, seen=taken_in_1), "kept", numbered(2))
    for server_round in (3, 4):
        assert number_in(at(server_round, seen=taken_in_1).load("kept")) == 1
    keep(at(4, seen=taken_in_1, returns_to=(2, 3)), "kept", numbered(4))
    assert number_in(at(5, seen=Point("run", "first", 4)).load("kept")) == 4
    assert files_in(folder) == ["history.json", "kept.000001.pt", "kept.000004.pt"]
    resumed = {"line": "second", "lineage": (Point("run", "first", 3),), "seen": taken_in_1}
    assert number_in(at(4, **resumed).load("kept")) == 1


def test_a_run_that_counts_its_rounds_anew_has_of_another_what_it_had_at_its_end(at):
    """Mode adapt: its first round is 1 again, whatever the trained run came to."""
    for server_round in range(1, 11):
        keep(at(server_round, run_name="trained", returns_to=(5, 10)), "kept", numbered(server_round))
    adapting = {"run_name": "adapted", "line": "second", "lineage": (Point("trained", "first", 10),)}
    for server_round in (1, 2, 5, 6, 10, 11):
        assert number_in(at(server_round, **adapting).load("kept")) == 10
    keep(at(2, **adapting), "kept", numbered(77))
    assert [number_in(at(server_round, **adapting).load("kept")) for server_round in (2, 3)] == [10, 77]


# Against a plain model: whatever a server does, a load is what the client had at that place, or a refusal

TRAIN, REFUSED, CHECKPOINT, BACK, BRANCH, SKIP = "train", "refused", "checkpoint", "back", "branch", "skip"
STEPS = st.lists(
    st.tuples(st.sampled_from([TRAIN, TRAIN, TRAIN, REFUSED, CHECKPOINT, BACK, BRANCH, SKIP]), st.integers(0, 9))
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_a_load_is_what_the_client_had_where_the_server_is_whatever_happened_before(steps):
    with tempfile.TemporaryDirectory() as home:
        run_name, line, lineage, server_round, had, seen = "run0", "line0", (), 1, 0, None
        checkpoints = []  # of this run: (round, its lineage with itself, what the client had, what of it was taken)
        for count, (step, choice) in enumerate(steps, 1):
            here = told(
                run_name=run_name,
                line=line,
                lineage=lineage,
                server_round=server_round,
                returns_to=tuple(sorted({found[0] for found in checkpoints})),
                seen=seen,
            )
            store = ClientStore(lambda name: Path(home) / name, here)
            assert number_in(store.load("kept")) == had
            if step in (TRAIN, REFUSED):
                keep(store, "kept", numbered(count))
            if step == TRAIN:
                had, seen = count, Point(run_name, line, server_round)
            if step in (TRAIN, REFUSED, SKIP):
                server_round += 1
            elif step == CHECKPOINT and server_round > 1:
                last = server_round - 1
                led_here = (*lineage, Point(run_name, line, last)) if last not in ends(lineage) else lineage
                own = led_here, had, seen
                checkpoints = [*checkpoints, (last, *own)][-3:]
            elif step in (BACK, BRANCH) and checkpoints:
                server_round, lineage, had, seen = checkpoints[choice % len(checkpoints)]
                server_round += 1
                line = f"line{count}"
                if step == BRANCH:
                    run_name, checkpoints = f"run{count}", []
                checkpoints = [found for found in checkpoints if found[0] < server_round]  # later ones are set aside


def ends(lineage):
    """The last round of the last line, if there is any: there the server has not played a round since it went back."""
    return {point.round for point in lineage[-1:]}
