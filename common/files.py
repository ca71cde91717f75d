"""Writing files whole or not at all, in one way, so that a crash or a full disk leaves what was there before."""

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO


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
    those of the file that is replaced, or the usual ones. Raises OSError when it cannot be written.
    """
    # A name of its own: two processes may write one file, and a signal's handler what it interrupted the writing of.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    if mode is None and path.exists():
        mode = path.stat().st_mode & 0o777
    try:
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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):
            # What PyTorch's writer raises on a full disk instead of the system's error.
            raise OSError(f"{path} could not be written: {error}") from error
        raise
    sync_folder(path.parent)


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
