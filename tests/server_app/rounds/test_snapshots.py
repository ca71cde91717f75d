"""What a checkpoint of a run holds and when it is written; what does not fit a run is refused when it goes on."""

import threading
import time

import pytest
import torch
from in_process import InProcessGrid
from playing import (
    SIZES,
    ChangingGrid,
    Scripted,
    assert_same_network,
    changed,
    files,
    network_of,
    play,
    start,
    strategy_for,
)

from common.config import load_config
from common.errors import UserError
from server_app import checkpoint
from server_app.app import serve

pytestmark = pytest.mark.usefixtures("clock", "_no_drawing")


def other_shape(content):
    network = content["method"]["network"]
    name = next(iter(network))
    network[name] = network[name][:1]


def lost_member(content):
    content["method"]["members"].pop()


MISFITS = {
    "other shape": other_shape,
    "lost member": lost_member,
    "lost settings": lambda content: content["method"].pop("settings"),
    "unknown heads": lambda content: content["method"]["settings"].update(heads="by-size"),
    "no method": lambda content: content.update(method=[]),
}
LOOP_MISFITS = {
    "lost generators": lambda content: content["loop"].pop("generators"),
    "lost round": lambda content: content["loop"].update(waiting=None),
    "lost moments": lambda content: content["method"].pop("adam"),
    "moments of others": lambda content: content["method"]["adam"].update(other={}),
    "no loop": lambda content: content.update(loop=[]),
}


@pytest.fixture
def small(small):
    return small | {"num-rounds": 5}


@pytest.mark.parametrize("change", (MISFITS | LOOP_MISFITS).values(), ids=MISFITS | LOOP_MISFITS)
def test_a_checkpoint_that_does_not_fit_is_named_when_a_run_goes_on(small, change):
    played = play(small, Scripted(), num_rounds=2, checkpoint_every=1)
    changed(played.folder / "checkpoints" / "round-000002.pt", change)
    said = r"round-000002\.pt does not (fit this run|say which rounds led to it): "
    with pytest.raises(UserError, match=said) as error:
        serve(InProcessGrid(Scripted(), 4), load_config(small | {"resume": "latest", "num-rounds": 5}), simulated=False)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("change", MISFITS.values(), ids=MISFITS)
def test_a_checkpoint_without_a_hypernetwork_is_named_when_it_is_to_be_adapted(small, change):
    played = play(small, Scripted(), num_rounds=2, checkpoint_every=1)
    changed(played.folder / "checkpoints" / "round-000002.pt", change)
    settings = small | {"mode": "adapt", "resume": str(played.folder), "run-name": "adapted"}
    with pytest.raises(UserError, match=r"round-000002\.pt does not hold a hypernetwork: "):
        serve(InProcessGrid(Scripted(), 4), load_config(settings), simulated=False)


@pytest.mark.parametrize(
    ("every", "rounds"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (50, [5]), (3, [3, 5])]
)
def test_checkpoints_are_written_when_they_are_due_and_after_the_last_round(small, monkeypatch, every, rounds):
    written, save = [], checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: (written.append(arguments[1]), save(*arguments))[1])
    played = play(small, Scripted(), checkpoint_every=every)
    assert written == rounds
    assert (played.folder / "checkpoints").exists() == bool(rounds)
    if rounds:
        # A scripted test is better every round.
        newest = [f"round-{server_round:06}.pt" for server_round in rounds[-2:]]
        assert files(played.folder) == ["best.pt", *newest]
        assert checkpoint.load(played.folder / "checkpoints" / "best.pt").server_round == rounds[-1]
        found = checkpoint.load(played.folder)
        assert found.config == played.config.to_dict()
        assert_same_network(network_of(found), played.method.hn)


def test_a_checkpoint_in_the_middle_holds_the_network_after_that_round(small):
    played = play(small, Scripted(), checkpoint_every=4, num_rounds=5)
    shorter = play(small, Scripted(), checkpoint_every=0, num_rounds=4, run_name="shorter")
    found = checkpoint.load(played.folder / "checkpoints" / "round-000004.pt")
    assert_same_network(network_of(found), shorter.method.hn)


def test_a_run_outlives_a_full_disk(small, monkeypatch, caplog):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full)
        played = play(small, Scripted(), checkpoint_every=2)
    assert [line["clients"] for line in played.lines] == [len(SIZES)] * 5
    warnings = [record.getMessage() for record in caplog.records if "no checkpoint could be written" in record.message]
    assert [warning.split(":")[0] for warning in warnings] == ["Round 2", "Round 4", "Round 5"]
    assert "No space left on device" in warnings[0]


def test_the_state_of_fedavg_is_the_average_of_each_size_and_local_has_none(small):
    played = play(small, Scripted(), method="fedavg", checkpoint_every=1)
    averages = checkpoint.load(played.folder).method["averages"]
    assert averages.keys() == set(SIZES.values())
    assert all(torch.equal(average, played.method.averages[size]) for size, average in averages.items())
    assert any(average.any() for average in averages.values())
    played = play(small, Scripted(), method="local", checkpoint_every=1, run_name="local")
    assert checkpoint.load(played.folder).method == {}


def test_a_run_outlives_a_checkpoint_that_cannot_be_kept_as_the_best(small, monkeypatch, caplog):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "link_or_copy", full)
    played = play(small | {"checkpoint-every": 1}, Scripted())
    assert len(played.lines) == played.config.num_rounds
    assert "could not be kept as the best: [Errno 28] No space left on device" in caplog.text
    assert "best.pt" not in files(played.folder)


# At any moment, from any thread ---------------------------------------------------------------------------------------


def network_after(small, server_round, **overrides):
    """What a run that nobody disturbs has learned after a round."""
    played = play(small, Scripted(), num_rounds=server_round, checkpoint_every=1, run_name="quiet", **overrides)
    return checkpoint.load(played.folder)


def assert_same_learned(found, expected):
    assert found.server_round == expected.server_round
    assert_same_network(network_of(found), network_of(expected))
    assert found.method["adam"].keys() == expected.method["adam"].keys()
    for name, moments in found.method["adam"].items():
        for key, value in moments.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected.method["adam"][name][key]))


class Stopped(BaseException):
    """What Flower raises in the loop's thread when its exit handlers are through."""


def stopped(small, moment, handle, **overrides):
    """A run that is interrupted: `handle` is called with its snapshots at the end of `moment(round, step)`."""
    strategy = strategy_for(load_config(small | {"run-name": "stopped", "num-rounds": 5, **overrides}))
    learn, method = strategy.method.learn, strategy.method

    def learn_interrupted(deltas):
        if method.server_round == moment and len(deltas):
            learn(deltas)
            handle(strategy.snapshots)
            raise Stopped
        learn(deltas)

    method.learn = learn_interrupted
    with pytest.raises(Stopped):
        start(strategy.config, InProcessGrid(Scripted(), 4), strategy)
    return strategy.config.results_path / "stopped"


@pytest.mark.parametrize("every", [100, 2, 1])
@pytest.mark.parametrize("schedule", ["joint", "sequential"])
def test_what_is_saved_in_the_middle_of_a_round_is_the_round_before(small, every, schedule):
    expected = network_after(small, 3, schedule=schedule)
    folder = stopped(small, 4, lambda snapshots: snapshots.save(), **{"checkpoint-every": every, "schedule": schedule})
    assert_same_learned(checkpoint.load(folder), expected)


def test_a_client_that_joins_in_a_round_is_not_in_what_is_saved_of_the_round_before(small):
    strategy = strategy_for(load_config(small | {"run-name": "grows", "checkpoint-every": 100}))
    grid = ChangingGrid(Scripted(), [{100, 101}, {100, 101}, {100, 101, 102, 103}])
    admit = strategy.method.admit

    def admit_and_save(clients):
        refused = admit(clients)
        strategy.snapshots.save()
        return refused

    strategy.method.admit = admit_and_save
    played = start(strategy.config, grid, strategy)
    found = checkpoint.load(played.folder / "checkpoints" / "round-000002.pt")
    assert [client["key"] for client in found.loop["clients"]] == ["0", "1"]
    assert [key for key, *_ in found.method["members"]] == ["0", "1"]


def test_an_interrupt_in_the_middle_of_writing_writes_again_what_is_whole(small, monkeypatch):
    """In a deployment Flower's handlers run in the loop's own thread, which then holds the lock."""
    expected = network_after(small, 2)
    strategy = strategy_for(load_config(small | {"run-name": "stopped", "num-rounds": 5, "checkpoint-every": 2}))
    write = torch.save
    depth = []

    def interrupted(content, file):
        depth.append(1)
        if len(depth) > 1:
            return write(content, file)
        file.write(b"half of it")
        strategy.snapshots.save()
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", interrupted)
        with pytest.raises(Stopped):
            start(strategy.config, InProcessGrid(Scripted(), 4), strategy)
    folder = strategy.config.results_path / "stopped"
    assert files(folder) == ["round-000002.pt"]
    assert_same_learned(checkpoint.load(folder), expected)


def test_while_another_thread_writes_the_loop_does_not_change_what_is_written(small, monkeypatch):
    """In a simulation the handlers run beside the loop: a slow disk got weights of many rounds into one file."""
    expected = network_after(small, 1)
    strategy = strategy_for(load_config(small | {"run-name": "beside", "num-rounds": 6, "checkpoint-every": 100}))
    write, rounds = checkpoint.write_tensors, []
    beside = threading.Event()

    def slow(path, content):
        if path.name == "round-000001.pt":
            beside.set()
            while strategy.method.server_round < 5:  # the loop goes on meanwhile
                time.sleep(0.001)
            rounds.append(strategy.method.server_round)
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_tensors", slow)
    end_round, saver = strategy.snapshots.end_round, threading.Thread(target=strategy.snapshots.save)

    def end_and_save(num_rounds):  # of the later rounds nothing is kept, which would wait for the writer
        if strategy.method.server_round == 1:
            end_round(num_rounds)
            saver.start()
            beside.wait()

    strategy.snapshots.end_round = end_and_save
    played = start(strategy.config, InProcessGrid(Scripted(), 4), strategy)
    saver.join()
    assert rounds
    assert_same_learned(checkpoint.load(played.folder / "checkpoints" / "round-000001.pt"), expected)


def test_a_copy_shares_no_memory_with_what_it_is_of():
    state = {"tensors": [torch.ones(2)], "number": 3, "text": "a", "more": {"t": (torch.zeros(1), None)}}
    copy = checkpoint.copied(state)
    state["tensors"][0] += 1
    state["more"]["t"][0].fill_(7)
    assert torch.equal(copy["tensors"][0], torch.ones(2))
    assert torch.equal(copy["more"]["t"][0], torch.zeros(1))
    assert (copy["number"], copy["text"], copy["more"]["t"][1]) == (3, "a", None)
