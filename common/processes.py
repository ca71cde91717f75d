"""Starting Flower's own processes and ending them by their process ids."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.errors import UserError

# glibc hands large blocks back to the kernel as soon as they are free, and the next step then faults them in again: a
# third of a server step for 50 LeNet clients, a fifth of a client's test. The processes of a simulation keep them.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}

_STARTS_WITHIN = 60.0  # seconds
_ENDS_WITHIN = 20.0


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


def wait_until_healthy(superlink: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when a SuperLink answers on its port. Raises UserError with the end of its log when it does not."""
    ends = time.monotonic() + _STARTS_WITHIN
    while time.monotonic() < ends and superlink.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            return
        time.sleep(0.1)
    raise UserError(f"Flower's SuperLink did not start on port {port}; its log ends: {log.read_text()[-2000:]}")
