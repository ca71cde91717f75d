"""Writing files so that a crash or a full disk leaves what was there before."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch


def write_tensors(path: Path, content: object) -> None:
    """Write tensors, numbers, text and containers of them with `torch.save`, whole or not at all.

    Raises OSError when it cannot be written.
    """
    _write(path, lambda file: torch.save(content, file))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes, whole or not at all; they are on the disk when this returns. Raises OSError."""
    _write(path, lambda file: file.write(content))


def _write(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # On a full disk PyTorch's writer raises a RuntimeError of its own instead of the system's error.
        temporary.unlink(missing_ok=True)
        raise error if isinstance(error, OSError) else OSError(f"{path} could not be written: {error}") from error
    os.replace(temporary, path)
