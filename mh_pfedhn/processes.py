"""Starting Flower's own processes and ending them by their process ids, and the environment that they get."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

from common.errors import UserError

# glibc hands large blocks back to the kernel as soon as they are free, and the next step then faults them in again: a
# third of a server step for 50 LeNet clients, a fifth of a client's test. The processes of a simulation keep them.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}

# Flower and Ray ask nothing of the internet, and install nothing: everything is in this environment already.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray announces this change of a default at every start.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_STARTS_WITHIN = 60.0  # seconds
_ENDS_WITHIN = 20.0


def tool(name: str) -> str:
    """A command of the environment that this process runs in, whether or not it is activated."""
    return str(Path(sys.executable).parent / name)


def flower_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Quiet; Flower's processes start each other by name, so this environment's commands come first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    return {**environment, **QUIET, "PATH": path}


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def check_port(option: str, host: str, port: int) -> None:
    """Raise UserError, which names the command's option, when nothing could listen there."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except (OSError, OverflowError) as error:
        raise UserError(f"{option} {port} on {host} cannot be listened on: {error}.") from error


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
def handling(handler: Callable[[int, FrameType | None], object], *signals: signal.Signals) -> Iterator[None]:
    """Handle these signals so until the end of the block. For a process's main thread."""
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextlib.contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, instead of what they do otherwise."""
    stop = threading.Event()
    with handling(lambda *_: stop.set(), signal.SIGTERM, signal.SIGINT):
        yield stop
