"""Hospital D's model: a convolutional trunk that is generated, and an output layer that stays at the site."""

from torch import Tensor, nn


class Net(nn.Module):
    """Trunk and output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(588, 48), nn.ReLU()
        )
        self.output = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        """From [n, 1, 28, 28] to logits [n, 10]."""
        return self.output(self.trunk(images))


def build() -> nn.Module:
    """For 1 x 28 x 28 images of ten classes."""
    return Net()
