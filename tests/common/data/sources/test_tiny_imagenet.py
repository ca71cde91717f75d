"""Tiny-ImageNet: resized, grey images converted, and what is missing named."""

import io

import numpy as np
import pytest
import torch
from image_files import encode
from PIL import Image

from common.errors import UserError


def write_tiny_imagenet(folder, rng, num_classes=200):
    wnids = [f"n{90_000_000 - label:08d}" for label in range(num_classes)]  # not in sorted order
    small = encode(np.zeros((64, 64, 3), dtype=np.uint8), "JPEG")
    for wnid in wnids:
        images_dir = folder / "train" / wnid / "images"
        images_dir.mkdir(parents=True)
        (images_dir / f"{wnid}_0.JPEG").write_bytes(small)
        (images_dir.parent / f"{wnid}_boxes.txt").write_text("")
    (folder / "wnids.txt").write_text("\n".join(wnids) + "\n")
    return wnids


def test_tiny_imagenet_resizes_and_converts_grey_images(tmp_path, open_at, rng):
    folder = tmp_path / "tiny-imagenet-200"
    wnids = write_tiny_imagenet(folder, rng)
    (folder / "words.txt").write_text(f"{wnids[1]}\tgoldfish, Carassius auratus\nn00000001\tentity\n")
    grey = encode(rng.integers(0, 256, (64, 64), dtype=np.uint8), "JPEG")
    (folder / "train" / wnids[1] / "images" / f"{wnids[1]}_1.JPEG").write_bytes(grey)
    data = open_at("tiny-imagenet", tmp_path)
    assert data.labels.tolist() == [0, 1, 1, *range(2, 200)]
    assert data.class_names[:2] == (wnids[0], "goldfish")
    images = data.read_images(torch.tensor([2, 0]))
    assert images.shape == (2, 3, 32, 32)
    expected = np.asarray(Image.open(io.BytesIO(grey)).resize((32, 32), Image.Resampling.BILINEAR))
    for channel in range(3):
        assert torch.equal(images[0, channel], torch.from_numpy(expected.copy()))
    assert images[1].sum() == 0
    limited = open_at("tiny-imagenet", folder).limited(1, seed=1)
    assert torch.equal(limited.labels, torch.arange(200))
    assert limited.read_images(torch.tensor([199])).shape == (1, 3, 32, 32)

    damaged = folder / "train" / wnids[0] / "images" / f"{wnids[0]}_0.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{damaged.name}: the image cannot be decoded"):
        open_at("tiny-imagenet", tmp_path).read_images(torch.tensor([0]))
    damaged.unlink()
    with pytest.raises(UserError, match=f"{wnids[0]}/images holds no .JPEG files"):
        open_at("tiny-imagenet", tmp_path)


def test_missing_or_cut_tiny_imagenet(tmp_path, open_at, rng):
    with pytest.raises(
        UserError, match=r"tiny-imagenet-200; unpack http://cs231n\.stanford\.edu/tiny-imagenet-200\.zip"
    ):
        open_at("tiny-imagenet", tmp_path)
    write_tiny_imagenet(tmp_path, rng, num_classes=3)
    with pytest.raises(UserError, match=r"wnids\.txt lists 3 classes, but Tiny-ImageNet has 200"):
        open_at("tiny-imagenet", tmp_path)
