"""Weights of clients in a mean: by their samples up to a share, on cases small enough to work out by hand."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server_app.weights import capped_weights


@pytest.mark.parametrize(
    ("cap", "counts", "weights"),
    [
        (0.5, [10, 20, 30], [10, 20, 30]),  # 30 of 60 is the cap itself
        (0.5, [10, 20, 90], [10, 20, 30]),
        (0.5, [10**7, 30, 10], [40, 30, 10]),
        (0.25, [100, 10, 10, 10, 10, 10], [50 / 3, 10, 10, 10, 10, 10]),  # 50 / 3 of 200 / 3
        (0.25, [100, 60, 10, 10, 10, 10], [20, 20, 10, 10, 10, 10]),
        (0.25, [100, 19, 10, 10, 10, 10], [59 / 3, 19, 10, 10, 10, 10]),  # the second is below the level of the first
        # The cap cannot be held by fewer than 1 / cap clients: then all count the same.
        (0.25, [100, 20, 3], [3, 3, 3]),
        (0.5, [100, 20], [20, 20]),
        (0.1, [7], [7]),
        (1.0, [10**15, 1, 1], [10**15, 1, 1]),
        # Who has no samples does not count, neither as a weight nor as a client.
        (0.5, [10, 0, 0], [10, 0, 0]),
        (0.5, [10, 30, 0], [10, 10, 0]),
        (0.5, [0, 0], [0, 0]),
        (0.5, [], []),
    ],
)
def test_weights_by_hand(cap, counts, weights):
    by_key = dict(zip("abcdef", counts, strict=False))
    assert list(capped_weights(by_key, cap).values()) == weights
    assert list(capped_weights(by_key, cap)) == list(by_key)


def test_weights_that_nobody_cut_are_the_counts_as_whole_numbers():
    weights = capped_weights({"a": 10, "b": 20, "c": 30}, 0.5)
    assert {type(weight) for weight in weights.values()} == {int}


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=12), st.floats(1e-3, 1.0))
def test_no_share_is_above_the_cap_and_the_others_keep_their_proportions(counts, cap):
    weights = list(capped_weights(dict(enumerate(counts)), cap).values())
    limit = max(Fraction(cap), Fraction(1, len(counts)))
    total = sum(map(Fraction, weights))
    assert all(Fraction(weight) <= limit * total * (1 + Fraction(1, 2**40)) for weight in weights)
    assert all(0 < weight <= count for weight, count in zip(weights, counts, strict=True))
    # Only who would be above the cap has lost anything, and all of them weigh the same: that which is at the cap.
    cut = {weight for weight, count in zip(weights, counts, strict=True) if weight != count}
    assert len(cut) <= 1
    for weight in cut:
        assert float(Fraction(weight) / total) == pytest.approx(float(limit), rel=1e-9)
        assert max(weights) == weight
    if all(count <= limit * sum(counts) for count in counts):
        assert weights == counts
