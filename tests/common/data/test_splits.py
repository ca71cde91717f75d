"""How a client's samples are split, down to the smallest client."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.data.splits import Fractions

FRACTIONS = st.builds(Fractions, st.floats(0.01, 0.9), st.one_of(st.just(0.0), st.floats(0.01, 0.9)))


@given(FRACTIONS, st.integers(0, 200))
def test_every_sample_is_in_one_part_and_no_part_is_empty(fractions, more):
    rows = 3 * np.arange(fractions.parts + more)
    part = fractions.split(rows)
    assert torch.cat([part.test, part.validation, part.train]).tolist() == rows.tolist()
    assert len(part.train) >= 1
    assert len(part.test) >= 1
    assert (len(part.validation) >= 1) == (fractions.validation > 0)


@pytest.mark.parametrize(
    ("count", "fractions", "sizes"),
    [
        (2, Fractions(), (1, 0, 1)),
        (3, Fractions(), (2, 0, 1)),
        (103, Fractions(), (78, 0, 25)),
        (100, Fractions(0.29), (71, 0, 29)),  # 0.29 * 100 is 28.999999999999996
        (2, Fractions(0.9), (1, 0, 1)),
        (10, Fractions(0.9), (1, 0, 9)),
        (10, Fractions(0.9, 0.1), (1, 1, 8)),
        (3, Fractions(0.25, 0.9), (1, 1, 1)),
        (100, Fractions(0.2, 0.1), (72, 8, 20)),
    ],
)
def test_sizes_by_hand(count, fractions, sizes):
    part = fractions.split(np.arange(count))
    assert (len(part.train), len(part.validation), len(part.test)) == sizes


def test_a_given_split_is_kept_and_validation_comes_from_its_training_samples():
    part = Fractions(0.5, 0.25).split_training(np.arange(8), np.array([9, 8]))
    assert part.test.tolist() == [9, 8]
    assert (len(part.train), part.validation.tolist()) == (6, [0, 1])
