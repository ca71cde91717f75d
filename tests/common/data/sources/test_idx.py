"""Fashion-MNIST and EMNIST: found where they may be, read as published, and damaged files named."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.datasets import open_dataset
from common.data.sources import idx
from common.errors import UserError

PROJECT = Path(__file__).resolve().parents[4]


def write_idx(path, array, type_code=8):
    header = bytes([0, 0, type_code, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_idx_pair(folder, prefix, images, labels, suffix=""):
    write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)


# Fashion-MNIST


def test_committed_fashion_mnist(monkeypatch):
    monkeypatch.setattr(idx, "FASHION_MNIST_PACKAGE_FOLDER", Path("no-such-folder"))
    data = open_dataset("fashion-mnist", None, project_dir=PROJECT)
    assert data.labels.shape == (10_000,)
    assert data.labels.dtype == torch.int64
    assert torch.bincount(data.labels).tolist() == [1000] * 10
    assert data.class_names[9] == "Ankle boot"
    images = data.read_images(torch.arange(10_000))
    assert images.shape == (10_000, *data.image_shape)
    assert images.dtype == torch.uint8
    pixels = images.double() / 255
    assert pixels.mean() == pytest.approx(data.normalisation.mean[0], abs=0.002)
    assert pixels.std() == pytest.approx(data.normalisation.std[0], abs=0.002)


@pytest.mark.parametrize("folder", ["", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_is_padded_and_read_in_the_order_asked(tmp_path, open_at, rng, folder, suffix):
    images = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    write_idx_pair(tmp_path / folder, "train", images, np.array([3, 1, 9, 0, 3]), suffix)
    write_idx_pair(tmp_path / folder, "t10k", images[:1], np.array([0]), suffix)
    data = open_at("fashion-mnist", tmp_path)
    # A plain file is mapped, and its pages are no process's own.
    assert data.source.num_bytes == (5 * 28 * 28 if suffix else 0)
    assert data.labels.tolist() == [3, 1, 9, 0, 3]
    read = data.read_images(torch.tensor([4, 0]))
    assert torch.equal(read[:, 0, 2:30, 2:30], torch.from_numpy(images[[4, 0]]))
    assert read.sum() == images[[4, 0]].sum()
    assert data.read_images(torch.tensor([], dtype=torch.int64)).shape == (0, 1, 32, 32)


def test_fashion_mnist_of_project_then_of_system_package(tmp_path, open_at):
    write_idx_pair(tmp_path / "system", "train", np.zeros((1, 28, 28)), np.array([7]), ".gz")
    assert open_at("fashion-mnist", tmp_path).labels.tolist() == [7]
    write_idx_pair(tmp_path / "project/data/fashion-mnist", "t10k", np.zeros((1, 28, 28)), np.array([2]), ".gz")
    assert open_at("fashion-mnist", tmp_path).labels.tolist() == [2]


def test_missing_fashion_mnist_names_every_place_and_the_package(tmp_path, open_at):
    with pytest.raises(UserError) as caught:
        open_at("fashion-mnist", tmp_path / "mine")
    mine = tmp_path / "mine"
    for place in (
        mine,
        mine / "fashion-mnist",
        mine / "FashionMNIST/raw",
        tmp_path / "project/data",
        tmp_path / "system",
    ):
        assert str(place) in str(caught.value)
    assert "apt install dataset-fashion-mnist" in str(caught.value)


IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / IMAGES).write_bytes(b"no gzip"), f"{IMAGES} cannot be read"),
        (lambda d: (d / IMAGES).write_bytes((d / IMAGES).read_bytes()[:-9]), f"{IMAGES} cannot be read"),
        (lambda d: (d / IMAGES).write_bytes(gzip.compress(b"\0\0")), f"{IMAGES} is no IDX file of bytes in 3"),
        (lambda d: write_idx(d / IMAGES, np.zeros((2, 28))), f"{IMAGES} is no IDX file of bytes in 3"),
        (lambda d: write_idx(d / LABELS, np.zeros(2), type_code=13), f"{LABELS} is no IDX file of bytes in 1"),
        (lambda d: write_idx(d / IMAGES, np.zeros((2, 32, 32))), f"{IMAGES} holds images of 32 x 32, not of 28 x 28"),
        (lambda d: write_idx(d / LABELS, np.zeros(3)), f"{IMAGES} holds 2 images, but .*{LABELS} 3 labels"),
        (lambda d: write_idx(d / LABELS, np.array([0, 10])), f"{LABELS}: sample 1 has label 10, but must have 0..9"),
        (lambda d: (d / LABELS).unlink(), f"{IMAGES} has no labels beside it"),
        (lambda d: write_idx_pair(d, "train", np.zeros((0, 28, 28)), np.zeros(0), ".gz"), "holds no samples"),
    ],
)
def test_damaged_idx_file_is_named(tmp_path, open_at, damage, message):
    write_idx_pair(tmp_path, "train", np.zeros((2, 28, 28)), np.zeros(2), ".gz")
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        open_at("fashion-mnist", tmp_path)


@pytest.mark.parametrize(("length", "message"), [(0, "cannot be read"), (30, "should hold .* but has 14")])
def test_truncated_plain_idx_file_is_named(tmp_path, open_at, length, message):
    write_idx_pair(tmp_path, "train", np.zeros((2, 28, 28)), np.zeros(2))
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=f"train-images-idx3-ubyte {message}"):
        open_at("fashion-mnist", tmp_path)


# EMNIST


def test_emnist_is_upright_and_resized(tmp_path, open_at, rng):
    upright = rng.integers(0, 256, (62, 28, 28), dtype=np.uint8)
    write_idx_pair(tmp_path / "EMNIST/raw", "emnist-byclass-train", upright.transpose(0, 2, 1), np.arange(62))
    data = open_at("emnist-byclass", tmp_path)
    assert data.num_classes == 62
    assert [data.class_names[label] for label in (0, 9, 10, 35, 36, 61)] == list("09AZaz")
    expected = np.asarray(Image.fromarray(upright[17]).resize((32, 32), Image.Resampling.BILINEAR))
    assert torch.equal(data.read_images(torch.tensor([17]))[0, 0], torch.from_numpy(expected.copy()))
    assert data.read_images(torch.tensor([], dtype=torch.int64)).shape == (0, 1, 32, 32)


def test_missing_emnist_gives_the_download_command(tmp_path, open_at):
    with pytest.raises(
        UserError, match=r"looked for emnist-byclass-train.*EMNIST/raw; .*split='byclass', download=True"
    ):
        open_at("emnist-byclass", tmp_path)
