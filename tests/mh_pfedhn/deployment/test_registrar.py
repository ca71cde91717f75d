"""Registrations follow the public keys in a folder."""

from pathlib import Path

import pytest

from mh_pfedhn.deployment import registrar as registrations
from mh_pfedhn.deployment.certificates import make_certs
from mh_pfedhn.deployment.registrar import FlowerRefusedError, Registrar


class FakeFlower:
    """What `flwr supernode` does, as measured: a key that was unregistered cannot be registered again."""

    def __init__(self):
        self.keys = {}
        self.gone = set()
        self.calls = []
        self.down = False

    def __call__(self, registrar, command, *arguments, name=None):
        self.calls.append((command, *arguments))
        if self.down:
            raise FlowerRefusedError("Connection to the SuperLink is unavailable.")
        if command == "list":
            status = {node: "unregistered" if node in self.gone else "online" for node in self.keys.values()}
            return {"nodes": [{"node-id": node, "status": status[node]} for node in status]}
        if command == "register":
            key = Path(arguments[0]).read_text()
            if key in self.keys:
                raise FlowerRefusedError("[code: 23] The provided public key is already in use.")
            self.keys[key] = str(len(self.keys) + 1)
            return {"node-id": self.keys[key]}
        self.gone.add(arguments[0])
        return {}

    @property
    def registered(self):
        return set(self.keys.values()) - self.gone


@pytest.fixture
def flower(monkeypatch):
    fake = FakeFlower()
    monkeypatch.setattr(Registrar, "_flwr", lambda self, *words, **options: fake(self, *words, **options))
    monkeypatch.setattr(registrations, "_LOOK_EVERY", 0.0)
    return fake


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The registrar's time, which passes when a test says so."""
    clock = Clock()
    monkeypatch.setattr(registrations, "time", clock)
    return clock


@pytest.fixture
def registrar(flower, tmp_path):
    make_certs(tmp_path, ["h"], ["a", "b"])

    def make():
        made = Registrar(tmp_path / "sites", tmp_path / "registered.json", "consortium", {})
        made.recall()
        return made

    return make


def test_keys_that_come_are_registered_once(registrar, flower, tmp_path):
    one = registrar()
    one.look()
    one.look()
    assert flower.registered == {"1", "2"}
    make_certs(tmp_path, [], ["c"])
    one.look()
    assert flower.registered == {"1", "2", "3"}
    assert [call[0] for call in flower.calls].count("register") == 3


def test_a_restart_registers_nothing_again_and_still_knows_what_to_unregister(registrar, flower, clock, tmp_path):
    registrar().look()
    (tmp_path / "sites/a.pub").unlink()
    again = registrar()
    again.look()
    clock.now = 61.0
    again.look()
    assert flower.registered == {"2"}
    assert [call[0] for call in flower.calls].count("register") == 2


def test_a_new_database_has_every_key_registered_again(registrar, flower):
    registrar().look()
    flower.keys.clear()
    registrar().look()
    assert flower.registered == {"1", "2"}


def test_a_key_that_changed_replaces_the_old_one(registrar, flower, tmp_path):
    one = registrar()
    one.look()
    for name in ("a", "a.pub"):
        (tmp_path / "sites" / name).unlink()
    make_certs(tmp_path, [], ["a"])
    one.look()
    assert flower.registered == {"2", "3"}


def test_a_removed_key_that_comes_back_is_complained_about_once(registrar, flower, tmp_path, capsys):
    one = registrar()
    one.look()
    key = (tmp_path / "sites/a.pub").read_bytes()
    (tmp_path / "sites/a.pub").rename(tmp_path / "sites/a.pub.removed")
    one.look()
    (tmp_path / "sites/a.pub").write_bytes(key)
    one.look()
    one.look()
    assert flower.registered == {"2"}
    assert capsys.readouterr().out.count("cannot come back") == 1


def test_a_file_that_is_no_key_yet_is_registered_when_it_is_one(registrar, flower, tmp_path, capsys):
    key = (tmp_path / "sites/a.pub").read_bytes()
    (tmp_path / "sites/a.pub").write_bytes(key[:30])
    one = registrar()
    one.look()
    one.look()
    assert capsys.readouterr().out.count("not a public key") == 1
    (tmp_path / "sites/a.pub").write_bytes(key)
    one.look()
    assert flower.registered == {"1", "2"}


def test_a_registered_key_that_is_being_written_anew_is_not_unregistered(registrar, flower, tmp_path):
    one = registrar()
    one.look()
    (tmp_path / "sites/a.pub").write_bytes(b"")
    one.look()
    assert flower.registered == {"1", "2"}


def test_a_folder_that_is_missing_unregisters_nobody(registrar, flower, tmp_path, capsys):
    one = registrar()
    one.look()
    (tmp_path / "sites").rename(tmp_path / "away")
    one.look()
    one.look()
    assert flower.registered == {"1", "2"}
    assert capsys.readouterr().out.count("missing; registrations stay") == 1
    (tmp_path / "away").rename(tmp_path / "sites")
    one.look()
    assert flower.registered == {"1", "2"}


def test_a_key_that_is_missing_is_waited_for_a_minute(registrar, flower, clock, tmp_path, capsys):
    make_certs(tmp_path, [], ["c", "d", "e"])
    one = registrar()
    one.look()
    (tmp_path / "sites/a.pub").rename(tmp_path / "a.pub")
    for clock.now in (100.0, 130.0, 159.0):
        one.look()
    assert flower.registered == {"1", "2", "3", "4", "5"}
    assert capsys.readouterr().out.count("a is unregistered in 60 s if it stays away") == 1
    # Seen again, if only once, it is waited for anew.
    (tmp_path / "a.pub").rename(tmp_path / "sites/a.pub")
    one.look()
    (tmp_path / "sites/a.pub").unlink()
    for clock.now in (161.0, 220.0):
        one.look()
    assert flower.registered == {"1", "2", "3", "4", "5"}
    clock.now = 221.0
    one.look()
    assert flower.registered == {"2", "3", "4", "5"}


@pytest.mark.parametrize(("sites", "gone"), [("a", "a"), ("ab", "ab"), ("abcd", "bd"), ("abcde", "abc")])
def test_many_keys_that_are_missing_unregister_nobody(registrar, flower, clock, tmp_path, capsys, sites, gone):
    for path in (tmp_path / "sites").iterdir():
        path.unlink()
    make_certs(tmp_path, [], list(sites))
    one = registrar()
    one.look()
    everybody = set(flower.registered)
    for name in gone:
        (tmp_path / f"sites/{name}.pub").rename(tmp_path / f"{name}.pub")
    for clock.now in (10.0, 100.0, 1000.0):
        one.look()
    registrar().look()
    assert flower.registered == everybody
    lines = [line for line in capsys.readouterr().out.splitlines() if "nobody is unregistered" in line]
    assert len(lines) == 2  # one for each of the two registrars
    assert all(f"{name}.pub" in lines[0] for name in gone)
    assert f"{len(gone)} of {len(sites)} registered keys" in lines[0]
    assert "NAME.pub.removed" in lines[0]
    for name in gone:
        (tmp_path / f"{name}.pub").rename(tmp_path / f"sites/{name}.pub")
    one.look()
    assert flower.registered == everybody
    assert [call[0] for call in flower.calls].count("register") == len(sites)


def test_a_key_that_went_before_the_others_is_not_unregistered_with_them_missing(registrar, flower, clock, tmp_path):
    make_certs(tmp_path, [], ["c", "d", "e"])
    one = registrar()
    one.look()
    (tmp_path / "sites/a.pub").unlink()
    one.look()
    for name in "bc":
        (tmp_path / f"sites/{name}.pub").unlink()
    for clock.now in (30.0, 70.0):
        one.look()
    make_certs(tmp_path, [], ["b", "c"])
    clock.now = 75.0
    one.look()  # a alone is missing again, and is waited for from here on
    assert flower.registered == {"1", "2", "3", "4", "5"}
    clock.now = 135.0
    one.look()
    assert flower.registered == {"2", "3", "4", "5"}


def test_a_removal_that_is_meant_is_done_at_once_in_any_number(registrar, flower, tmp_path):
    one = registrar()
    one.look()
    (tmp_path / "sites/a.pub").rename(tmp_path / "sites/a.pub.removed")
    (tmp_path / "sites/b.pub").unlink()
    (tmp_path / "sites/b.pub.removed").touch()
    one.look()
    assert flower.registered == set()


def test_a_mark_of_an_earlier_removal_does_not_remove_a_new_key(registrar, flower, tmp_path):
    (tmp_path / "sites/a.pub.removed").touch()
    one = registrar()
    one.look()
    assert flower.registered == {"1", "2"}


def test_what_fails_while_the_server_is_down_is_done_later(registrar, flower, capsys):
    one = registrar()
    flower.down = True
    one.look()
    assert "tried again" in capsys.readouterr().out
    flower.down = False
    one.look()
    assert flower.registered == {"1", "2"}
