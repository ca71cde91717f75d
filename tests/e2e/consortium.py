"""A consortium of sites with private models: server, sites and runs are started as operators start them."""

import contextlib
import re
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from flower_processes import BIN, environment, run

from mh_pfedhn.processes import free_port

# While there is a file `hold` beside it, the model does not get on with training; tests of it are not held. While there
# is a file `fail`, training raises.
NETS = """
import time
from pathlib import Path

import torch
from torch import nn

HOLD = Path(__file__).with_name("hold")
FAIL = Path(__file__).with_name("fail")

class OncologyBackbone(nn.Module):
    def __init__(self, confidential_width):
        super().__init__()
        self.tumour_encoder = nn.Linear(12, confidential_width)
        self.biomarker_norm = nn.BatchNorm1d(confidential_width)
        self.diagnosis_layer = nn.Linear(confidential_width, 3)

    def forward(self, inputs):
        while self.training and HOLD.exists():
            time.sleep(0.1)
        if self.training and FAIL.exists():
            raise RuntimeError(f"the tumour of a patient in ward 7 does not fit tumour_encoder, see {FAIL}")
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
    """One server, sites behind recorders, all on loopback and in one folder; without TLS, unless sites get keys."""

    def __init__(self, home: Path, stack: contextlib.ExitStack) -> None:
        self.home = home
        self._stack = stack
        self.port, self.command_port = free_port(), free_port()
        self.recorders: dict[str, Recorder] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.certs: Path | None = None

    def start(self, name: str, *words: str | Path, flower_home: str = "flwr") -> None:
        """Start a command of ours in the background; what it writes is added to the log of its name."""
        with (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / "mh-pfedhn"), *map(str, words)],
                cwd=self.home,
                env=environment(self.home / flower_home),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[name] = process
        self._stack.callback(_end, process)

    def make_keys(self, *sites: str) -> None:
        """From now on there is TLS, and each of these sites has a key."""
        self.certs = self.home / "certs"
        words = [word for site in sites for word in ("--site", site)]
        command = [BIN / "mh-pfedhn", "certs", self.certs, "--host", "localhost", *words]
        assert run(*command, env=environment(self.home / "flwr"), cwd=self.home).returncode == 0

    def start_server(self) -> None:
        words = ["--certs", self.certs] if self.certs else ["--insecure", "--host", "127.0.0.1"]
        ports = ["--port", str(self.port), "--command-port", str(self.command_port)]
        self.start("server", "server", "--state", "state", *words, *ports)
        self.until_says("server", "The server is up")

    def start_site(self, name: str, width: int, ward: int, more: str = "") -> None:
        """Set up a site and start it; `more` are further lines of its file."""
        folder = self.home / name
        folder.mkdir()
        (folder / "hidden_nets.py").write_text(NETS)
        (folder / "hidden_data.py").write_text(DATA)
        (folder / "site.yaml").write_text(
            f'model: {{factory: "hidden_nets:build_secretly", args: {{confidential_width: {width}}}}}\n'
            f'data: {{factory: "hidden_data:patients", args: {{ward: {ward}}}}}\n'
            f"state-dir: state\n{more}"
        )
        self.recorders[name] = Recorder(self.port)
        self._stack.callback(self.recorders[name].close)
        self.start_again(name)

    def start_again(self, name: str) -> None:
        """Start a site that is set up, with what it has kept."""
        address = f"localhost:{self.recorders[name].port}"
        words = ["--ca", self.certs / "ca.crt", "--key", self.certs / "sites" / name] if self.certs else ["--insecure"]
        words = ["site", "run", self.home / name / "site.yaml", "--server", address, "--port", str(free_port()), *words]
        # A Flower home of its own, as on a machine of its own: there the app is unpacked.
        self.start(name, *words, flower_home=f"flwr-{name}")

    def until_connected(self, *names: str, times: int = 1) -> None:
        """Wait until the server has seen these sites come for this number of times."""
        for name in names:
            self.until(f"{name} is connected", lambda name=name: self.log(name).count("SuperNode ID: ") >= times)

    def key(self, name: str) -> str:
        """What the server knows a site by."""
        return (self.home / name / "state" / "client-key").read_text().strip()

    def label(self, name: str) -> str:
        """What is shown for a site without a key of its own: the beginning of what the server knows it by."""
        return f"{self.key(name)[:8]}…"

    def hold(self, name: str) -> None:
        """Let a site's training stand still until it is released, also where it is under way."""
        (self.home / name / "hold").touch()

    def release(self, *names: str) -> None:
        for name in names:
            (self.home / name / "hold").unlink(missing_ok=True)

    def run_profile(self, rounds: int, **settings: object) -> subprocess.CompletedProcess[str]:
        """A run, to its end."""
        command = [BIN / "mh-pfedhn", *self._run_words(rounds, settings)]
        return run(*command, env=environment(self.home / "flwr"), cwd=self.home, timeout=600)

    def begin_run(self, rounds: int, **settings: object) -> None:
        """A run in the background; its process and its log have the run's name."""
        name = str(settings.get("run_name", "run"))
        (self.home / f"{name}.log").unlink(missing_ok=True)  # of an earlier attempt
        self.start(name, *self._run_words(rounds, settings))

    def _run_words(self, rounds: int, settings: dict[str, object]) -> list[str | Path]:
        chosen = {"run-name": "run", "num-rounds": rounds, "deadline": 120, "checkpoint-every": 1, "hidden-dim": 16}
        chosen |= {key.replace("_", "-"): value for key, value in settings.items()}
        words = [f"{key}={value}" for key, value in chosen.items()]
        words.append(f"results-dir={self.home / 'results'}")
        return ["run", "consortium", "--superlink", "consortium", "-c", *words]

    def ended(self, name: str, within: float) -> int:
        """Wait for the end of a process; its exit code. Raises TimeoutExpired when it does not end in time."""
        return self.processes[name].wait(timeout=within)

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text()

    def until_says(self, name: str, text: str, within: float = 120.0) -> None:
        """Wait until there is such a text in a log."""
        self.until(f"{name} says {text!r}", lambda: text in self.log(name), within)

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
