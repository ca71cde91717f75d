"""A consortium of sites with private models: what leaves a site, and what is lost when its processes are killed."""

import contextlib
import json
import re
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from flower_processes import BIN, environment, metrics, run

from common.processes import free_port

pytestmark = pytest.mark.e2e

NETS = """
import torch
from torch import nn

class OncologyBackbone(nn.Module):
    def __init__(self, confidential_width):
        super().__init__()
        self.tumour_encoder = nn.Linear(12, confidential_width)
        self.biomarker_norm = nn.BatchNorm1d(confidential_width)
        self.diagnosis_layer = nn.Linear(confidential_width, 3)

    def forward(self, inputs):
        return self.diagnosis_layer(torch.relu(self.biomarker_norm(self.tumour_encoder(inputs))))

def build_secretly(confidential_width):
    return OncologyBackbone(confidential_width)
"""
DATA = """
import torch

def patients(ward):
    generator = torch.Generator().manual_seed(ward)
    inputs = torch.randn(160, 12, generator=generator)
    targets = (inputs[:, :3] * (1 + ward)).argmax(dim=1)
    return (inputs[:120], targets[:120]), (inputs[120:], targets[120:])
"""
SECRETS = [
    *("OncologyBackbone", "tumour_encoder", "biomarker_norm", "diagnosis_layer", "confidential_width"),
    *("build_secretly", "hidden_nets", "hidden_data", "patients", "ward", "site.yaml", "tumour", "running_mean"),
]


class Recorder:
    """Passes bytes between a site and the server, and keeps all that the site sent."""

    def __init__(self, server_port: int) -> None:
        self.port = free_port()
        self.sent = bytearray()
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                site, _ = self._listener.accept()
                threading.Thread(target=self._pass_on, args=(site,), daemon=True).start()

    def _pass_on(self, site: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            site,
            socket.create_connection(("127.0.0.1", self._server_port)) as server,
            selectors.DefaultSelector() as selector,
        ):
            selector.register(site, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, site)
            while True:
                for key, _ in selector.select():
                    source: Any = key.fileobj
                    chunk = source.recv(1 << 16)
                    if not chunk:
                        return
                    if source is site:
                        self.sent += chunk
                    key.data.sendall(chunk)

    def close(self) -> None:
        self._listener.close()


class Consortium:
    """One server without TLS, sites behind recorders, all on loopback and in one folder."""

    def __init__(self, home: Path, stack: contextlib.ExitStack) -> None:
        self.home = home
        self._stack = stack
        self.port = free_port()
        self.recorders: dict[str, Recorder] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *words: str | Path) -> None:
        with (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / "mh-pfedhn"), *map(str, words)],
                cwd=self.home,
                # A Flower home of its own, as on a machine of its own: there the app is unpacked.
                env=environment(self.home / f"flwr-{name}" if name != "server" else self.home / "flwr"),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[name] = process
        self._stack.callback(_end, process)

    def start_server(self) -> None:
        self.start(
            "server", "server", "--state", "state", "--insecure", "--host", "127.0.0.1", "--port", str(self.port)
        )
        self.until("the server is up", lambda: "The server is up" in self.log("server"))

    def start_site(self, name: str, width: int, ward: int) -> None:
        folder = self.home / name
        folder.mkdir()
        (folder / "hidden_nets.py").write_text(NETS)
        (folder / "hidden_data.py").write_text(DATA)
        (folder / "site.yaml").write_text(
            f'model: {{factory: "hidden_nets:build_secretly", args: {{confidential_width: {width}}}}}\n'
            f'data: {{factory: "hidden_data:patients", args: {{ward: {ward}}}}}\n'
            "state-dir: state\n"
        )
        self.recorders[name] = Recorder(self.port)
        self._stack.callback(self.recorders[name].close)
        address = f"127.0.0.1:{self.recorders[name].port}"
        words = ["site", "run", folder / "site.yaml", "--server", address, "--insecure", "--port", str(free_port())]
        self.start(name, *words)

    def run_profile(self, rounds: int, **settings: object) -> subprocess.CompletedProcess[str]:
        chosen = {"run-name": "run", "num-rounds": rounds, "deadline": 120, "checkpoint-every": 1, "hidden-dim": 16}
        chosen |= {key.replace("_", "-"): value for key, value in settings.items()}
        words = [f"{key}={value}" for key, value in chosen.items()]
        words.append(f"results-dir={self.home / 'results'}")
        command = [BIN / "mh-pfedhn", "run", "consortium", "--superlink", "consortium", "-c", *words]
        return run(*command, env=environment(self.home / "flwr"), cwd=self.home, timeout=600)

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text()

    def until(self, what: str, condition: Callable[[], bool], within: float = 120.0) -> None:
        ends = time.monotonic() + within
        while not condition():
            assert time.monotonic() < ends, f"{what}: not within {within} s"
            time.sleep(0.3)

    def kill(self, name: str, words: str) -> bool:
        """Kill -9 a process that was started, directly or not, by one of ours; whether there was one."""
        for child in psutil.Process(self.processes[name].pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if re.search(words, " ".join(child.cmdline())):
                    child.send_signal(signal.SIGKILL)
                    return True
        return False

    @property
    def results(self) -> Path:
        return self.home / "results" / "run"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=40)
    except subprocess.TimeoutExpired:
        process.kill()


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    with contextlib.ExitStack() as stack:
        made = Consortium(tmp_path, stack)
        yield made
        for log in sorted(tmp_path.glob("*.log")):
            print(f"--- {log.name} ---\n{log.read_text()[-3000:]}")


def test_nothing_that_tells_of_a_model_leaves_a_site(consortium: Consortium) -> None:
    consortium.start_server()
    consortium.start_site("a", width=24, ward=0)
    consortium.start_site("b", width=40, ward=1)
    done = consortium.run_profile(2)
    assert done.returncode == 0
    keys = {name: (consortium.home / name / "state" / "client-key").read_text().strip() for name in ("a", "b")}
    for name, recorder in consortium.recorders.items():
        sent = bytes(recorder.sent)
        assert keys[name].encode() in sent  # what is sent can be found like this
        assert b"num-params" in sent
        assert b"train-loss" in sent
        assert [word for word in SECRETS if word.encode() in sent] == []
        assert str(consortium.home / name).encode() not in sent
    lines = metrics(consortium.results)
    assert [line["round"] for line in lines] == [1, 2]
    assert all(line["failures"] == {} for line in lines)
    assert set(lines[-1]["client-accuracy"]) == set(keys.values())
    # Width 24: 12 * 24 + 24, 24 + 24, 24 * 3 + 3 parameters; and 40.
    clients = (consortium.results / "clients.csv").read_text()
    assert ",K = 435,435," in clients
    assert ",K = 723,723," in clients


@pytest.mark.slow
def test_killed_processes_lose_nothing_but_their_round(consortium: Consortium) -> None:
    """Every kind of process is killed with -9 in the middle of the run, which then goes on to its end."""
    rounds = 10
    consortium.start_server()
    consortium.start_site("a", width=24, ward=0)
    consortium.start_site("b", width=40, ward=1)

    def rounds_done() -> int:
        path = consortium.results / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    killed: list[str] = []

    def kill_one_after_another() -> None:
        for what, name, words in (
            ("trainer", "a", r"client_app\.resident"),
            ("client process", "b", r"flwr-clientapp|flower-clientapp"),
            ("ServerApp", "server", r"flwr-serverapp|flower-serverapp"),
            ("SuperNode", "b", r"flower-supernode"),
            ("SuperLink", "server", r"common\.deploy"),
        ):
            before = rounds_done()
            ends = time.monotonic() + 200
            while rounds_done() <= before and time.monotonic() < ends:
                time.sleep(0.2)
            while not consortium.kill(name, words) and time.monotonic() < ends:
                time.sleep(0.02)
            killed.append(what)

    killer = threading.Thread(target=kill_one_after_another, daemon=True)
    killer.start()
    codes = []
    for _ in range(4):
        done = consortium.run_profile(rounds, resume="latest", deadline=60, min_clients=1)
        codes.append(done.returncode)
        if done.returncode == 0:
            break
        consortium.until("the server is up again", lambda: _answers(consortium.port))
    killer.join(timeout=1)
    assert killed == ["trainer", "client process", "ServerApp", "SuperNode", "SuperLink"]
    assert codes[-1] == 0
    assert 1 in codes
    lines = metrics(consortium.results)
    assert [line["round"] for line in lines] == list(range(1, rounds + 1))
    # The same two clients from the first round to the last, with the embeddings that they had.
    clients = (consortium.results / "clients.csv").read_text().splitlines()
    assert len(clients) == 3
    assert json.loads((consortium.results / "summary.json").read_text())["clients"] == 2


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
