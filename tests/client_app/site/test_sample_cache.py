"""Samples are kept up to a limit of bytes, and those asked for longest ago go first."""

import pytest
import torch

from client_app.samples import ImageSamples
from client_app.site.sample_cache import SampleCache

PER_SAMPLE = 3 * 4 * 4 + 8  # bytes of an image and its label


def split_of(count):
    return ImageSamples(
        torch.zeros(count, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(count, dtype=torch.int64),
        torch.zeros(1, 3, 1, 1),
        torch.ones(1, 3, 1, 1),
    )


class Reader:
    """Asks a cache for clients, and notes which of them had to be read."""

    def __init__(self, limit_in_samples, sizes):
        self.cache = SampleCache(limit_in_samples * PER_SAMPLE)
        self.sizes = sizes
        self.read = []

    def ask(self, clients):
        """The clients among these that were read."""
        self.read.clear()
        for client in clients:
            train, validation, test = self.cache.get(client, lambda client=client: self._read(client))
            assert (len(train), len(validation), len(test)) == (self.sizes[client] - 2, 1, 1)
        return "".join(self.read)

    def _read(self, client):
        self.read.append(client)
        return split_of(self.sizes[client] - 2), split_of(1), split_of(1)


def test_what_fits_is_read_once():
    reader = Reader(9, {"a": 2, "b": 3, "c": 4})
    assert reader.ask("abc") == "abc"
    assert reader.ask("cabba") == ""


def test_those_asked_for_longest_ago_go_first():
    reader = Reader(9, {"a": 3, "b": 3, "c": 3, "d": 3, "e": 6})
    reader.ask("abc")
    assert reader.ask("ad") == "d"  # in the place of b
    assert reader.ask("acd") == ""
    assert reader.ask("be") == "be"  # b in the place of a, e in those of c and d
    assert reader.ask("be") == ""
    assert reader.ask("d") == "d"  # in the place of b
    assert reader.ask("e") == ""
    assert reader.ask("b") == "b"


@pytest.mark.parametrize("limit", [0, 9])
def test_a_client_above_the_limit_is_read_every_time_and_drives_nobody_out(limit):
    reader = Reader(limit, {"a": 9, "huge": 10})
    reader.ask("a")
    for _ in range(2):
        reader.read.clear()
        assert reader.ask(["huge"]) == "huge"
    assert reader.ask("a") == ("" if limit else "a")


def test_a_cache_that_was_cleared_keeps_as_much_as_a_new_one():
    reader = Reader(6, {"a": 3, "b": 3})
    for _ in range(3):
        assert reader.ask("ab") == "ab"
        assert reader.ask("ab") == ""
        reader.cache.clear()
