"""The operator's commands with Flower's real processes on loopback: TLS and SuperNode authentication on."""

import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest
from consortium import Recorder
from flower_processes import BIN, environment, run

from mh_pfedhn.deployment.connections import write_connection
from mh_pfedhn.processes import free_port

pytestmark = pytest.mark.e2e

# `mh-pfedhn` with a trainer that serves nothing.
SITE = """
import sys
from mh_pfedhn.deployment import site
TRAINER = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); time.sleep(600)"
site.trainer_command = lambda site, path, *others: [sys.executable, "-c", TRAINER, str(path)]
from mh_pfedhn.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def home(tmp_path):
    """Where the test's processes run, so that nothing touches the user's own Flower."""
    (tmp_path / "site.yaml").write_text("")
    return tmp_path


@pytest.fixture
def start(home):
    """Start a command in the background; its log is a file of its name. What is left at the end is terminated."""
    with contextlib.ExitStack() as stack:

        def end(process):
            process.terminate()
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()

        def start(name, *words):
            with (home / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    [str(word) for word in words],
                    cwd=home,
                    env=environment(home / "flwr"),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            stack.callback(end, process)
            return process

        yield start
        for log in sorted(home.glob("*.log")):
            print(f"--- {log.name} ---\n{log.read_text()[-4000:]}")


def until(what, condition, within=60.0):
    ends = time.monotonic() + within
    while not (met := condition()):
        assert time.monotonic() < ends, f"{what}: not within {within} s"
        time.sleep(0.2)
    return met


def says(home, name, text, times=1):
    until(f"{name} says {text!r}", lambda: (home / f"{name}.log").read_text().count(text) >= times)


def statuses(home):
    done = run(
        *(BIN / "flwr", "supernode", "list", "consortium", "--format", "json"), env=environment(home / "flwr"), cwd=home
    )
    return Counter(node["status"] for node in json.loads(done.stdout).get("nodes", []))


def test_a_consortium_comes_up_survives_a_crash_and_loses_a_site(home, start):
    certs, port, command_port = home / "certs", free_port(), free_port()
    certs_command = (BIN / "mh-pfedhn", "certs", certs)
    done = run(*certs_command, "--host", "localhost", "--site", "a", env=os.environ, cwd=home)
    assert done.returncode == 0
    ports = ["--port", port, "--command-port", command_port]
    server = start("server", BIN / "mh-pfedhn", "server", "--state", "state", "--certs", certs, *ports)

    def site(name):
        words = ["site", "run", "site.yaml", "--server", f"localhost:{port}", "--port", free_port()]
        words += ["--ca", certs / "ca.crt", "--key", certs / "sites" / name]
        return start(name, sys.executable, "-c", SITE, *words)

    says(home, "server", "Registered a as node")
    run(*certs_command, "--site", "b", "--site", "stranger", env=os.environ, cwd=home)
    (certs / "sites" / "stranger.pub").rename(certs / "sites" / "stranger.pub.removed")  # which is meant
    sites = [site("a"), site("b"), site("stranger")]
    says(home, "server", "Registered b as node")
    says(home, "stranger", "the server refused it")
    until("two nodes are online", lambda: statuses(home) == {"online": 2})

    # Whoever comes to the sites' port, from this machine or through it, may be a site and nothing else.
    context = ssl.create_default_context(cafile=certs / "ca.crt")
    proxy = Recorder(port)
    for each in (port, proxy.port):
        connection = http.client.HTTPSConnection("localhost", each, context=context)
        connection.request("POST", "/v1/control/list-nodes")
        assert connection.getresponse().status == 403
    strangers = environment(home / "elsewhere")
    write_connection(home / "elsewhere" / "config.toml", "there", f"127.0.0.1:{proxy.port}", certs / "ca.crt")
    assert "own machine only" in run(BIN / "flwr", "list", "there", env=strangers, cwd=home).stderr
    proxy.close()

    children = psutil.Process(server.pid).children()
    superlink = next(child for child in children if "mh_pfedhn.deployment.guard" in child.cmdline())
    # What Flower starts for a run learns where the names of the keys are.
    executor = next(child for child in superlink.children() if "flower-superexec" in " ".join(child.cmdline()))
    assert executor.environ()["MH_PFEDHN_STATE"] == str(home / "state")
    superlink.send_signal(signal.SIGKILL)
    says(home, "server", "signal SIGKILL. It starts again in 1 s.")
    says(home, "server", "The server is up", times=2)
    for name in ("a", "b"):
        says(home, name, "Connection successful")
    until("the registrations survived", lambda: statuses(home) == {"online": 2})

    (certs / "sites" / "b.pub").rename(certs / "sites" / "b.pub.removed")
    says(home, "server", "Unregistered b, node")
    assert statuses(home) == {"online": 1, "unregistered": 1}
    says(home, "b", "supernode ended after")

    for process in (*sites, server):
        process.terminate()
    assert [process.wait(timeout=40) for process in (*sites, server)] == [0, 0, 0, 0]
    assert "The server has stopped." in (home / "server.log").read_text()
    assert (home / "state" / "state.db").exists()
    assert not (home / "state").stat().st_mode & 0o077
