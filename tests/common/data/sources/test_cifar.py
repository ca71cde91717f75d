"""CIFAR-10 and CIFAR-100: the training files alone, and a damaged file named."""

import hashlib
import pickle

import numpy as np
import pytest
import torch

from common.data.datasets import DATASETS
from common.data.torchvision_shim import import_torchvision
from common.errors import UserError


def write_cifar(root, class_name, monkeypatch, rng, per_file=4):
    """Write CIFAR's pickled batches, and make torchvision expect their check sums."""
    cifar = getattr(import_torchvision().datasets, class_name)
    names = [f"name-{label}" for label in range(100)][: DATASETS[class_name.lower()].num_classes]
    label_key = "labels" if class_name == "CIFAR10" else "fine_labels"
    folder = root / cifar.base_folder
    folder.mkdir(parents=True)
    written = {}

    def write(file_name, content):
        data = pickle.dumps(content)
        (folder / file_name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    for attribute in ("train_list", "test_list"):
        sums = []
        for file_name, _ in getattr(cifar, attribute):
            pixels = rng.integers(0, 256, (per_file, 3 * 32 * 32), dtype=np.uint8)
            labels = rng.integers(0, len(names), per_file).tolist()
            sums.append([file_name, write(file_name, {"data": pixels, label_key: labels})])
            written[file_name] = (pixels.reshape(-1, 3, 32, 32), labels)
        monkeypatch.setattr(cifar, attribute, sums)
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": write(cifar.meta["filename"], {cifar.meta["key"]: names})})
    return folder, written


@pytest.mark.parametrize(
    ("class_name", "train_files"),
    [("CIFAR10", [f"data_batch_{number}" for number in range(1, 6)]), ("CIFAR100", ["train"])],
)
def test_cifar_reads_the_training_files_alone(tmp_path, open_at, monkeypatch, rng, class_name, train_files):
    _, written = write_cifar(tmp_path, class_name, monkeypatch, rng)
    data = open_at(class_name.lower(), tmp_path)
    assert data.labels.tolist() == [label for name in train_files for label in written[name][1]]
    assert data.class_names[3] == "name-3"
    pixels = np.concatenate([written[name][0] for name in train_files])
    rows = torch.tensor([len(pixels) - 1, 0, 2])
    assert torch.equal(data.read_images(rows), torch.from_numpy(pixels[rows.numpy()]))
    assert data.image_shape == DATASETS[class_name.lower()].image_shape == (3, 32, 32)
    assert len(data.normalisation.mean) == len(data.normalisation.std) == 3


def test_missing_cifar_gives_the_download_command(tmp_path, open_at):
    with pytest.raises(UserError, match=rf"cifar-100-python in {tmp_path}; .*CIFAR100\('{tmp_path}', download=True\)"):
        open_at("cifar100", tmp_path)
    with pytest.raises(UserError, match=r"no place, as data-dir is not set; .*CIFAR10\('DATA-DIR'"):
        open_at("cifar10", None)


@pytest.mark.parametrize("file_name", ["data_batch_2", "batches.meta"])
def test_damaged_cifar_file_is_named(tmp_path, open_at, monkeypatch, rng, file_name):
    folder, _ = write_cifar(tmp_path, "CIFAR10", monkeypatch, rng)
    (folder / file_name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{file_name} is damaged: remove {folder}"):
        open_at("cifar10", tmp_path)
    (folder / file_name).unlink()
    with pytest.raises(UserError, match=f"{file_name} is missing: remove {folder}"):
        open_at("cifar10", tmp_path)
