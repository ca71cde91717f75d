"""A resident trainer in a thread of the test's own process."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from client_app.resident import serving
from client_app.resident.watchdog import Watchdog


@contextlib.contextmanager
def served_here(path: Path, secret: bytes, answer: serving.Answer) -> Iterator[None]:
    """`serve` at this socket until the end of the block."""
    end, ender = socket.socketpair()
    with end, ender, serving.listening(path) as listener:
        thread = threading.Thread(target=serving.serve, args=(listener, secret, answer, end, Watchdog(600.0)))
        thread.start()
        try:
            yield
        finally:
            ender.send(b"!")
            thread.join(timeout=60)
            assert not thread.is_alive()
