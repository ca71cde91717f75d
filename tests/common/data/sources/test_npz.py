"""NumPy files: what they may hold, and what is said of one that does not."""

import numpy as np
import pytest
import torch

from common.data.sources.npz import open_npz
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
        assert (data.normalisation, data.owners, data.is_test) == (None, None, None)
        expected = torch.from_numpy(images.reshape(4, 8, 6, -1)).permute(0, 3, 1, 2)[[3, 1]]
        assert torch.equal(data.read_images(torch.tensor([3, 1])), expected)


def owned(owners):
    return {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(2, int), "owners": owners}


def split(values):
    return {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(2, int), "split": values}


@pytest.mark.parametrize(
    ("owners", "names"),
    [
        (np.array(["zoe", "ann", "zoe"]), ("ann", "zoe")),
        (np.array([b"zoe", b"ann", b"zoe"]), ("ann", "zoe")),
        (np.array([30, 4, 30], np.uint8), ("4", "30")),
    ],
)
def test_owners_are_text_or_whole_numbers(tmp_path, open_at, owners, names):
    arrays = {"images": np.zeros((3, 4, 4), np.uint8), "labels": np.zeros(3, int), "owners": owners}
    np.savez(tmp_path / "mine.npz", **arrays)
    data = open_at("npz", tmp_path)
    assert (data.owner_names, data.owners.tolist()) == (names, [1, 0, 1])


@pytest.mark.parametrize(
    "values", [np.array(["test", "train"]), np.array([b"test", b"train"]), np.array([True, False]), np.array([1, 0])]
)
def test_a_split_is_words_or_flags_of_test_samples(tmp_path, open_at, values):
    np.savez(tmp_path / "mine.npz", **split(values))
    assert open_at("npz", tmp_path).is_test.tolist() == [True, False]


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
        (owned(np.array(["a", "b", "c"])), r"owners is <U1 \[3\], but must be one value a sample, \[2\]"),
        (owned(np.zeros((2, 1), int)), r"owners is int64 \[2, 1\]"),
        (owned(np.array([0.5, 1.0])), "owners is float64, but must be text or whole numbers"),
        (owned(np.array(["a", ""])), "owners is empty for sample 1"),
        (owned(np.array([b"a", b"\xff"])), "owners holds text that is not UTF-8"),
        (split(np.array(["train", "valid"])), "split of sample 1 is 'valid', but must be train or test, or 0"),
        (split(np.array([1, 2])), "split of sample 1 is '2', but must be train or test"),
        (split(np.array([0.0, 1.0])), "split is float64, but must be text"),
        (split(np.array(["test"])), r"split is <U4 \[1\], but must be one value a sample, \[2\]"),
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


@pytest.mark.parametrize(("given", "meant"), [("splits", "split"), ("Owner", "owners")])
def test_an_array_whose_name_is_nearly_one_that_is_read_is_refused(tmp_path, given, meant):
    path = tmp_path / "near.npz"
    content = {"images": np.zeros((4, 2, 2), np.uint8), "labels": np.arange(4)}
    np.savez(path, **content, **{given: np.arange(4)})
    with pytest.raises(UserError) as caught:
        open_npz(path, tmp_path)
    assert str(caught.value) == (
        f"{path} holds array {given!r}, which nobody reads: call it {meant!r}, or leave it out."
    )
    np.savez(path, **content, weights=np.arange(4))
    assert len(open_npz(path, tmp_path).labels) == 4  # something else
