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
from common.schema import Schema, UpTo
from server_app.client import Client
from server_app.methods.base import Method, Replies, Reply, logger

_MOST_BYTES = 1e9  # of a hypernetwork that is only to be timed
_TRIES = 2  # of which the quickest counts: the other was disturbed
_WIDTH = "hidden-dim"  # a hypernetwork's work and size grow with it


@dataclass(frozen=True)
class PlayedExchange:
    """One exchange of a round: who took part, and what it moved."""

    clients: Sequence[Client]
    losses: str  # the name of what the clients train; "": they do not
    num_bytes: int  # of all arrays, down and up


def facts_asked(config: Config) -> Iterable[str]:
    """Names of the facts that the method would like to know of a client."""
    return _method(config).facts.keys()


def memory_for(config: Config, clients: Sequence[Client]) -> float:
    """Bytes that a round with these clients takes at its peak in the server's memory, as the method judges it."""
    return _method(config).memory_for(clients)


def rehearse(config: Config, clients: Sequence[Client]) -> tuple[list[PlayedExchange], float]:
    """The exchanges of a round, and the seconds that the server half works in it.

    In the place of a large hypernetwork two narrower ones are played with: a part of the work grows with the width.
    """
    width, needed = config.method_settings.get(_WIDTH), memory_for(config, clients)
    if not isinstance(width, int) or needed <= _MOST_BYTES:
        return _timed(config, clients)
    wide = max(2, int(width * _MOST_BYTES / needed))
    narrow = max(1, wide // 4)
    exchanges, of_wide = _timed(_of_width(config, wide), clients)
    _, of_narrow = _timed(_of_width(config, narrow), clients)
    return exchanges, of_wide + max(0.0, of_wide - of_narrow) / (wide - narrow) * (width - wide)


def _of_width(config: Config, width: int) -> Config:
    return dataclasses.replace(config, method_settings={**config.method_settings, _WIDTH: width})


def _timed(config: Config, clients: Sequence[Client]) -> tuple[list[PlayedExchange], float]:
    method = _method(config)
    with _silent():
        method.admit(clients)
    cohort = list(clients)[: max(1, round(config.participation * len(clients)))]
    _play(method, cohort)  # the first round makes an optimizer's moments, too
    rounds = [_play(method, cohort) for _ in range(_TRIES)]
    return rounds[0][0], min(seconds for _, seconds in rounds)


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
