"""`mh-pfedhn site run` without Flower: its command lines, what it refuses, and how it is stopped."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from children import alive, child, until
from flwr.app import RecordDict

from client_app.resident import relay
from common.errors import UserError
from common.refusal import decode_refusal
from mh_pfedhn.deployment import heartbeat as beating
from mh_pfedhn.deployment import site as deployed
from mh_pfedhn.deployment.certificates import make_certs
from mh_pfedhn.deployment.heartbeat import Heartbeat
from mh_pfedhn.deployment.site import SiteRun
from mh_pfedhn.deployment.supervision import Child
from mh_pfedhn.processes import free_port, is_healthy

MISTAKE = 2


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
    words = deployed.trainer_command(Path("/s.yaml"), Path("/t/trainer"), Path("/t/secret"), Path("/t/beat"))
    assert words[:4] == [sys.executable, "-P", "-m", "client_app.resident"]
    assert words[4:] == [
        "--site",
        "/s.yaml",
        "--socket",
        "/t/trainer",
        "--secret",
        "/t/secret",
        "--heartbeat",
        "/t/beat",
    ]


@pytest.mark.parametrize("package", ["common", "client_app", "torch"])
def test_a_folder_where_the_operator_stands_is_not_taken_for_ours(tmp_path, package):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise SystemExit('of the operator')")
    words = deployed.trainer_command(*(tmp_path / name for name in ("none.yaml", "trainer", "secret", "beat")))
    (tmp_path / "secret").write_text("0" * 64)
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "of the operator" not in done.stderr
    assert (done.returncode, "none.yaml" in done.stderr) == (MISTAKE, True)


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


@pytest.fixture
def tls_server(tmp_path):
    """The port of something that speaks TLS with a certificate of its own authority; answers nothing."""
    make_certs(tmp_path / "theirs", ["fl.example.org"], [])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
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
    deployed._check_tls("127.0.0.1", tls_server, tmp_path / "theirs/ca.crt")


def test_a_server_that_is_not_there_yet_is_waited_for(tmp_path, capsys):
    make_certs(tmp_path, ["h"], [])
    deployed._check_tls("127.0.0.1", free_port(), tmp_path / "ca.crt")
    assert "does not answer yet" in capsys.readouterr().out
    assert not is_healthy(f"127.0.0.1:{free_port()}", tmp_path / "ca.crt")


def serve(socket_path, then):
    return f"import socket, time; s = socket.socket(socket.AF_UNIX); s.bind({str(socket_path)!r}); {then}"


@pytest.fixture
def socket_path(tmp_path_factory):
    # Not in tmp_path, which is too long for the path of a socket.
    path = Path(tempfile.gettempdir(), f"mh-pfedhn-test-{os.getpid()}-{time.monotonic_ns()}")
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.usefixtures("quick")
def test_a_trainer_that_never_serves_stops_everything_after_three_failures(socket_path, tmp_path):
    trainer, supernode = child("print('learning-rate is -1')\nexit(2)"), child("")
    with pytest.raises(UserError, match="3 times before it ever served; its last lines:\n  learning-rate is -1"):
        deployed._supervise(trainer, supernode, socket_path, Heartbeat(tmp_path / "beat"), threading.Event().wait)
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

    deployed._supervise(trainer, supernode, socket_path, Heartbeat(tmp_path / "beat"), wait)
    assert supernode.running
    supernode.stop()
    trainer.stop()


TABLE = """
import torch
from torch import nn

def build():
    return nn.Linear(3, 2)

def load():
    inputs, targets = torch.randn(8, 3), torch.arange(8) % 2
    return (inputs, targets), (inputs, targets)
"""


@pytest.mark.usefixtures("quick")
def test_a_trainer_that_is_stopped_is_killed_and_started_again(socket_path, tmp_path, capsys):
    """SIGSTOP stands for whatever keeps a process from watching itself."""
    (tmp_path / "table.py").write_text(TABLE)
    (tmp_path / "site.yaml").write_text(
        "model: {factory: 'table:build'}\ndata: {factory: 'table:load'}\nstate-dir: state\ndevice: cpu\n"
    )
    (tmp_path / "secret").write_bytes(bytes(32))
    heartbeat = Heartbeat(tmp_path / "beat", patience=6.0)
    command = deployed.trainer_command(tmp_path / "site.yaml", socket_path, tmp_path / "secret", heartbeat.path)
    trainer, supernode = Child("trainer", command, os.environ), child("import time; time.sleep(600)", "supernode")
    stop, answers, stopped = threading.Event(), [], []

    def asks():
        address = relay.Address(str(socket_path), str(tmp_path / "secret"))
        node = {"trainer-socket": address.socket, "trainer-secret": address.secret}
        try:
            until(lambda: supernode.running, within=60)
            stopped.append(trainer._process.pid)
            os.kill(stopped[0], signal.SIGSTOP)
            answers.append(relay.answer(node, "query.nonsense", RecordDict()))  # as long as it takes to be killed
            until(lambda: getattr(trainer._process, "pid", stopped[0]) != stopped[0], within=60)
            until(lambda: "ready" in " ".join(trainer.lines), within=60)
            answers.append(relay.answer(node, "query.nonsense", RecordDict()))
        finally:
            stop.set()

    asker = threading.Thread(target=asks)
    asker.start()
    try:
        deployed._supervise(trainer, supernode, socket_path, heartbeat, stop.wait)
        assert trainer._process.pid != stopped[0]
        assert not alive(stopped[0])
    finally:
        supernode.stop()
        trainer.stop()
    asker.join()
    assert [decode_refusal(answer).reason for answer in answers] == ["trainer-unreachable", "malformed"]
    assert capsys.readouterr().out.count("The trainer has given no sign of life for 6 s, so it is killed.") == 1


def test_a_heart_that_has_not_begun_to_beat_is_waited_for_and_one_that_is_gone_is_no_more(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(beating, "time", SimpleNamespace(monotonic=lambda: now[0]))
    heartbeat = Heartbeat(tmp_path / "beat")

    def stopped_after(seconds):
        now[0] += seconds
        return heartbeat.has_stopped()

    assert not stopped_after(1e6)  # it may take long to start
    os.utime(heartbeat.path.touch() or heartbeat.path, (1e9, 1e9))  # whatever the file's own clock says
    assert [stopped_after(seconds) for seconds in (0, 60, 1)] == [False, False, True]
    os.utime(heartbeat.path, (1e9 + 1, 1e9 + 1))
    assert [stopped_after(seconds) for seconds in (0, 60, 1)] == [False, False, True]
    heartbeat.forget()
    assert not heartbeat.path.exists()
    assert not stopped_after(1e6)


SITE = """
import sys
from mh_pfedhn.deployment import site
site.trainer_command = lambda site, *files: [sys.executable, "-c", TRAINER, *map(str, files[:2]), str(site)]
site.SiteRun.command = lambda self, path, secret: [sys.executable, "-c", SUPERNODE, str(self.port)]
from mh_pfedhn.cli import main
sys.exit(main(sys.argv[1:]))
"""
SUPERNODE = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("up", flush=True)
time.sleep(600)
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


def start_site(tmp_path, content, port=None):
    (tmp_path / "site.yaml").write_text(content)
    script = SITE.replace("TRAINER", repr(TRAINER)).replace("SUPERNODE", repr(SUPERNODE))
    command = [sys.executable, "-c", script, "site", "run", "site.yaml", "--server", "127.0.0.1:1", "--insecure"]
    command += ["--port", str(port or free_port())]
    return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_up(site):
    """What a site says until its SuperNode is up, and the ids of the processes that it has started."""
    lines = []
    for line in site.stdout:
        lines.append(line.strip())
        if line == "[supernode] up\n":
            break
    children = Path(f"/proc/{site.pid}/task/{site.pid}/children").read_text().split()
    assert len(children) == 2
    return lines, children


def folder_in(lines):
    return Path(next(line.split()[2] for line in lines if line.startswith("[trainer] folder")))


def test_a_site_that_was_killed_is_started_again_in_its_place(tmp_path):
    port = free_port()
    killed = start_site(tmp_path, "x", port)
    lines, children = until_up(killed)
    killed.kill()
    killed.communicate()
    assert all(alive(pid) for pid in children)
    site = start_site(tmp_path, "x", port)
    said, others = until_up(site)
    assert not any(alive(pid) for pid in children)
    assert not folder_in(lines).exists()
    assert any(f"the folder {folder_in(lines)} and 2 processes" in line for line in said)
    site.terminate()
    assert site.communicate(timeout=30)[1] == ""
    assert site.returncode == 0
    assert not any(alive(pid) for pid in others)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_site_with_status_0_and_leaves_nothing(tmp_path, number):
    site = start_site(tmp_path, "x")
    lines, children = until_up(site)
    site.send_signal(number)
    rest, error = site.communicate(timeout=30)
    assert site.returncode == 0
    assert error == ""
    assert "The site has stopped." in rest
    assert not any(alive(pid) for pid in children)
    assert any(line.startswith("[trainer] modes 0o700 0o600 64 ") for line in lines)
    assert not folder_in(lines).exists()


def test_a_mistake_in_the_site_file_ends_with_2_and_the_trainers_last_lines(tmp_path):
    site = start_site(tmp_path, "")
    output, error = site.communicate(timeout=60)
    assert site.returncode == MISTAKE
    assert error.startswith("mh-pfedhn: the trainer failed 3 times")
    assert error.rstrip().endswith("empty site file")
    assert "[supernode]" not in output


def test_a_temporary_folder_that_is_too_long_for_a_socket_is_named(complaint, monkeypatch, tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert "TMPDIR" in complaint(
        "site", "run", "site.yaml", "--server", "h:1", "--insecure", "--port", str(free_port())
    )
