"""The private data: a table with three classes, made up from a seed. A real site reads its own files here."""

import torch
from torch import Tensor

Split = tuple[Tensor, Tensor]


def load(samples: int = 600, features: int = 16, test_share: float = 0.2, seed: int = 0) -> tuple[Split, Split]:
    """What `data` in site.yaml names: (train, test), each rows [n, features] float32 and classes [n] int64."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(samples, features, generator=generator)
    directions = torch.randn(features, 3, generator=generator)
    classes = (rows @ directions + 0.5 * torch.randn(samples, 3, generator=generator)).argmax(dim=1)
    num_test = round(test_share * samples)
    return (rows[num_test:], classes[num_test:]), (rows[:num_test], classes[:num_test])
