"""The heartbeat of a trainer, as its supervisor sees it: a file that the trainer touches every second."""

import contextlib
import time
from pathlib import Path


class Heartbeat:
    """Tells when `path` has not been touched for `patience` seconds.

    It is watched from its first touch on, so that starting may take long. What counts is time on this process's
    monotonic clock, in which a machine that sleeps does not age, and not the time that the file bears.
    """

    def __init__(self, path: Path, patience: float = 60.0) -> None:
        self.path = path
        self.patience = patience
        self._seen: int | None = None  # when it was touched, in the file system's time
        self._since = 0.0  # when that was seen, on the monotonic clock

    def has_stopped(self) -> bool:
        """Whether there has been no beat for longer than that; to be called often."""
        try:
            touched = self.path.stat().st_mtime_ns
        except OSError:
            self._seen = None
            return False
        if touched != self._seen:
            self._seen, self._since = touched, time.monotonic()
        return time.monotonic() - self._since > self.patience

    def forget(self) -> None:
        """Remove the file of a trainer that has ended."""
        self._seen = None
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
