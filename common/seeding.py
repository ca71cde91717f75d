"""Generators for named random choices, so that one choice does not depend on how many were made before it."""

import hashlib

import torch


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator whose numbers follow from the run's seed and this name alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
