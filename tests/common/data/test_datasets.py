"""What holds for every data set, whatever its files."""

import numpy as np
import pytest
import torch

from common.data.datasets import DATASETS
from common.errors import UserError


def test_unknown_name_lists_the_known_ones(open_at):
    with pytest.raises(UserError, match=r"'mnist', but must be one of fashion-mnist, cifar10, .*, npz"):
        open_at("mnist", None)


def test_limit_keeps_a_seeded_choice_of_each_class(tmp_path, open_at):
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1)
    labels = np.array([0] * 60 + [1] * 38 + [2] * 2)
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)

    def choose(seed):
        data = open_at("npz", tmp_path).limited(5, seed)
        assert torch.bincount(data.labels).tolist() == [5, 5, 2]
        values = data.read_images(torch.arange(12)).flatten().tolist()
        assert data.labels.tolist() == labels[values].tolist()
        return values

    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert choose(0) == choose(0) != choose(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", DATASETS)
def test_table_is_consistent(name):
    info = DATASETS[name]
    known = [value is not None for value in (info.num_classes, info.image_shape, info.mean, info.std)]
    assert all(known) or not any(known)
    if info.image_shape and info.mean and info.std:
        assert len(info.mean) == len(info.std) == info.image_shape[0]
