"""What a run's folder says of the data of a simulation: `data.json` of all of them, `partition.json` by client."""

from typing import Any

from common.data.partition import class_counts
from common.data.simulation import Division


def data_of(division: Division) -> dict[str, Any]:
    """What a model needs to know of the data: size and normalisation of images (pixels in 0..1), and the classes.

    Raises UserError where the normalisation has to be measured and an image cannot be decoded.
    """
    dataset, normalisation = division.dataset, division.normalisation
    return {
        "dataset": dataset.name,
        "image-shape": list(dataset.image_shape),  # channels, height, width
        "num-classes": dataset.num_classes,
        "class-names": list(dataset.class_names),
        "mean": list(normalisation.mean),
        "std": list(normalisation.std),
    }


def partition_of(division: Division, num_clients: int) -> dict[str, Any]:
    """What each of the first so many clients holds: samples of each class, sizes of its parts, and its owner's name."""
    dataset, parts = division.dataset, division.parts[:num_clients]
    counts = class_counts(dataset.labels, parts, dataset.num_classes)
    content: dict[str, Any] = {
        "class-names": list(dataset.class_names),
        "clients": {str(client): row.tolist() for client, row in enumerate(counts)},
        "sizes": {
            str(client): {"train": len(part.train), "validation": len(part.validation), "test": len(part.test)}
            for client, part in enumerate(parts)
        },
    }
    if division.owners:
        content["owners"] = {str(client): name for client, name in enumerate(division.owners[:num_clients])}
    return content
