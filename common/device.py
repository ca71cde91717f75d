"""Which device to compute on."""

import torch

from common.errors import UserError


def resolve_device(name: str) -> torch.device:
    """Turn the key `device` into a device: `auto` is CUDA where present. Raises UserError for missing CUDA."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda', but PyTorch finds no CUDA device on this machine; use 'auto' or 'cpu'.")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
