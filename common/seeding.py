"""Generators for named random choices, so that one choice does not depend on how many were made before it; and seeds
for code that draws from the global generators, as a user's own model and data do.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch

_CPU = torch.device("cpu")


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator whose numbers follow from the run's seed and this name alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device = _CPU) -> Iterator[None]:
    """Within it, PyTorch's, NumPy's and Python's generators start at `seed`; after it they are as they were before."""
    cuda = [device] if device.type == "cuda" else []
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (it is theirs that is seeded)
    with torch.random.fork_rng(devices=cuda):
        # `torch.manual_seed` would reach devices that are not restored.
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
