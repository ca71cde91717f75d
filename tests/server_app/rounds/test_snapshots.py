"""What a checkpoint of a run holds and when it is written; what does not fit a run is refused when it goes on."""

import pytest
import torch
from in_process import InProcessGrid
from playing import SIZES, Scripted, assert_same_network, changed, files, network_of, play

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
