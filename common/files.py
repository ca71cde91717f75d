"""Writing files so that a crash or a full disk leaves what was there before."""

import os
from pathlib import Path

import torch


def write_tensors(path: Path, content: object) -> None:
    """Write tensors, numbers, text and containers of them with `torch.save`, whole or not at all.

    Raises OSError when it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # On a full disk PyTorch's writer raises a RuntimeError of its own instead of the system's error.
        temporary.unlink(missing_ok=True)
        raise error if isinstance(error, OSError) else OSError(f"{path} could not be written: {error}") from error
    os.replace(temporary, path)
