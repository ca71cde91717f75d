"""Hospital C's model: a perceptron with layer norm."""

from torch import nn


def build(hidden: int) -> nn.Module:
    """For 1 x 28 x 28 images of ten classes."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, hidden),
        nn.LayerNorm(hidden),
        nn.GELU(),
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
        nn.GELU(),
        nn.Linear(hidden, 10),
    )
