"""Keeping a command of a deployment running: restarts after growing delays, and why each end came."""

import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping

from common.text import plain
from mh_pfedhn.processes import say

_ENDS_WITHIN = 20.0  # seconds
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 30.0  # before a child is started again
_STEADY = 60.0  # a child that has run for so long is started again without the delays of earlier failures
_FLOWER_EXIT = re.compile(r"Exit Code: (\d+)$")
_REFUSED = "[code: 2004]"  # how Flower's SuperLink refuses a SuperNode


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

    def kill(self) -> None:
        """Kill the group of one that is stuck; `keep_running` then starts it again."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)

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
                shown = plain(line).rstrip()
                if shown:
                    self.lines.append(shown)
                    print(f"[{self.name}] {shown}", flush=True)

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
