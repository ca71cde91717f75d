"""NumPy files: what they may hold, and what is said of one that does not."""

import numpy as np
import pytest
import torch

from common.errors import UserError


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_npz_file_and_folder(tmp_path, open_at, rng, channels):
    images = rng.integers(0, 256, (4, 8, 6) if channels is None else (4, 8, 6, channels), dtype=np.uint8)
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, images=images, labels=np.array([0, 2, 1, 2], dtype=np.uint8))
    for data_dir in (path, tmp_path):
        data = open_at("npz", data_dir)
        assert data.labels.tolist() == [0, 2, 1, 2]
        assert data.num_classes == 3
        assert data.image_shape == (channels or 1, 8, 6)
        assert (data.mean, data.std) == ((0.5,) * (channels or 1), (0.25,) * (channels or 1))
        expected = torch.from_numpy(images.reshape(4, 8, 6, -1)).permute(0, 3, 1, 2)[[3, 1]]
        assert torch.equal(data.read_images(torch.tensor([3, 1])), expected)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4), np.uint8)}, "holds the arrays images, but must hold images and labels"),
        (
            {"images": np.zeros((2, 4, 4)), "labels": np.zeros(2, int)},
            r"images is float64 \[2, 4, 4\], but must be uint8",
        ),
        ({"images": np.zeros((2, 4), np.uint8), "labels": np.zeros(2, int)}, r"images is uint8 \[2, 4\]"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, r"labels is int64 \[3\], .*\[2\]"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(2)}, "labels is float64"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, -1])}, "sample 1 has label -1"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([-2, -1])}, "label -2, but must have 0 or more"),
        ({"images": np.array([{}, {}]), "labels": np.zeros(2, int)}, "cannot be read as .npz without pickled objects"),
    ],
)
def test_unusable_npz_is_named(tmp_path, open_at, arrays, message):
    np.savez(tmp_path / "mine.npz", **arrays)
    with pytest.raises(UserError, match=message) as caught:
        open_at("npz", tmp_path)
    assert str(tmp_path / "mine.npz") in str(caught.value)


def test_damaged_missing_or_ambiguous_npz(tmp_path, open_at):
    with pytest.raises(UserError, match=rf"looked for a \.npz file in {tmp_path}; set data-dir to"):
        open_at("npz", tmp_path)
    (tmp_path / "a.npz").write_bytes(b"PK damaged")
    with pytest.raises(UserError, match=r"a\.npz cannot be read"):
        open_at("npz", tmp_path)
    (tmp_path / "b.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds 2 \.npz files \(a\.npz, b\.npz\)"):
        open_at("npz", tmp_path)
