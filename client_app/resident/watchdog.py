"""The watchdog of a site's trainer: a thread that ends the process when one request lasts too long.

A trainer answers one request at a time, so one that hangs, in the operator's own code as a rule, would take the site
out of every later round too. Whoever started the trainer starts it again. A process that is stopped, or stuck with
Python's lock held, cannot watch itself: for that the thread touches a file, and its supervisor looks at it.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from common.text import printable

HUNG = 75  # the exit status, EX_TEMPFAIL of sysexits.h

_BEAT = 1.0  # seconds between two looks


class Watchdog:
    """Watches the requests of this process.

    Parameters
    ----------
    limit: seconds that a request may take.
    heartbeat: a file that is touched every second while the process can do so; None: no file.
    """

    def __init__(self, limit: float, heartbeat: Path | None = None) -> None:
        self._limit = limit
        self._heartbeat = heartbeat
        self._request = ""
        self._ends: float | None = None  # on the monotonic clock; None: no request is worked on

    def start(self) -> None:
        """Start the thread, which ends with the process."""
        self._beat()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    @contextlib.contextmanager
    def watching(self, request: str) -> Iterator[None]:
        """Watch the block, in which a request of this name is worked on."""
        self._request, self._ends = request, time.monotonic() + self._limit
        try:
            yield
        finally:
            self._ends = None

    def _run(self) -> None:
        while True:
            time.sleep(_BEAT)
            self._beat()
            ends = self._ends
            if ends is not None and time.monotonic() > ends:
                self._end()

    def _beat(self) -> None:
        if self._heartbeat:
            with contextlib.suppress(OSError):  # a folder that is gone is no reason to stop working
                self._heartbeat.touch()

    def _end(self) -> None:
        faulthandler.dump_traceback(sys.stderr)
        print(
            f"{printable(self._request, 40)} took longer than {self._limit:g} s (request-limit), so the trainer ends; "
            "where it hung is above, the last call first",
            file=sys.stderr,
            flush=True,
        )
        os._exit(HUNG)  # what hangs would not let go of an ordinary exit
