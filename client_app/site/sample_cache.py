"""Samples of simulated clients, kept in a process up to a limit of bytes, so that it plays any number of clients."""

from collections import OrderedDict
from collections.abc import Callable, Hashable

from client_app.samples import ImageSamples

Splits = tuple[ImageSamples, ImageSamples, ImageSamples]  # train, validation and test


class SampleCache:
    """Splits by client. When they become too many, those asked for longest ago go; they can be read again.

    Parameters
    ----------
    limit: bytes that are kept at most. A client with more than that is read every time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._splits: OrderedDict[Hashable, Splits] = OrderedDict()  # asked for longest ago first
        self._num_bytes = 0

    def get(self, client: Hashable, read: Callable[[], Splits]) -> Splits:
        """The client's splits, read where they are not kept."""
        if client in self._splits:
            self._splits.move_to_end(client)
            return self._splits[client]
        splits = read()
        if _num_bytes(splits) <= self._limit:
            self._num_bytes += _num_bytes(splits)
            self._splits[client] = splits
            while self._num_bytes > self._limit:
                self._num_bytes -= _num_bytes(self._splits.popitem(last=False)[1])
        return splits

    def clear(self) -> None:
        """Forget all."""
        self._splits.clear()
        self._num_bytes = 0


def _num_bytes(splits: Splits) -> int:
    return sum(samples.num_bytes for samples in splits)
