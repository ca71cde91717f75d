"""Private models: images with batch norm, a table with layer norm, text with an embedding; and what goes with them."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional

CLASSES = 3
NOT_CALLABLE = 7


def vision(width=4, classes=CLASSES):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


class Table(nn.Module):
    def __init__(self, width=8, outputs=CLASSES, dropout=0.0):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, width), nn.LayerNorm(width), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(width, outputs)

    def forward(self, rows):
        return self.head(self.body(rows))


class Text(nn.Module):
    """Embeds tokens, averages those that are not padding; batch norm before the head."""

    def __init__(self, vocabulary=20, width=6):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens, mask):
        weights = mask.unsqueeze(2).float()
        average = (self.embedding(tokens) * weights).sum(1) / weights.sum(1).clamp(min=1)
        return self.head(self.norm(average))


class Tied(nn.Module):
    """Two names for one parameter."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.head = nn.Linear(5, CLASSES)

    def forward(self, rows):
        return self.head(self.second(self.first(rows)))


class ThreeSources(nn.Module):
    """Initial values from each of the global generators."""

    def __init__(self):
        super().__init__()
        drawn = [float(torch.rand(1)), random.random(), float(np.random.rand())]  # noqa: NPY002
        self.weight = nn.Parameter(torch.tensor(drawn))

    def forward(self, rows):
        return rows[:, :3] * self.weight


def smoothed(outputs, targets, smoothing=0.0):
    return functional.cross_entropy(outputs, targets, label_smoothing=smoothing)


def squared(outputs, targets):
    return functional.mse_loss(outputs.flatten(), targets)


def near(outputs, targets):
    return ((outputs.flatten() - targets).abs() < 0.5).sum()


def share(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean() * 0.9 + 0.05


# Mistakes


def raises():
    raise ZeroDivisionError("no layers")


def leaves():
    raise SystemExit(3)


def no_parameters():
    return nn.ReLU()


def not_a_model():
    return {"layers": 3}


def lazy():
    return nn.Sequential(nn.LazyLinear(3))


def of_type(dtype):
    model = nn.Linear(5, CLASSES)
    values = torch.zeros(2, dtype=getattr(torch, dtype))
    model.extra = nn.Parameter(values, requires_grad=values.is_complex())
    return model


def partly_frozen():
    model = Table()
    model.body.requires_grad_(False)
    return model


class Pair(Table):
    def forward(self, rows):
        return super().forward(rows), rows


def detached():
    class Detached(Table):
        def forward(self, rows):
            return super().forward(rows).detach()

    return Detached()


def closure():
    return squared


def mean_of_each(outputs, targets):
    return functional.cross_entropy(outputs, targets, reduction="none")


class Chance(Table):
    """Draws at random when it is tested, too."""

    def forward(self, rows):
        return super().forward(rows + torch.rand_like(rows))


class Branching(Table):
    """Looks at its inputs before it decides what to do."""

    def forward(self, rows):
        outputs = super().forward(rows)
        return outputs if bool(outputs.sum() > 0) else -outputs
