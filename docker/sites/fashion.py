"""The demo's data: each site holds some classes of the 10,000 images of Fashion-MNIST that come with the project."""

from pathlib import Path

import torch
from torch import Tensor

from common.data.datasets import open_dataset

Split = tuple[Tensor, Tensor]  # images [n, 1, 28, 28] float32 from -1 to 1, labels [n] int64


def load(classes: list[int], images_per_class: int, folder: str = "/data") -> tuple[Split, Split]:
    """Training and test images of a site's classes, three to one."""
    dataset = open_dataset("fashion-mnist", Path(folder), project_dir=Path(folder)).limited(images_per_class, seed=0)
    chosen = torch.isin(dataset.labels, torch.tensor(classes)).nonzero().flatten()
    # The project's own models take 32 x 32 with a border, the sites' models the images as they are.
    images, labels = dataset.read_images(chosen)[..., 2:-2, 2:-2] / 127.5 - 1, dataset.labels[chosen]
    is_test = torch.arange(len(labels)) % 4 == 3
    return (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])
