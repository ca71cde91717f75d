"""Writing files whole or not at all, in one way, so that a crash or a full disk leaves what was there before."""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


class WriteError(OSError):
    """A file or a folder that could not be written: a sentence without its stop; `errno` is None where unknown."""

    def __init__(self, path: Path, cause: BaseException) -> None:
        system = _system_error(cause)
        why = (system.strerror if system else "") or str(system or cause)
        super().__init__(system.errno if system else None, why, str(path))

    def __str__(self) -> str:
        return f"{self.filename} could not be written: {self.strerror}"


def write_tensors(path: Path, content: object) -> None:
    """Write tensors, numbers, text and containers of them with `torch.save`; see `write`."""
    import torch  # here, since the commands that write no tensors start without it

    write(path, lambda file: torch.save(content, file))


def write_bytes(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write bytes; see `write`."""
    write(path, lambda file: file.write(content), mode)


def write_text(path: Path, content: str, mode: int | None = None) -> None:
    """Write text as UTF-8; see `write`."""
    write_bytes(path, content.encode(), mode)


def write(path: Path, fill: Callable[[IO[bytes]], object], mode: int | None = None) -> None:
    """Have `fill` write a file, whole or not at all: a reader finds the old content or the new, and so does a crash.

    The content and its name are on the disk when this returns. `mode` holds the permission bits; without it they are
    those of the file that is replaced, or the usual ones. Raises WriteError when it cannot be written.
    """
    # A name of its own: two processes may write one file, and a signal's handler what it interrupted the writing of.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        if mode is None and path.exists():
            mode = path.stat().st_mode & 0o777
        # Nobody else can read it before it has its bits.
        with open(
            temporary, "wb", opener=lambda name, flags: os.open(name, flags, 0o666 if mode is None else 0o600)
        ) as file:
            fill(file)
            file.flush()
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | RuntimeError):  # the latter is what PyTorch makes of the system's error
            raise WriteError(path, error) from error
        raise


def append_bytes(path: Path, content: bytes) -> None:
    """Append to a file, which is made if it is missing. Raises OSError, after what was written of it is taken back."""
    before = path.stat().st_size if path.exists() else 0
    try:
        # A buffer that takes it whole makes it one write, so that neither a reader nor a crash finds half of it.
        with path.open("ab", buffering=max(1 << 20, len(content) + 1)) as file:
            file.write(content)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, before)
        raise


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it is there. Raises WriteError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(path, error) from error


def check_writable(folder: Path) -> None:
    """Write a file in a folder, an absolute path, that is made if it is missing; nothing of either is left behind.

    Raises WriteError where that is impossible.
    """
    made = []
    try:
        for each in reversed((folder, *folder.parents)):
            if not each.exists():
                each.mkdir()
                made.append(each)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        raise WriteError(folder, error) from error
    finally:
        for each in reversed(made):
            with contextlib.suppress(OSError):  # somebody else has put something there
                each.rmdir()


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system knows no links; what had the name is replaced whole.

    Raises OSError.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: without this a power failure may undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _system_error(error: BaseException | None) -> OSError | None:
    """The error of the system's that led to this one, if any did."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
