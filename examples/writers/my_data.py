"""Characters, each by one of many writers: LEAF's FEMNIST, or made up where there is none."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw


def load(data_dir: Path) -> dict[str, object]:
    """What `dataset` in run.py names: all drawings, black on white, what they show, and who drew each."""
    files = sorted(data_dir.glob("all_data_*.json"))
    drawings, labels, writers = read_leaf(files) if files else draw()
    # uint8 images [n, C, H, W] are normalised by the mean and deviation of what the clients train on.
    return {
        "inputs": torch.from_numpy(drawings).view(-1, 1, 28, 28),
        "targets": torch.from_numpy(labels),
        "owners": writers,
    }


def read_leaf(files: list[Path]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read LEAF's files: of each user a list x of drawings, 784 numbers from 0 to 1 each, and a list y of classes."""
    drawings, labels, writers = [], [], []
    for file in files:
        for user, data in sorted(json.loads(file.read_text())["user_data"].items()):
            drawings.append(np.rint(255 * np.array(data["x"])).astype(np.uint8))
            labels.append(np.array(data["y"]))
            writers += [user] * len(data["y"])
    return np.concatenate(drawings), np.concatenate(labels), writers


# Ten digits as strokes between the corners of a box that is 1 wide and 2 high.
DIGITS = [
    [(0, 0), (1, 0), (1, 2), (0, 2), (0, 0)],
    [(0, 1), (1, 0), (1, 2)],
    [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2)],
    [(0, 0), (1, 0), (0.3, 1), (1, 1), (1, 2), (0, 2)],
    [(0, 0), (0, 1), (1, 1), (1, 0), (1, 2)],
    [(1, 0), (0, 0), (0, 1), (1, 1), (1, 2), (0, 2)],
    [(1, 0), (0, 1), (0, 2), (1, 2), (1, 1), (0, 1)],
    [(0, 0), (1, 0), (0.3, 2)],
    [(1, 1), (0, 1), (0, 0), (1, 0), (1, 2), (0, 2), (0, 1)],
    [(1, 1), (0, 1), (0, 0), (1, 0), (1, 2)],
]


def draw(num_writers: int = 12) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Make writers up, each with 60 to 120 digits in a hand of its own: how large, how slanted, how bold."""
    rng = np.random.default_rng(0)
    drawings, labels, writers = [], [], []
    for writer in range(num_writers):
        size, slant, pen = rng.uniform(5, 9, size=2), rng.uniform(-0.6, 0.6), int(rng.integers(1, 4))
        for label in rng.integers(10, size=rng.integers(60, 121)):
            points = (np.array(DIGITS[label]) - (0.5, 1)) * size + rng.normal(0, 0.7, (len(DIGITS[label]), 2))
            points[:, 0] -= slant * points[:, 1]
            image = Image.new("L", (28, 28), 255)
            places = points + 14 + rng.normal(0, 1, 2)
            ImageDraw.Draw(image).line([tuple(place) for place in places.tolist()], fill=0, width=pen)
            drawings.append(np.array(image))
            labels.append(label)
            writers.append(f"writer-{writer:02}")
    return np.stack(drawings), np.array(labels), writers
