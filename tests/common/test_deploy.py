"""The operator's commands without Flower: certificates, command lines, config.toml, registrations, supervision."""

import asyncio
import datetime
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store

from common import deploy, processes
from common.cli import main
from common.deploy import (
    FlowerRefusedError,
    Guard,
    Registrar,
    Server,
    SiteRun,
    flower_environment,
    make_certs,
    write_connection,
)
from common.errors import UserError
from common.processes import Child, free_port, is_healthy

MISTAKE = 2


# --- Certificates


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "certs"
    text = make_certs(folder, ["fl.example.org", "192.0.2.7"], ["hospital-a", "hospital-b"])
    return folder, text


def read(folder, name):
    return x509.load_pem_x509_certificate((folder / name).read_bytes())


@pytest.mark.parametrize("host", ["fl.example.org", "192.0.2.7", "localhost", "127.0.0.1"])
def test_the_servers_certificate_verifies_for_each_of_its_hosts(made, host):
    folder, _ = made
    subject = deploy._general_name(host)
    verifier = PolicyBuilder().store(Store([read(folder, "ca.crt")])).build_server_verifier(subject)
    assert len(verifier.verify(read(folder, "server.pem"), [])) == 2


def test_the_servers_certificate_does_not_verify_for_another_host(made):
    folder, _ = made
    other = x509.DNSName("other.example.org")
    verifier = PolicyBuilder().store(Store([read(folder, "ca.crt")])).build_server_verifier(other)
    with pytest.raises(x509.verification.VerificationError):
        verifier.verify(read(folder, "server.pem"), [])


def test_certificates_are_valid_for_two_years_and_the_output_says_so(made):
    folder, text = made
    ends = read(folder, "server.pem").not_valid_after_utc
    assert abs(ends - datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=730)) < datetime.timedelta(hours=1)
    assert "two years" in text
    assert f"{ends:%Y-%m-%d}" in text
    for part in ("to the server", "to each site", "to nobody       ca.key"):
        assert part in text


def test_private_files_are_for_their_owner_only(made):
    folder, _ = made
    for name in ("ca.key", "server.key", "sites/hospital-a", "sites/hospital-b"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_a_sites_keys_are_a_pair_in_openssh_form(made):
    folder, _ = made
    private = (folder / "sites/hospital-a").read_bytes()
    public = (folder / "sites/hospital-a.pub").read_bytes()
    assert private.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert public.startswith(b"ecdsa-sha2-nistp384 ")
    assert public.endswith(b" hospital-a\n")
    assert load_ssh_private_key(private, None).public_key() == load_ssh_public_key(public)
    assert public != (folder / "sites/hospital-b.pub").read_bytes()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_call_adds_the_missing_keys_and_changes_nothing_else(tmp_path):
    make_certs(tmp_path, ["fl.example.org"], ["a"])
    before = contents(tmp_path)
    assert "made sites/b, sites/b.pub." in make_certs(tmp_path, [], ["a", "b"])
    after = contents(tmp_path)
    assert {path.name for path in after.keys() - before.keys()} == {"b", "b.pub"}
    assert {path: after[path] for path in before} == before
    assert "everything was there already" in make_certs(tmp_path, ["fl.example.org"], ["a", "b"])


def test_the_authority_is_kept_when_the_servers_certificate_is_made_again(tmp_path):
    make_certs(tmp_path, ["one.example.org"], [])
    authority = (tmp_path / "ca.crt").read_bytes()
    (tmp_path / "server.pem").unlink()
    (tmp_path / "server.key").unlink()
    make_certs(tmp_path, ["two.example.org"], [])
    assert (tmp_path / "ca.crt").read_bytes() == authority
    read(tmp_path, "server.pem").verify_directly_issued_by(read(tmp_path, "ca.crt"))


def test_a_public_key_alone_is_a_site_that_keeps_its_private_key_to_itself(tmp_path):
    make_certs(tmp_path, ["fl.example.org"], ["a"])
    (tmp_path / "sites/a").unlink()
    make_certs(tmp_path, [], ["a"])
    assert not (tmp_path / "sites/a").exists()


def test_a_lost_public_key_is_derived_from_the_private_one(tmp_path):
    make_certs(tmp_path, ["fl.example.org"], ["a"])
    public = (tmp_path / "sites/a.pub").read_bytes()
    (tmp_path / "sites/a.pub").unlink()
    make_certs(tmp_path, [], ["a"])
    assert (tmp_path / "sites/a.pub").read_bytes() == public


@pytest.mark.parametrize(
    ("hosts", "sites", "gone", "part"),
    [
        (["other.example.org"], [], [], "but not for other.example.org"),
        ([], [], ["server.pem", "server.key"], "--host is missing"),
        (["h"], [], ["server.pem"], "server.key exists, but not server.pem"),
        (["h"], [], ["server.pem", "server.key", "ca.key"], "exists, but not ca.key"),
        (["http://h"], [], [], "--host is 'http://h'"),
        (["h:1"], [], [], "--host is 'h:1'"),
        ([], ["a/b"], [], "--site is 'a/b'"),
        ([], [".hidden"], [], "--site is '.hidden'"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(tmp_path, hosts, sites, gone, part):
    make_certs(tmp_path, ["fl.example.org"], [])
    for name in gone:
        (tmp_path / name).unlink()
    before = contents(tmp_path)
    with pytest.raises(UserError, match=part):
        make_certs(tmp_path, hosts, sites)
    assert contents(tmp_path) == before


# --- Command lines


def test_the_server_has_tls_and_authentication(made, tmp_path):
    folder, _ = made
    server = Server(tmp_path, folder, "0.0.0.0", 9290, "consortium")
    words = server.command()
    options = words[words.index("common.deploy") + 1 :]
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


def test_the_supernode_has_tls_and_its_key_and_knows_its_trainer():
    site = SiteRun(Path("/s/site a.yaml"), "fl.example.org:9290", Path("/c/ca.crt"), Path("/c/a"), 9095)
    words = site.command(Path("/t/trainer"), Path("/t/secret"))
    assert words[1:] == [
        *("--superlink", "fl.example.org:9290", "--host", "127.0.0.1", "--port", "9095", "--isolation", "subprocess"),
        *("--node-config", 'site="/s/site a.yaml" trainer-socket="/t/trainer" trainer-secret="/t/secret"'),
        *("--root-certificates", "/c/ca.crt", "--auth-supernode-private-key", "/c/a"),
    ]
    assert "--insecure" not in words


def test_an_insecure_supernode_has_neither():
    words = SiteRun(Path("/s.yaml"), "h:1", None, None, 9095).command(Path("/t/trainer"), Path("/t/secret"))
    assert words[-1] == "--insecure"
    assert "--auth-supernode-private-key" not in words


def test_the_trainer_is_this_environments_own():
    words = deploy.trainer_command(Path("/s.yaml"), Path("/t/trainer"), Path("/t/secret"))
    assert words[:3] == [sys.executable, "-m", "client_app.resident"]
    assert words[3:] == ["--site", "/s.yaml", "--socket", "/t/trainer", "--secret", "/t/secret"]


def test_flower_is_offline_and_finds_its_commands():
    environment = flower_environment({"PATH": "/bin", "MINE": "1"})
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/bin"
    assert environment["MINE"] == "1"
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"


# --- Mistakes


@pytest.fixture
def complaint(capsys, tmp_path, monkeypatch):
    """Run the command with a mistake in a folder with a site file and certificates; return what it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    Path("site.yaml").write_text("")
    make_certs(Path("certs"), ["fl.example.org"], ["a"])

    def run(*arguments):
        assert main(arguments) == MISTAKE
        error = capsys.readouterr().err
        assert error.startswith("mh-pfedhn: ")
        assert "Traceback" not in error
        return error

    return run


SECURE = ("--ca", "certs/ca.crt", "--key", "certs/sites/a")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["site.yaml", "--server", "h:1"], "--insecure"),
        (["site.yaml", "--server", "h:1", "--ca", "certs/ca.crt"], "--ca and --key"),
        (["site.yaml", "--server", "h:1", "--insecure", *SECURE], "--ca and --key"),
        (["other.yaml", "--server", "h:1", *SECURE], "other.yaml"),
        (["site.yaml", "--server", "h", "--insecure"], "--server is 'h'"),
        (["site.yaml", "--server", "h:none", "--insecure"], "--server is 'h:none'"),
        (["site.yaml", "--server", "h:1", "--ca", "certs/ca.crt", "--key", "certs/sites/b"], "sites/b cannot be read"),
        (["site.yaml", "--server", "h:1", "--ca", "certs/ca.crt", "--key", "certs/ca.key"], "OpenSSH form"),
        (["site.yaml", "--server", "h:1", "--ca", "certs/sites/a", "--key", "certs/sites/a"], "not a certificate"),
    ],
)
def test_a_mistake_in_what_a_site_asks_ends_with_2_and_one_line(complaint, arguments, part):
    message = complaint("site", "run", *arguments)
    assert part in message
    assert message.count("\n") == 1


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


@pytest.fixture
def tls_server(tmp_path):
    """The port of something that speaks TLS with a certificate of its own authority; answers nothing."""
    make_certs(tmp_path / "theirs", ["fl.example.org"], [])
    context = deploy.ssl.SSLContext(deploy.ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "theirs/server.pem", tmp_path / "theirs/server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_a_server_of_another_authority_is_refused_at_once(complaint, tls_server):
    message = complaint("site", "run", "site.yaml", "--server", f"127.0.0.1:{tls_server}", *SECURE)
    assert "does not prove to be the server" in message
    with pytest.raises(UserError, match="does not go with"):
        is_healthy(f"127.0.0.1:{tls_server}", Path("certs/ca.crt"))


def test_a_server_of_the_right_authority_is_accepted(tls_server, tmp_path):
    deploy._check_tls("127.0.0.1", tls_server, tmp_path / "theirs/ca.crt")


def test_a_server_that_is_not_there_yet_is_waited_for(tmp_path, capsys):
    make_certs(tmp_path, ["h"], [])
    deploy._check_tls("127.0.0.1", free_port(), tmp_path / "ca.crt")
    assert "does not answer yet" in capsys.readouterr().out
    assert not is_healthy(f"127.0.0.1:{free_port()}", tmp_path / "ca.crt")


# --- Flower's config.toml

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


@pytest.mark.parametrize(
    "text",
    ["[superlink\n", '[superlink]\nconsortium = {address = "1.2.3.4:5"}\n', "superlink.consortium.address = 1\n"],
)
def test_a_file_that_cannot_be_changed_safely_stays_as_it_is(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config\.toml"):
        write_connection(path, "consortium", "127.0.0.1:9290", None)
    assert path.read_text() == text


# --- Registrations


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
    monkeypatch.setattr(deploy, "_LOOK_EVERY", 0.0)
    return fake


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


def test_a_restart_registers_nothing_again_and_still_knows_what_to_unregister(registrar, flower, tmp_path):
    registrar().look()
    (tmp_path / "sites/a.pub").unlink()
    again = registrar()
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
    (tmp_path / "sites/a.pub").unlink()
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


def test_what_fails_while_the_server_is_down_is_done_later(registrar, flower, capsys):
    one = registrar()
    flower.down = True
    one.look()
    assert "tried again" in capsys.readouterr().out
    flower.down = False
    one.look()
    assert flower.registered == {"1", "2"}


# --- Who may command the server


@pytest.mark.parametrize(
    ("path", "client", "allowed"),
    [
        ("/v1/control/start-run", "192.0.2.9", False),
        ("/v1/control/register-node", "192.0.2.9", False),
        ("/v1/runtime/acquire-task", "192.0.2.9", False),
        ("/docs", "192.0.2.9", False),
        ("/v1/fleet/pull-messages", "192.0.2.9", True),
        ("/health", "192.0.2.9", True),
        ("/v1/control/start-run", "127.0.0.1", True),
        ("/v1/control/start-run", "192.0.2.1", True),  # the server's own address
    ],
)
def test_other_machines_may_only_be_sites(path, client, allowed):
    passed, sent = [], []

    async def app(scope, receive, send):
        passed.append(scope)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "client": (client, 5), "server": ("192.0.2.1", 9290)}
    asyncio.run(Guard(app)(scope, None, send))
    assert bool(passed) == allowed
    if not allowed:
        assert sent[0]["status"] == 403
        assert "own machine only" in json.loads(sent[1]["body"])["detail"]


# --- Supervision


@pytest.fixture
def quick(monkeypatch):
    """Delays a hundredth as long."""
    monkeypatch.setattr(processes, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(processes, "_LONGEST_DELAY", 0.3)
    monkeypatch.setattr(deploy, "_TICK", 0.01)


def child(script, name="child"):
    return Child(name, [sys.executable, "-c", script], os.environ)


def until(condition, within=20.0):
    ends = time.monotonic() + within
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.01)


@pytest.mark.usefixtures("quick")
def test_a_child_that_dies_is_started_again_after_doubling_delays(capsys, tmp_path):
    marks = tmp_path / "marks"
    marks.write_text("")
    dies = child(f"open({str(marks)!r}, 'a').write('x'); print('because'); exit(3)")
    until(lambda: dies.keep_running() and len(marks.read_text()) == 4)
    dies.stop()
    lines = [line.split(" ", 2)[2] for line in capsys.readouterr().out.splitlines() if "ended after" in line]
    assert len(lines) == 4
    assert all("exit status 3, because" in line for line in lines)
    assert dies._delay == pytest.approx(0.16)


@pytest.mark.usefixtures("quick")
def test_delays_are_bounded_and_start_anew_after_a_steady_run(monkeypatch):
    dies = child("")
    until(lambda: dies.keep_running() and dies._delay == 0.3)
    monkeypatch.setattr(processes, "_STEADY", 0.0)
    until(dies.keep_running)
    assert dies._delay == 0.02
    dies.stop()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "signal SIGKILL"),
        (
            "print('Exit Code: 302')\nprint('Unable to parse.')\nprint('Hint.')\nprint('x')\nexit(1)",
            "Flower's exit code 302, Unable to parse. Hint. It",
        ),
        ("print('Exit Code: 305\\nFailed.\\n[code: 2004] Failed to activate.')\nexit(1)", "the server refused it"),
        ("", "exit status 0. It"),
    ],
)
def test_the_reason_of_an_end_is_one_line(capsys, script, reason):
    dies = child(script)
    until(dies.keep_running)
    assert [reason in line for line in capsys.readouterr().out.splitlines() if "ended after" in line] == [True]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


PARENT = """
import signal, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
grandchild = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
grandchild.stdout.readline()
print("grandchild", grandchild.pid, flush=True)
"""


def grandchild_of(parent):
    until(lambda: parent.keep_running() or any(line.startswith("grandchild") for line in parent.lines))
    return int(next(line for line in parent.lines if line.startswith("grandchild")).split()[1])


def test_stopping_a_child_takes_its_grandchildren_even_deaf_ones():
    parent = child(PARENT + "time.sleep(600)")
    pid = grandchild_of(parent)
    parent.stop()
    until(lambda: not alive(pid))
    assert not parent.running


def test_a_child_that_crashes_leaves_no_grandchildren_behind():
    parent = child(PARENT + "exit(1)")
    pid = grandchild_of(parent)
    until(lambda: not parent.running or parent.keep_running())
    until(lambda: not alive(pid))
    parent.stop()


def serve(socket_path, then):
    return f"import socket, time; s = socket.socket(socket.AF_UNIX); s.bind({str(socket_path)!r}); {then}"


@pytest.fixture
def socket_path(tmp_path_factory):
    path = Path(f"/tmp/mh-pfedhn-test-{os.getpid()}-{time.monotonic_ns()}")
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.usefixtures("quick")
def test_a_trainer_that_never_serves_stops_everything_after_three_failures(socket_path):
    trainer, supernode = child("print('learning-rate is -1')\nexit(2)"), child("")
    with pytest.raises(UserError, match="3 times before it ever served; its last lines:\n  learning-rate is -1"):
        deploy._supervise(trainer, supernode, socket_path, threading.Event().wait)
    assert not supernode.running
    assert not supernode.lines


@pytest.mark.usefixtures("quick")
def test_a_trainer_that_has_served_is_started_again_for_ever(socket_path, tmp_path):
    marks = tmp_path / "marks"
    once = f"""
import os, sys
if os.path.exists({str(marks)!r}):
    open({str(marks)!r}, "a").write("x")
    sys.exit(1)
{serve(socket_path, "time.sleep(0.5)")}
open({str(marks)!r}, "w")
"""
    trainer, supernode = child(once, "trainer"), child("import time; time.sleep(600)", "supernode")
    stop = threading.Event()

    def wait(seconds):
        if marks.exists() and len(marks.read_text()) > 5:
            stop.set()
        return stop.wait(seconds)

    deploy._supervise(trainer, supernode, socket_path, wait)
    assert supernode.running
    supernode.stop()
    trainer.stop()


SITE = """
import sys
from common import deploy
deploy.trainer_command = lambda site, path, secret: [sys.executable, "-c", TRAINER, str(path), str(secret), str(site)]
deploy.SiteRun.command = lambda self, path, secret: [sys.executable, "-c", "import time; print('up'); time.sleep(600)"]
from common.cli import main
sys.exit(main(sys.argv[1:]))
"""
TRAINER = """
import os, socket, sys, time
path, secret, site = sys.argv[1:]
modes = [oct(os.stat(p).st_mode & 0o777) for p in (os.path.dirname(path), secret)]
print("modes", *modes, len(open(secret).read()), len(path), flush=True)
socket.socket(socket.AF_UNIX).bind(path) if os.path.getsize(site) else sys.exit("empty site file")
print("folder", os.path.dirname(path), flush=True)
time.sleep(600)
"""


def start_site(tmp_path, content):
    (tmp_path / "site.yaml").write_text(content)
    script = SITE.replace("TRAINER", repr(TRAINER))
    command = [sys.executable, "-c", script, "site", "run", "site.yaml", "--server", "127.0.0.1:1", "--insecure"]
    return subprocess.Popen(
        [*command, "--port", str(free_port())], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_site_with_status_0_and_leaves_nothing(tmp_path, number):
    site = start_site(tmp_path, "x")
    lines = []
    for line in site.stdout:
        lines.append(line.strip())
        if line == "[supernode] up\n":
            break
    children = Path(f"/proc/{site.pid}/task/{site.pid}/children").read_text().split()
    assert len(children) == 2
    site.send_signal(number)
    rest, error = site.communicate(timeout=30)
    assert site.returncode == 0
    assert error == ""
    assert "The site has stopped." in rest
    assert not any(alive(pid) for pid in children)
    assert any(line.startswith("[trainer] modes 0o700 0o600 64 ") for line in lines)
    folder = next(line.split()[2] for line in lines if line.startswith("[trainer] folder"))
    assert not Path(folder).exists()


def test_a_mistake_in_the_site_file_ends_with_2_and_the_trainers_last_lines(tmp_path):
    site = start_site(tmp_path, "")
    output, error = site.communicate(timeout=60)
    assert site.returncode == MISTAKE
    assert error.startswith("mh-pfedhn: the trainer failed 3 times")
    assert error.rstrip().endswith("empty site file")
    assert "[supernode]" not in output


@pytest.mark.usefixtures("quick")
def test_a_server_that_never_came_up_is_not_started_again(complaint, monkeypatch, capsys):
    monkeypatch.setattr(Server, "command", lambda self: [sys.executable, "-c", "exit('no such database')"])
    message = complaint("server", "--state", "state", "--certs", "certs", "--port", str(free_port()))
    assert "did not start (exit status 1, no such database)" in message
    assert stat.S_IMODE(Path("state").stat().st_mode) == 0o700
    assert "consortium" in tomllib.loads(Path("home/config.toml").read_text())["superlink"]


def test_a_temporary_folder_that_is_too_long_for_a_socket_is_named(complaint, monkeypatch, tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert "TMPDIR" in complaint(
        "site", "run", "site.yaml", "--server", "h:1", "--insecure", "--port", str(free_port())
    )
