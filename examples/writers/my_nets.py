"""A vision transformer that learns from a few drawings."""

from math import ceil

import torch
from torch import Tensor, nn


class ViT(nn.Module):
    """Convolutions make a token of every 8 x 8 pixels; two transformer layers; a linear layer on the tokens' mean."""

    def __init__(self, channels: int, num_tokens: int, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, width, 3, stride=2, padding=1), nn.ReLU()),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
        )
        self.positions = nn.Parameter(0.02 * torch.randn(num_tokens, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [n, C, H, W] to logits [n, classes]."""
        tokens = self.stem(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.layers(tokens).mean(dim=1))


def vit(input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """What `models` in run.py names."""
    channels, height, width = input_shape
    return ViT(channels, ceil(height / 8) * ceil(width / 8), num_classes)
