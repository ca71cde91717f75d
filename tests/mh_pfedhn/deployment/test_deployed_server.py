"""`mh-pfedhn server` without Flower: its command line, what it refuses, and an end that comes too early."""

import socket
import stat
import sys
import tomllib
from pathlib import Path

import pytest

from mh_pfedhn.cli import main
from mh_pfedhn.deployment.certificates import make_certs
from mh_pfedhn.deployment.server import Server
from mh_pfedhn.processes import free_port

MISTAKE = 2


def test_the_server_has_tls_and_authentication(made, tmp_path):
    folder, _ = made
    server = Server(tmp_path, folder, "0.0.0.0", 9290, "consortium")
    words = server.command()
    options = words[words.index("mh_pfedhn.deployment.guard") + 1 :]
    assert options == [
        *("--host", "0.0.0.0", "--port", "9290"),
        *("--database", str(tmp_path / "state.db"), "--isolation", "subprocess"),
        *("--ssl-certfile", str(folder / "server.pem"), "--ssl-keyfile", str(folder / "server.key")),
        *("--ssl-ca-certfile", str(folder / "ca.crt"), "--enable-supernode-auth"),
    ]
    assert server.address == "127.0.0.1:9290"


def test_an_insecure_server_has_neither(tmp_path):
    words = Server(tmp_path, None, "10.0.0.5", 9290, "consortium").command()
    assert words[-1] == "--insecure"
    assert "--enable-supernode-auth" not in words


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1:1"), ("::", "[::1]:1"), ("10.0.0.5", "10.0.0.5:1"), ("fl.example.org", "fl.example.org:1")],
)
def test_commands_reach_the_server_where_it_listens(host, address):
    assert Server(Path("state"), None, host, 1, "consortium").address == address


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--certs", "nowhere"], "nowhere/ca.crt is missing"),
        (["--certs", "certs", "--name", "a b"], "--name is 'a b'"),
        (["--certs", "certs", "--name", "default"], "--name is 'default'"),
        (["--certs", "certs", "--host", "192.0.2.99"], "reach the server as 192.0.2.99"),
        (["--certs", "certs", "--host", "nobody.invalid"], "nobody.invalid"),
        (["--certs", "mixed"], "server.key is not the key"),
    ],
)
def test_a_mistake_in_what_the_server_is_asked_ends_with_2_and_one_line(complaint, arguments, part):
    make_certs(Path("mixed"), ["fl.example.org"], [])
    Path("mixed/server.key").write_bytes(Path("certs/server.key").read_bytes())
    message = complaint("server", "--state", "state", *arguments)
    assert part in message
    assert message.count("\n") == 1
    assert not Path("state").exists()


def test_a_port_that_is_taken_is_named(complaint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in complaint("server", "--state", "state", "--insecure", "--host", "127.0.0.1", "--port", port)
        assert port in complaint("site", "run", "site.yaml", "--server", "h:1", "--insecure", "--port", port)


def test_neither_certs_nor_insecure_is_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["server", "--state", "state"])
    assert ended.value.code == MISTAKE
    assert "--certs --insecure" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_a_server_that_never_came_up_is_not_started_again(complaint, monkeypatch, capsys):
    monkeypatch.setattr(Server, "command", lambda self: [sys.executable, "-c", "exit('no such database')"])
    message = complaint("server", "--state", "state", "--certs", "certs", "--port", str(free_port()))
    assert "did not start (exit status 1, no such database)" in message
    assert stat.S_IMODE(Path("state").stat().st_mode) == 0o700
    assert "consortium" in tomllib.loads(Path("home/config.toml").read_text())["superlink"]
