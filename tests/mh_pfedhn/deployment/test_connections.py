"""Flower's config.toml is the user's: a connection of ours comes into it, and the rest stays."""

import stat
import tomllib
from pathlib import Path

import pytest

from common.errors import UserError
from mh_pfedhn.deployment.connections import write_connection

THEIRS = """# mine
[superlink]
default = "lab"  # the one in the cellar

[superlink.lab]
address = "10.0.0.1:9290"
root-certificates = "/lab/ca.crt"

[superlink.lab.options]
num-supernodes = 3
"""


def test_a_connection_is_added_and_the_rest_stays_as_it_is(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(THEIRS)
    write_connection(path, "consortium", "127.0.0.1:9290", Path("/certs/ca.crt"))
    assert path.read_text().startswith(THEIRS)
    connection = {"address": "127.0.0.1:9290", "root-certificates": "/certs/ca.crt"}
    assert tomllib.loads(path.read_text())["superlink"]["consortium"] == connection


def test_a_connection_that_changed_is_replaced_wherever_it_stands(tmp_path):
    path = tmp_path / "config.toml"
    old = '[superlink.consortium]\naddress = "1.2.3.4:5"\n[superlink."consortium".options]\nnum-supernodes = 2\n'
    path.write_text(old + THEIRS)
    path.chmod(0o640)
    write_connection(path, "consortium", "127.0.0.1:9290", None)
    parsed = tomllib.loads(path.read_text())
    assert parsed["superlink"].pop("consortium") == {"address": "127.0.0.1:9290", "insecure": True}
    assert parsed == tomllib.loads(THEIRS)
    assert "# the one in the cellar" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.toml"]


def test_a_connection_that_is_there_already_is_not_written_again(tmp_path):
    path = tmp_path / "config.toml"
    write_connection(path, "consortium", "127.0.0.1:9290", None)
    before = path.stat().st_mtime_ns
    write_connection(path, "consortium", "127.0.0.1:9290", None)
    assert path.stat().st_mtime_ns == before


def test_a_new_file_keeps_flowers_own_default(tmp_path):
    path = tmp_path / "new" / "config.toml"
    write_connection(path, "consortium", "127.0.0.1:9290", None)
    assert tomllib.loads(path.read_text())["superlink"]["default"] == "local"


@pytest.mark.parametrize("text", ["[superlink\n", "superlink = 3\n", "[[superlink]]\naddress = 1\n"])
def test_a_file_that_cannot_be_changed_safely_stays_as_it_is(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.toml"):
        write_connection(path, "consortium", "127.0.0.1:9290", None)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        # Every line that is named is there afterwards, in this order.
        ("", []),
        ("# nothing yet\n", ["# nothing yet"]),
        ("[other]\nx = 1 # one\n", ["[other]", "x = 1 # one"]),
        (
            '[superlink]\nconsortium = {address = "1.2.3.4:5"} # mine\ndefault = "a"\n[superlink.a]\nx = 1\n',
            ["[superlink]", 'default = "a"', "[superlink.a]", "x = 1"],
        ),
        (
            '# top\nsuperlink.consortium.address = "1" # mine\nsuperlink.default = "a"\n[other]\nx = 1\n',
            ["# top", 'superlink.consortium.address = "127.0.0.1:9290" # mine', 'superlink.default = "a"', "[other]"],
        ),
        (
            '[superlink]\nconsortium.address = "1"\nconsortium.root-certificates = "/c"\ndefault = "a" # mine\n',
            ["[superlink]", 'default = "a" # mine'],
        ),
        (
            'superlink = {default = "a", consortium = {address = "1"}}\n[other]\nx = 1 # one\n',
            ["[other]", "x = 1 # one"],
        ),
        (
            '["superlink".\'consortium\']\naddress = "1" # mine\n\n# theirs\n[ superlink . lab ]\nx = 1\n',
            ['address = "127.0.0.1:9290" # mine', "# theirs", "[ superlink . lab ]", "x = 1"],
        ),
        (
            '[superlink.consortium]\naddress = "1"\n[superlink.consortium.options]\nx = 1\n[superlink.lab]\ny = 2\n',
            ["[superlink.lab]", "y = 2"],
        ),
        (
            '[superlink.consortium]\naddress = "1"\n[other]\nx = 1\n[superlink.consortium.options]\ny = 2\n[z]\n',
            ["[other]", "x = 1", "[z]"],
        ),
        (
            "[superlink.consortium.options]\nx = 1\n[[superlink.lab]]\ny = 2 # two\n",
            ["[[superlink.lab]]", "y = 2 # two"],
        ),
        ("[superlink]\r\n# theirs\r\ndefault = 'a'\r\n", ["[superlink]\r", "# theirs\r", "default = 'a'\r"]),
    ],
)
@pytest.mark.parametrize("ca", [None, Path("/certs/ca.crt")])
def test_a_connection_is_set_in_a_file_of_any_form(tmp_path, text, lines, ca):
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode())
    write_connection(path, "consortium", "127.0.0.1:9290", ca)
    protection = {"root-certificates": "/certs/ca.crt"} if ca else {"insecure": True}
    before, after = tomllib.loads(text), tomllib.loads(path.read_bytes().decode())
    before.setdefault("superlink", {})["consortium"] = {"address": "127.0.0.1:9290", **protection}
    assert after == before
    written = path.read_bytes().decode().split("\n")
    places = [written.index(line) for line in lines]
    assert places == sorted(places)
