"""Mean and standard deviation of the images that are trained on, a channel: published, or measured here."""

from dataclasses import dataclass

import numpy as np
import torch

from common.data.sources.base import ImageSource, Rows
from common.inputs import ImageShape

_MAX_IMAGES = 4000  # that are decoded to measure: with 32 x 32 pixels the mean is then known to about 0.003
_MAX_VALUES = 50_000_000  # bytes that they have together; large images need fewer
_SMALLEST_STD = 1 / 255  # one step of a pixel, for a channel in which all pixels are alike


@dataclass(frozen=True)
class Normalisation:
    """What images are normalised by: (pixel - mean) / std, of pixels in 0..1."""

    mean: tuple[float, ...]  # [C]
    std: tuple[float, ...]  # [C], above 0


def measure(source: ImageSource, image_shape: ImageShape, rows: Rows) -> Normalisation:
    """Measure mean and standard deviation of each channel over these images, or over a fixed choice of many.

    The result is exact for the images that are chosen, and the same in every process and for every order of `rows`.

    Args:
        source: of the images, uint8.
        image_shape: of one image.
        rows: [k] int64, at least one, each once.

    Raises UserError for an image that cannot be decoded.
    """
    most = max(_MAX_VALUES // max(int(np.prod(image_shape)), 1), 1)
    count = min(len(rows), _MAX_IMAGES, most)
    chosen = np.random.default_rng(0).choice(np.sort(rows), size=count, replace=False)
    images = source.once().read(np.sort(chosen))  # [k, C, H, W]
    means, stds = [], []
    for channel in range(image_shape[0]):
        # How often each of the 256 values is there: whole numbers, whose sums have no order.
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).tolist()
        number = sum(counts)
        total = sum(value * times for value, times in enumerate(counts))
        squares = sum(value * value * times for value, times in enumerate(counts))
        means.append(total / number / 255)
        stds.append(max(((number * squares - total * total) / number**2) ** 0.5 / 255, _SMALLEST_STD))
    return Normalisation(tuple(means), tuple(stds))
