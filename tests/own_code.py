"""A researcher's own data, models, loss and count, as the settings of a simulation name them: `own_code:visits`."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

CLASSES = 3
OWNERS = ("adams", "brown", "clark", "davis")

GIVEN: object = None  # what `given` returns; tests set it


def visits():
    """Of each owner ten samples: six numbers and a code, by name, and one of three classes. Drawn, but seeded."""
    numbers = torch.randn(40, 6)
    targets = (numbers[:, 0] > 0.4).long() + (numbers[:, 0] > -0.4).long()
    return {
        "inputs": {"numbers": numbers, "code": torch.randint(0, 7, (40,))},
        "targets": targets,
        "owners": [OWNERS[sample % 4] for sample in range(40)],
    }


def measurements():
    """The same numbers with targets that are no classes."""
    drawn = visits()
    return drawn | {"inputs": drawn["inputs"]["numbers"], "targets": drawn["inputs"]["numbers"].sum(1)}


def as_dataset():
    """The same samples as a torch Dataset, which says its targets."""
    drawn = visits()
    numbers, targets = drawn["inputs"]["numbers"], drawn["targets"]
    return {"dataset": TensorDataset(numbers, targets), "targets": targets, "owners": drawn["owners"]}


def images(dtype=torch.uint8):
    """80 images of 3 x 8 x 8 of four classes."""
    labels = torch.arange(80) % 4
    patterns = torch.randint(0, 256, (4, 3, 8, 8))
    pixels = (0.6 * patterns[labels] + 0.4 * torch.randint(0, 256, (80, 3, 8, 8))).to(torch.uint8)
    return {"inputs": pixels if dtype == torch.uint8 else pixels.to(dtype) / 255, "targets": labels}


def float_images():
    return images(torch.float32)


def files(data_dir):
    """What a file in the data folder holds."""
    return torch.load(data_dir / "mine.pt", weights_only=True)


def three_sources():
    """Numbers from each of the global generators."""
    drawn = [float(torch.rand(1)), random.random(), float(np.random.rand())]  # noqa: NPY002
    return {"inputs": torch.tensor([drawn]), "targets": torch.zeros(1)}


def given():
    return GIVEN


class Visit(nn.Module):
    """Numbers and an embedded code; called with the shapes by name."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        assert input_shape == {"numbers": (6,), "code": ()}
        self.embedding = nn.Embedding(7, 2)
        self.body = nn.Sequential(nn.Linear(input_shape["numbers"][0] + 2, 8), nn.ReLU())
        self.head = nn.Linear(8, num_classes)

    def forward(self, numbers, code):
        return self.head(self.body(torch.cat([numbers, self.embedding(code)], dim=1)))


def linear(input_shape, num_classes):
    """One output where there are no classes."""
    return nn.Linear(*input_shape, num_classes or 1)


class Deep(nn.Sequential):
    """Another architecture for the same numbers."""

    def __init__(self, input_shape, num_classes):
        super().__init__(nn.Linear(*input_shape, 4), nn.ReLU(), nn.Linear(4, num_classes))


class Viewing(nn.Module):
    """A network for images with `view`, which needs them contiguous, as most people's code does."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.convolution = nn.Conv2d(image_shape[0], 4, 3, padding=1)
        self.head = nn.Linear(4 * image_shape[1] * image_shape[2], num_classes)

    def forward(self, images):
        return self.head(self.convolution(images).relu().view(len(images), -1))


def takes_shape(input_shape):
    return nn.Linear(1, 1)


def frozen(input_shape, num_classes):
    return linear(input_shape, num_classes).requires_grad_(False)


def not_a_model(input_shape, num_classes):
    return {"layers": num_classes}


def raises(input_shape, num_classes):
    raise ZeroDivisionError("no layers")


def squared(outputs, targets):
    return (outputs.flatten() - targets).square().mean()


def near(outputs, targets):
    return ((outputs.flatten() - targets).abs() < 0.5).sum()


def smoothed(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.3)


def never(outputs, targets):
    return 0
