"""Which device to compute on, and how much fits there."""

from pathlib import Path

import psutil
import torch

from common.errors import UserError


def resolve_device(name: str) -> torch.device:
    """Turn the key `device` into a device: `auto` is CUDA where present. Raises UserError for missing CUDA."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda', but PyTorch finds no CUDA device on this machine; use 'auto' or 'cpu'.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device: for the CPU, what machine and container (cgroup v2) leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free: int = psutil.virtual_memory().available
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        # Cached files count as used there, but make room when memory is needed.
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, min(free, limit - used + int(stat.get("inactive_file", 0))))
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return free


_CGROUP = Path("/sys/fs/cgroup")
