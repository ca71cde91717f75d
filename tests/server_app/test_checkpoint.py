"""Checkpoints: what is written comes back bit for bit, whole or not at all; what is no checkpoint is refused."""

import os
import pickle
import resource

import pytest
import torch
from in_process import InProcessGrid
from reference import CHUNK, CLIENTS, build, random_deltas
from server_app.strategies import Run, hypernet
from test_strategies import SIZES, Scripted, assert_same_network, play

from common.config import load_config
from common.errors import UserError
from server_app import checkpoint
from server_app.app import serve
from server_app.optim import HyperNetworkOptimizer
from server_app.results import tracking

GROUPS = {"five": "a", "five-too": "b", "two": "a"}
LOOP = {"clients": [["five", 33, 0, "a"]], "generators": {}, "waiting": {"round": 7}, "best-accuracy": 0.25}
CONFIG = {"run-name": "run", "method": "mh-pfedhn", "seed": 0, "hn-lr": 0.1, "anchor": True, "models": "lenet,mlp"}


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch):
    monkeypatch.setattr(tracking, "write_report", lambda folder: None)


def strategy_of(hn=None, optimizer=None):
    """A method that has learned nothing, or this network."""
    config = load_config({"method": "mh-pfedhn", "dataset": "npz", "device": "cpu"})
    strategy = hypernet.HyperNetStrategy(Run(config, None, str))
    if hn:
        strategy.hn, strategy.optimizer = hn, optimizer or HyperNetworkOptimizer(hn)
    return strategy


def save(run_dir, server_round, hn, optimizer=None):
    return checkpoint.save(run_dir, server_round, CONFIG, LOOP, strategy_of(hn, optimizer).state())


def network_of(found):
    """The network that a run would go on with."""
    strategy = strategy_of()
    strategy.load_state(found.method)
    return strategy.hn


def trained(heads="by-tau", **options):
    return trained_with(heads, **options)[0]


def trained_with(heads="by-tau", **options):
    hn = build(groups=GROUPS, heads=heads, **options)
    optimizer = HyperNetworkOptimizer(hn, lr=0.1)
    optimizer.apply(random_deltas(CLIENTS, seed=0))
    return hn, optimizer


def files(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


# Round trip -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", ["by-tau", "by-architecture", "per-client", "none"])
def test_what_is_read_generates_what_was_written_bit_for_bit(tmp_path, heads):
    hn = trained(heads, hidden_layers=2, embedding_init_std=0.5)
    path = save(tmp_path, 7, hn)
    assert path == tmp_path / "checkpoints" / "round-000007.pt"
    found = checkpoint.load(path)
    assert (found.path, found.server_round, found.config, found.loop) == (path, 7, CONFIG, LOOP)
    restored = network_of(found)
    assert restored.settings == hn.settings
    assert restored.members == hn.members
    assert list(restored.members) == list(hn.members)
    assert_same_network(restored, hn)
    for one, other in zip(restored.generate(list(CLIENTS)), hn.generate(list(CLIENTS)), strict=True):
        assert torch.equal(one, other)
    # A client that comes later starts as it would have in the run.
    for each in (restored, hn):
        each.register("late", 8 * CHUNK, "c")
    assert torch.equal(*(each.generate(["late"])[0] for each in (restored, hn)))


def test_writing_leaves_the_network_as_it_is(tmp_path):
    hn = trained()
    before = {name: value.clone() for name, value in hn.state_dict().items()}
    save(tmp_path, 1, hn)
    assert all(torch.equal(value, before[name]) for name, value in hn.state_dict().items())
    assert all(parameter.requires_grad for parameter in hn.parameters())


def test_a_client_whose_key_holds_anything_comes_back(tmp_path):
    clients = {"site.eu-1": 10, "(global model)": 33, "weight": 12}
    hn = build(clients)
    found = network_of(checkpoint.load(save(tmp_path, 1, hn)))
    assert all(
        torch.equal(*pair) for pair in zip(found.generate(list(clients)), hn.generate(list(clients)), strict=True)
    )


def test_the_two_newest_are_kept_and_the_newest_is_read_from_a_folder(tmp_path):
    hn = build()
    for server_round in (2, 9, 10, 100):
        save(tmp_path, server_round, hn)
    assert files(tmp_path) == ["round-000010.pt", "round-000100.pt"]
    assert checkpoint.load(tmp_path).server_round == 100
    assert checkpoint.load(tmp_path / "checkpoints" / "round-000010.pt").server_round == 10


# Whole or not at all ----------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_crash_while_writing_leaves_the_earlier_ones(tmp_path, monkeypatch, where):
    hn = trained()
    for server_round in (1, 2):
        save(tmp_path, server_round, hn)
    before = {name: (tmp_path / "checkpoints" / name).read_bytes() for name in files(tmp_path)}

    def crash(*arguments):
        raise Crash

    def half(content, file):
        file.write(b"PK half of it")
        file.flush()
        raise Crash

    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(torch, "save", half)
        else:
            patch.setattr(os, where, crash)
        with pytest.raises(Crash):
            save(tmp_path, 3, hn)
    assert [name for name in files(tmp_path) if name.endswith(".pt")] == list(before)
    assert all((tmp_path / "checkpoints" / name).read_bytes() == content for name, content in before.items())
    assert checkpoint.load(tmp_path).server_round == 2
    save(tmp_path, 3, hn)  # what the crash left behind is in nobody's way
    assert files(tmp_path) == ["round-000002.pt", "round-000003.pt"]


def test_the_content_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("replace"), replace(*paths)))
    save(tmp_path, 1, build())
    assert order == ["fsync", "replace", "fsync"]  # the file, its name, the folder that holds the name


@pytest.fixture
def _small_disk():
    """No file may be larger than 20 kB: what a full disk is to a writer that has begun."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_small_disk")
def test_a_disk_that_fills_up_half_way_is_an_os_error(tmp_path):
    hn = build({"large": 70_000}, chunk_size=1000)
    with pytest.raises(OSError):
        save(tmp_path, 1, hn)
    assert [name for name in files(tmp_path) if name.endswith(".pt")] == []


# What is refused --------------------------------------------------------------------------------------------------


def changed(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def other_shape(content):
    network = content["method"]["network"]
    name = next(iter(network))
    network[name] = network[name][:1]


def lost_member(content):
    content["method"]["members"].pop()


def altered(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "text": lambda path: path.write_text("not a checkpoint"),
    "a list": lambda path: torch.save([1, 2], path),
    "a model": lambda path: torch.save({"weight": torch.zeros(3)}, path),
    "altered": altered,
    "lost loop": lambda path: changed(path, lambda content: content.pop("loop")),
    "lost method": lambda path: changed(path, lambda content: content.pop("method")),
}
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


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_named_in_a_sentence(tmp_path, damage):
    path = save(tmp_path, 1, trained())
    damage(path)
    with pytest.raises(UserError, match=r"round-000001\.pt is damaged") as error:
        checkpoint.load(path)
    assert str(error.value).endswith(".")
    with pytest.raises(UserError, match=r"round-000001\.pt is damaged"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_of_a_folder_the_newest_sound_one_is_read_and_the_damaged_are_named(tmp_path, damage, caplog):
    for server_round in (3, 4):
        path = save(tmp_path, server_round, trained())
    damage(path)
    assert checkpoint.load(tmp_path).server_round == 3
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "round-000004.pt is damaged" in warning
    assert warning.endswith("The one before it is used.")
    assert checkpoint.exists(tmp_path)
    with pytest.raises(UserError, match=r"round-000004\.pt is damaged"):
        checkpoint.load(path)


def test_the_best_is_kept_when_it_is_no_longer_among_the_newest(tmp_path):
    for server_round in (1, 2):
        save(tmp_path, server_round, build())
    checkpoint.mark_best(tmp_path, 1)
    for server_round in (3, 4):
        save(tmp_path, server_round, build())
    assert files(tmp_path) == ["best.pt", "round-000003.pt", "round-000004.pt"]
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt").server_round == 1
    checkpoint.mark_best(tmp_path, 2)  # gone: the one marked before stays
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt").server_round == 1
    checkpoint.mark_best(tmp_path, 4)
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt").server_round == 4
    assert checkpoint.load(tmp_path).server_round == 4
    assert files(tmp_path) == ["best.pt", "round-000003.pt", "round-000004.pt"]


def test_where_files_cannot_be_linked_the_best_is_a_copy(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(1, "Operation not permitted")

    path = save(tmp_path, 1, build())
    monkeypatch.setattr(os, "link", refuse)
    checkpoint.mark_best(tmp_path, 1)
    assert (tmp_path / "checkpoints" / "best.pt").read_bytes() == path.read_bytes()


def test_the_best_alone_is_no_checkpoint_to_go_on_from(tmp_path):
    save(tmp_path, 1, build())
    checkpoint.mark_best(tmp_path, 1)
    (tmp_path / "checkpoints" / "round-000001.pt").unlink()
    assert not checkpoint.exists(tmp_path)


@pytest.mark.parametrize("version", [0, 1, 3, "2", None])
def test_another_format_says_which(tmp_path, version):
    path = save(tmp_path, 1, build())
    changed(path, lambda content: content.update(format=version))
    with pytest.raises(UserError, match=rf"round-000001\.pt has format {version!r}, but this release reads 2"):
        checkpoint.load(path)


class Malicious:
    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.mark.parametrize("how", ["torch", "pickle", "inside"])
def test_a_foreign_pickle_is_refused_and_does_not_run(tmp_path, how):
    trace = tmp_path / "executed"
    path = save(tmp_path, 1, build())
    if how == "torch":
        torch.save(Malicious(trace), path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Malicious(trace)))
    else:
        changed(path, lambda content: content["config"].update(extra=Malicious(trace)))
    with pytest.raises(UserError, match=r"round-000001\.pt is damaged or is none"):
        checkpoint.load(path)
    assert not trace.exists()


def test_a_run_folder_without_checkpoints_says_what_to_do(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for folder in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(UserError, match=f"{folder} has no checkpoints: .*checkpoint-every"):
            checkpoint.load(folder)


def test_a_path_where_nothing_is_says_so(tmp_path):
    with pytest.raises(UserError, match=r"There is no checkpoint .*round-000009\.pt"):
        checkpoint.load(tmp_path / "round-000009.pt")


# In a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(run_config):
    return run_config | {"chunk-size": 16, "num-rounds": 5, "deadline": 30.0}


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("change", (MISFITS | LOOP_MISFITS).values(), ids=MISFITS | LOOP_MISFITS)
def test_a_checkpoint_that_does_not_fit_is_named_when_a_run_goes_on(small, change):
    played = play(small, Scripted(), num_rounds=2, checkpoint_every=1)
    changed(played.folder / "checkpoints" / "round-000002.pt", change)
    with pytest.raises(UserError, match=r"round-000002\.pt does not fit this run: ") as error:
        serve(InProcessGrid(Scripted(), 4), load_config(small | {"resume": "latest", "num-rounds": 5}), simulated=False)
    assert str(error.value).endswith(".")


@pytest.mark.usefixtures("clock")
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
@pytest.mark.usefixtures("clock")
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
        assert_same_network(network_of(found), played.strategy.hn)


@pytest.mark.usefixtures("clock")
def test_a_checkpoint_in_the_middle_holds_the_network_after_that_round(small):
    played = play(small, Scripted(), checkpoint_every=4, num_rounds=5)
    shorter = play(small, Scripted(), checkpoint_every=0, num_rounds=4, run_name="shorter")
    found = checkpoint.load(played.folder / "checkpoints" / "round-000004.pt")
    assert_same_network(network_of(found), shorter.strategy.hn)


@pytest.mark.usefixtures("clock")
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


@pytest.mark.usefixtures("clock")
def test_the_state_of_fedavg_is_the_average_of_each_size_and_local_has_none(small):
    played = play(small, Scripted(), method="fedavg", checkpoint_every=1)
    averages = checkpoint.load(played.folder).method["averages"]
    assert averages.keys() == set(SIZES.values())
    assert all(torch.equal(average, played.strategy.averages[size]) for size, average in averages.items())
    assert any(average.any() for average in averages.values())
    played = play(small, Scripted(), method="local", checkpoint_every=1, run_name="local")
    assert checkpoint.load(played.folder).method == {}
