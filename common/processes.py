"""Starting Flower's own processes, keeping them running, and ending them by their process ids."""

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.errors import UserError

# glibc hands large blocks back to the kernel as soon as they are free, and the next step then faults them in again: a
# third of a server step for 50 LeNet clients, a fifth of a client's test. The processes of a simulation keep them.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}

# Flower asks nothing of the internet, and installs nothing: everything is in this environment already.
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}

_STARTS_WITHIN = 60.0  # seconds
_ENDS_WITHIN = 20.0
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 30.0  # before a child is started again
_STEADY = 60.0  # a child that has run for so long is started again without the delays of earlier failures
_COLOUR = re.compile(r"\x1b\[\d+m")
_FLOWER_EXIT = re.compile(r"Exit Code: (\d+)$")
_REFUSED = "[code: 2004]"  # how Flower's SuperLink refuses a SuperNode


def tool(name: str) -> str:
    """A command of the environment that this process runs in, whether or not it is activated."""
    return str(Path(sys.executable).parent / name)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: list[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, its output in a file; terminated at the end, killed if it does not listen."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_healthy(address: str, ca: Path | None = None) -> bool:
    """Whether a SuperLink answers at `host:port`; over TLS if the authority of its certificate is given.

    Raises UserError when the certificate is of another authority, or for another host.
    """
    scheme, context = ("https", ssl.create_default_context(cafile=ca)) if ca else ("http", None)
    try:
        urllib.request.urlopen(f"{scheme}://{address}/health", timeout=2, context=context).close()
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            message = error.reason.verify_message.rstrip(".")
            raise UserError(f"the certificate of the server at {address} does not go with {ca}: {message}.") from error
        return False
    except (ConnectionError, TimeoutError):
        return False
    return True


def wait_until_healthy(superlink: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when a SuperLink answers on its port. Raises UserError with the end of its log when it does not."""
    ends = time.monotonic() + _STARTS_WITHIN
    while time.monotonic() < ends and superlink.poll() is None:
        if is_healthy(f"127.0.0.1:{port}"):
            return
        time.sleep(0.1)
    raise UserError(f"Flower's SuperLink did not start on port {port}; its log ends: {log.read_text()[-2000:]}")


def say(text: str) -> None:
    """A line of a long-running command's own log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


@contextlib.contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, instead of what they do otherwise."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Child:
    """A command that is kept running. It has a process group of its own, so that its children end with it.

    Its output is passed on line by line. When it ends it is started again after a delay that doubles from 1 s to 30 s.
    """

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self.command = command
        self.lines: deque[str] = deque(maxlen=20)  # the last ones that it wrote
        self.lasted = 0.0  # seconds between its last start and its end
        self.reason = ""  # of its last end
        self._environment = {**environment, "PYTHONUNBUFFERED": "1"}
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread()
        self._started = self._due = 0.0  # on the monotonic clock
        self._delay = _FIRST_DELAY

    @property
    def running(self) -> bool:
        """Whether it has been started and its end was not yet noticed."""
        return self._process is not None

    def keep_running(self) -> bool:
        """Start the command if that is due. True when it has ended since the last call. To be called often."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._due:
                self._start()
            return False
        if not _ended(self._process):
            return False
        self.lasted = now - self._started
        self.reason = self._end_group()
        if self.lasted >= _STEADY:
            self._delay = _FIRST_DELAY
        say(f"{self.name} ended after {self.lasted:.0f} s: {self.reason}. It starts again in {self._delay:.0f} s.")
        self._due = time.monotonic() + self._delay
        self._delay = min(2 * self._delay, _LONGEST_DELAY)
        return True

    def stop(self) -> None:
        """Terminate the group; kill what does not listen."""
        if self._process is None:
            return
        os.killpg(self._process.pid, signal.SIGTERM)
        ends = time.monotonic() + _ENDS_WITHIN
        while time.monotonic() < ends and not _ended(self._process):
            time.sleep(0.05)
        self._end_group()

    def _start(self) -> None:
        self.lines.clear()
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            self.command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._pass_on, args=(self._process,), daemon=True)
        self._reader.start()

    def _pass_on(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                plain = _COLOUR.sub("", line).rstrip()
                if plain:
                    self.lines.append(plain)
                    print(f"[{self.name}] {plain}", flush=True)

    def _end_group(self) -> str:
        """Kill what is left of the group, and say how its first process ended."""
        assert self._process is not None
        # The first process is not reaped before this, so that nobody else can have got its id.
        os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self._reader.join(timeout=1)
        self._process = None
        return _reason(status, list(self.lines))


def _ended(process: subprocess.Popen[str]) -> bool:
    """Whether it has ended; it keeps its id until it is waited for."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _reason(status: int, lines: list[str]) -> str:
    """Why a process ended, in one line. Flower's own exit codes are only in what it writes."""
    if any(_REFUSED in line for line in lines):
        return "the server refused it, since its key is not registered or was in use less than a minute ago"
    for place, line in enumerate(lines):
        if found := _FLOWER_EXIT.search(line):
            explained = " ".join(text.strip() for text in lines[place + 1 : place + 3])
            return f"Flower's exit code {found[1]}, {explained.rstrip('.')}"
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit status {status}" + (f", {lines[-1]}" if lines and status else "")
