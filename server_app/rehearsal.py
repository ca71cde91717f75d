"""A round of a method's server half without clients: what it takes is measured before a run begins.

Clients are numbers only; they answer with small random arrays that fit what the method expects.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from common.arrays import Arrays
from common.config import Config
from common.device import free_memory, resolve_device
from common.schema import Schema, UpTo
from server_app.client import Client
from server_app.methods.base import Method, Replies, Reply, logger

_MOST_BYTES = 2e9  # of a hypernetwork that is only to be timed; at most half of what is free
_TRIES = 3  # of which the quickest counts: others were disturbed
_WIDTH = "hidden-dim"  # a hypernetwork's work and size grow with it


@dataclass(frozen=True)
class PlayedExchange:
    """One exchange of a round: who took part, and what it moved."""

    clients: Sequence[Client]
    losses: str  # the name of what the clients train; "": they do not
    num_bytes: int  # of all arrays, down and up


@dataclass(frozen=True)
class Rehearsal:
    """What a round takes, of the clients for whom there is room."""

    exchanges: Sequence[PlayedExchange]
    seconds: float  # that the server half works
    fits: bool  # whether there is room for all clients in the server's memory


def facts_asked(config: Config) -> Iterable[str]:
    """Names of the facts that the method would like to know of a client."""
    return _method(config).facts.keys()


def memory_for(config: Config, clients: Sequence[Client]) -> float:
    """Bytes that a round with these clients takes at its peak in the server's memory, as the method judges it."""
    return _method(config).memory_for(clients)


def rehearse(config: Config, clients: Sequence[Client]) -> Rehearsal:
    """Play a round with these clients, some times.

    In the place of a large hypernetwork two narrower ones are played with: a part of the work grows with the width.
    """
    width, needed = config.method_settings.get(_WIDTH), memory_for(config, clients)
    free = free_memory(resolve_device(config.device))
    most = min(_MOST_BYTES, free / 2)
    if not isinstance(width, int) or needed <= most:
        stage = _Stage(config, clients)
        return Rehearsal(stage.exchanges, min(stage.play() for _ in range(_TRIES)), not stage.refused)
    wide = max(2, int(width * most / needed))
    narrow = max(1, wide // 4)
    stages = [_Stage(_of_width(config, each), clients) for each in (wide, narrow)]
    # In turns, so that what else the machine does disturbs both: their difference is multiplied.
    of_wide, of_narrow = map(min, zip(*([stage.play() for stage in stages] for _ in range(_TRIES)), strict=True))
    seconds = of_wide + max(0.0, of_wide - of_narrow) / (wide - narrow) * (width - wide)
    return Rehearsal(stages[0].exchanges, seconds, needed <= free and not stages[0].refused)


def _of_width(config: Config, width: int) -> Config:
    return dataclasses.replace(config, method_settings={**config.method_settings, _WIDTH: width})


class _Stage:
    """A method with those of the clients whom it has admitted, of whom as many play as take part in a round."""

    def __init__(self, config: Config, clients: Sequence[Client]) -> None:
        self._method = _method(config)
        with _silent():
            self.refused = self._method.admit(clients)
        admitted = [client for client in clients if client.key not in self.refused]
        self._cohort = admitted[: max(1, round(config.participation * len(admitted)))]
        self.exchanges: list[PlayedExchange] = []
        self.play()  # the first round makes an optimizer's moments, too

    def play(self) -> float:
        """Play a round; return the seconds that the server half works. Without anybody there is none."""
        if not self._cohort:
            return 0.0
        self.exchanges, seconds = _play(self._method, self._cohort)
        return seconds


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep from the log what a method says of a run: this is none."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _method(config: Config) -> Method:
    method: Method = config.halves.server(config)
    return method


def _play(method: Method, cohort: Sequence[Client]) -> tuple[list[PlayedExchange], float]:
    method.server_round += 1
    played, seconds, replies = list[PlayedExchange](), 0.0, None
    exchanges = method.round(cohort)
    while True:
        began = time.perf_counter()
        try:
            exchange = next(exchanges) if replies is None else exchanges.send(replies)
            outgoing = exchange.outgoing(exchange.to)
        except StopIteration:
            return played, seconds + time.perf_counter() - began
        seconds += time.perf_counter() - began
        answers = {client.key: _random(exchange.expected(client)) for client in exchange.to}
        num_bytes = sum(array.nbytes for arrays in (*outgoing.values(), *answers.values()) for array in arrays.values())
        played.append(PlayedExchange(list(exchange.to), exchange.losses, num_bytes))
        counts = {client.key: client.num_train for client in exchange.to}
        replies = Replies({key: Reply(arrays, counts[key]) for key, arrays in answers.items()})


def _random(schema: Schema) -> Arrays:
    """Arrays that fit, with small numbers."""
    arrays = {}
    for name, array in schema.items():
        shape = [size.most if isinstance(size, UpTo) else size for size in array.shape]
        arrays[name] = torch.zeros(shape, dtype=torch.int64) if array.dtype == "int64" else 1e-3 * torch.randn(shape)
    return arrays
