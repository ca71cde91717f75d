"""A folder of a command's own for sockets, secrets and settings; what a killed command left is cleared by the next."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mh_pfedhn.processes import say

# In the environment of all processes that a command starts: its folder, or a server's state folder, by which they are
# found when the command was killed.
OWNER = "MH_PFEDHN_FOLDER"
_PREFIX = "mh-pfedhn-"
_LOCK = "lock"
_ENDS_WITHIN = 20.0  # seconds


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder below the system's temporary one, for this user's eyes, until the end of the block.

    The folders and processes of commands that were killed are cleared away before.
    """
    _clear()
    # Hidden until it is locked, so that no other command takes it for one that was left.
    hidden = Path(tempfile.mkdtemp(prefix="." + _PREFIX))  # with mode 0700
    with FileLock(hidden / _LOCK, timeout=0):
        folder = hidden.rename(hidden.with_name(hidden.name.removeprefix(".")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _clear() -> None:
    for folder in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        with contextlib.suppress(OSError, Timeout):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid() or not (folder / _LOCK).is_file():
                continue
            # The lock of a command that still runs cannot be had.
            with FileLock(folder / _LOCK, timeout=0):
                ended = end_processes_of(folder)
                shutil.rmtree(folder, ignore_errors=True)
            left = f"the folder {folder} and {ended} processes" if ended else f"the folder {folder}"
            say(f"Cleared what a killed command had left: {left}.")


def end_processes_of(folder: Path) -> int:
    """Terminate what the killed command of this folder had started, kill what does not listen; how many that were."""
    import psutil

    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(OWNER) == str(folder):
                process.terminate()
                left.append(process)
    for process in psutil.wait_procs(left, timeout=_ENDS_WITHIN)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return len(left)
