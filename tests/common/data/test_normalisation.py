"""Mean and standard deviation of images, against NumPy's, and where there is little to measure."""

import numpy as np
import pytest

from common.data import normalisation
from common.data.normalisation import measure
from common.data.sources.base import ArrayImages, as_stored


@pytest.fixture
def pixels(rng):
    """Three channels of different ranges, [50, 6, 5, 3]."""
    return (rng.integers(0, 256, (50, 6, 5, 3)) * np.array([1.0, 0.5, 0.1])).astype(np.uint8)


def test_each_channel_has_its_own(pixels):
    rows = np.array([3, 8, 40, 41])
    found = measure(ArrayImages(pixels, as_stored), (3, 6, 5), rows)
    chosen = pixels[rows].astype(np.float64) / 255
    np.testing.assert_allclose(found.mean, chosen.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, chosen.std(axis=(0, 1, 2)), rtol=1e-9)


@pytest.mark.parametrize("most", [4000, 10])
def test_the_order_of_the_samples_does_not_matter_also_where_some_are_chosen(pixels, rng, monkeypatch, most):
    monkeypatch.setattr(normalisation, "_MAX_IMAGES", most)
    source, rows = ArrayImages(pixels, as_stored), np.arange(5, 45)
    found = measure(source, (3, 6, 5), rows)
    assert measure(source, (3, 6, 5), rng.permutation(rows)) == found
    whole = measure(source, (3, 6, 5), np.arange(50))
    assert found != whole
    np.testing.assert_allclose(found.mean, whole.mean, rtol=0.2)


def test_of_many_or_large_images_a_few_are_decoded(pixels, monkeypatch):
    class Counting(ArrayImages):
        def read(self, rows):
            decoded.append(len(rows))
            return super().read(rows)

    source, decoded = Counting(pixels, as_stored), []
    monkeypatch.setattr(normalisation, "_MAX_IMAGES", 20)
    measure(source, (3, 6, 5), np.arange(50))
    monkeypatch.setattr(normalisation, "_MAX_VALUES", 7 * 90)
    measure(source, (3, 6, 5), np.arange(50))
    monkeypatch.setattr(normalisation, "_MAX_VALUES", 1)
    measure(source, (3, 6, 5), np.arange(50))
    assert decoded == [20, 7, 1]


def test_a_channel_in_which_all_pixels_are_alike_divides_by_a_step_of_a_pixel():
    found = measure(ArrayImages(np.full((4, 2, 2, 1), 51, dtype=np.uint8), as_stored), (1, 2, 2), np.arange(4))
    assert found.mean == pytest.approx((0.2,))
    assert found.std == (1 / 255,)
