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
    """Bytes that can still be allocated on the device: for the CPU, what machine and container (cgroup) leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free: int = psutil.virtual_memory().available
    for folder, limit, used, cache in _CGROUPS:
        try:
            stat = dict(line.split() for line in (_CGROUP / folder / "memory.stat").read_text().splitlines())
            # Cached files count as used there, but make room when memory is needed.
            in_use = int((_CGROUP / folder / used).read_text()) - int(stat.get(cache, 0))
            return max(0, min(free, int((_CGROUP / folder / limit).read_text()) - in_use))
        except (OSError, ValueError):  # not this version, or "max": no limit
            continue
    return free


_CGROUP = Path("/sys/fs/cgroup")
# Where versions 2 and 1 keep the limit, what is used, and the cache in it.
_CGROUPS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
