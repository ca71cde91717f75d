"""Checkpoints: what is written comes back bit for bit, whole or not at all; what is no checkpoint is refused."""

import os
import pickle
import resource

import pytest
import torch
from playing import assert_same_network, changed, files, method_of, network_of
from reference import CHUNK, CLIENTS, build, random_deltas

from common.errors import UserError
from server_app import checkpoint
from server_app.optim import HyperNetworkOptimizer

GROUPS = {"five": "a", "five-too": "b", "two": "a"}
LOOP = {"clients": [["five", 33, {"group": "a"}]], "generators": {}, "waiting": {"round": 7}, "best-accuracy": 0.25}
CONFIG = {"run-name": "run", "method": "mh-pfedhn", "seed": 0, "hn-lr": 0.1, "anchor": True, "models": "lenet,mlp"}


def save(run_dir, server_round, hn, optimizer=None):
    return checkpoint.save(run_dir, server_round, CONFIG, LOOP, method_of(hn, optimizer).state())


def trained(heads="by-tau", **options):
    return trained_with(heads, **options)[0]


def trained_with(heads="by-tau", **options):
    hn = build(groups=GROUPS, heads=heads, **options)
    optimizer = HyperNetworkOptimizer(hn, lr=0.1)
    optimizer.apply(random_deltas(CLIENTS, seed=0))
    return hn, optimizer


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


@pytest.mark.parametrize("version", [0, 3, 4, 6, "5", None])
def test_another_format_says_which(tmp_path, version):
    path = save(tmp_path, 1, build())
    changed(path, lambda content: content.update(format=version))
    with pytest.raises(UserError, match=rf"round-000001\.pt has format {version!r}, but this release reads 5"):
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
