"""`mh-pfedhn server` without Flower: its command line, what it refuses, and an end that comes too early."""

import os
import socket
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from children import until
from filelock import FileLock

from mh_pfedhn.cli import main
from mh_pfedhn.deployment import certificates
from mh_pfedhn.deployment.certificates import make_certs
from mh_pfedhn.deployment.server import Server
from mh_pfedhn.private_folder import OWNER
from mh_pfedhn.processes import free_port

MISTAKE = 2


def test_the_server_has_tls_and_authentication_and_takes_commands_on_loopback(made, tmp_path):
    folder, _ = made
    server = Server(tmp_path, folder, "0.0.0.0", 9290, 9291, "consortium")
    words = server.command()
    options = words[words.index("mh_pfedhn.deployment.guard") + 1 :]
    assert options == [
        *("0.0.0.0", "9290"),
        *("--host", "127.0.0.1", "--port", "9291"),
        *("--database", str(tmp_path / "state.db"), "--isolation", "subprocess"),
        *("--ssl-certfile", str(folder / "server.pem"), "--ssl-keyfile", str(folder / "server.key")),
        *("--ssl-ca-certfile", str(folder / "ca.crt"), "--enable-supernode-auth"),
    ]
    assert server.address == "127.0.0.1:9291"


def test_an_insecure_server_has_neither(tmp_path):
    words = Server(tmp_path, None, "10.0.0.5", 9290, 9291, "consortium").command()
    assert words[-1] == "--insecure"
    assert "--enable-supernode-auth" not in words


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--certs", "nowhere"], "nowhere/ca.crt is missing"),
        (["--certs", "certs", "--name", "a b"], "--name is 'a b'"),
        (["--certs", "certs", "--name", "default"], "--name is 'default'"),
        (["--certs", "foreign"], "foreign/server.pem is for fl.example.org, but commands on this machine will reach"),
        (["--certs", "certs", "--port", "9291"], "--port and --command-port are both 9291"),
        (["--certs", "mixed"], "server.key is not the key"),
    ],
)
def test_a_mistake_in_what_the_server_is_asked_ends_with_2_and_one_line(complaint, arguments, part):
    make_certs(Path("mixed"), ["fl.example.org"], [])
    Path("mixed/server.key").write_bytes(Path("certs/server.key").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "_ALWAYS", ())
        make_certs(Path("foreign"), ["fl.example.org"], [])
    message = complaint("server", "--state", "state", *arguments)
    assert part in message
    assert message.count("\n") == 1
    assert not Path("state").exists()


def test_a_host_that_is_not_this_machines_is_named(complaint):
    assert "nobody.invalid" in complaint("server", "--state", "state", "--insecure", "--host", "nobody.invalid")


def test_a_port_that_is_taken_is_named(complaint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in complaint("server", "--state", "state", "--insecure", "--host", "127.0.0.1", "--port", port)
        other = str(free_port())
        said = complaint("server", "--state", "state", "--insecure", "--port", other, "--command-port", port)
        assert f"--command-port {port} on 127.0.0.1 cannot be listened on" in said
        assert port in complaint("site", "run", "site.yaml", "--server", "h:1", "--insecure", "--port", port)


def test_neither_certs_nor_insecure_is_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["server", "--state", "state"])
    assert ended.value.code == MISTAKE
    assert "--certs --insecure" in capsys.readouterr().err


def free_ports():
    return ["--port", str(free_port()), "--command-port", str(free_port())]


@pytest.mark.usefixtures("quick")
def test_a_server_that_never_came_up_is_not_started_again(complaint, monkeypatch, capsys):
    monkeypatch.setattr(Server, "command", lambda self: [sys.executable, "-c", "exit('no such database')"])
    message = complaint("server", "--state", "state", "--certs", "certs", *free_ports())
    assert "did not start (exit status 1, no such database)" in message
    assert stat.S_IMODE(Path("state").stat().st_mode) == 0o700
    assert "consortium" in tomllib.loads(Path("home/config.toml").read_text())["superlink"]


def test_a_state_folder_is_one_servers_at_a_time(complaint):
    Path("state").mkdir()
    with FileLock("state/.lock"):
        message = complaint("server", "--state", "state", "--insecure", *free_ports())
    assert f"--state {Path('state').absolute()} is in use by another server" in message
    assert not Path("home").exists()


@pytest.mark.usefixtures("quick")
def test_what_a_killed_server_left_makes_room_for_the_next(complaint, monkeypatch, capsys):
    monkeypatch.setattr(Server, "command", lambda self: [sys.executable, "-c", "exit('no such database')"])
    ports = free_ports()
    listen = "import socket, sys, time; s = socket.create_server(('0.0.0.0', int(sys.argv[1]))); time.sleep(600)"
    environment = {**os.environ, OWNER: str(Path("state").absolute())}
    with subprocess.Popen([sys.executable, "-c", listen, ports[1]], env=environment) as left:
        until(lambda: is_taken(int(ports[1])))
        assert "did not start" in complaint("server", "--state", "state", "--insecure", *ports)
        assert left.poll() is not None


def is_taken(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


THEIRS = '[superlink.consortium]\naddress = "10.0.0.1:9290"\nroot-certificates = "/theirs/ca.crt"\n'


def test_a_name_that_stands_for_another_server_is_refused_and_left_as_it_is(complaint):
    Path("home").mkdir()
    Path("home/config.toml").write_text(THEIRS)
    ports = free_ports()
    message = complaint("server", "--state", "state", "--insecure", *ports)
    assert f"{Path('home/config.toml').absolute()} has a connection 'consortium' already, to 10.0.0.1:9290" in message
    assert f"this server's is 127.0.0.1:{ports[-1]}" in message
    assert "--name" in message
    assert Path("home/config.toml").read_text() == THEIRS
    assert not Path("state").exists()


@pytest.mark.usefixtures("quick")
def test_a_name_that_stands_for_this_server_gets_its_new_certificates(complaint, monkeypatch):
    monkeypatch.setattr(Server, "command", lambda self: [sys.executable, "-c", "exit('no such database')"])
    ports = free_ports()
    Path("home").mkdir()
    Path("home/config.toml").write_text(THEIRS.replace("10.0.0.1:9290", f"127.0.0.1:{ports[-1]}"))
    complaint("server", "--state", "state", "--certs", "certs", *ports)
    connection = tomllib.loads(Path("home/config.toml").read_text())["superlink"]["consortium"]
    assert connection["root-certificates"] == str(Path("certs/ca.crt").absolute())


ENVIRONMENT = "import os, sys; sys.exit(str({k: v for k, v in os.environ.items() if k == 'MH_PFEDHN_STATE'}))"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("registered", [True, False])
def test_flower_is_told_where_the_names_of_keys_are_where_sites_have_any(complaint, monkeypatch, registered):
    monkeypatch.setenv("MH_PFEDHN_STATE", "/of/another/server")
    monkeypatch.setattr(Server, "command", lambda self: [sys.executable, "-c", ENVIRONMENT])
    protection = ["--certs", "certs"] if registered else ["--insecure"]
    told = {"MH_PFEDHN_STATE": str(Path("state").absolute())} if registered else {}
    assert f"exit status 1, {told}" in complaint("server", "--state", "state", *protection, *free_ports())
