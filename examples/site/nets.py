"""The private model: a small network for tables. The server learns how many parameters it has, and no more of it."""

import torch
from torch import Tensor, nn


class Risk(nn.Module):
    """Two hidden layers with layer norm; one output a class."""

    def __init__(self, features: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(features, width),
            nn.LayerNorm(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows [b, features] to logits [b, classes]."""
        logits: Tensor = self.head(self.body(rows))
        return logits


def build(features: int = 16, width: int = 32, num_classes: int = 3) -> nn.Module:
    """What `model` in site.yaml names. It draws its initialisation from the global generator, which is seeded."""
    return Risk(features, width, num_classes)


def loss(outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """What `loss` in site.yaml names: cross-entropy with smoothed labels."""
    return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=smoothing)
