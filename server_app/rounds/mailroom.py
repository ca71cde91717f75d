"""The mail of the rounds: an exchange of a method becomes messages, and messages that fit become its replies.

Nobody waits longer than the deadline, a bad reply costs its client the round and changes nothing else, and a client
that still works on an earlier request is sent nothing more until it has answered.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common import protocol
from common.arrays import Arrays, decode_arrays, payload_bytes
from common.config import Config
from common.errors import ProtocolError, UserError
from common.evaluation import AFTER_TRAINING, TEST, VALIDATION, Evaluation
from common.instructions import Instructions
from common.lineage import Point
from common.protocol import Result
from common.settings import Bounded
from server_app.client import Client, natural_order
from server_app.methods.base import DEPLOY, Exchange, Replies, Reply
from server_app.rounds.lineage import Lineage
from server_app.rounds.log import WRONG_COUNT, RoundLog
from server_app.rounds.pulling import Pull
from server_app.rounds.round_trip import OpenRequests, RoundTrip

Tests = Mapping[str, Evaluation]  # of the weights of one client, by their names

TTL_MARGIN = 60.0  # seconds that Flower keeps a message beyond the deadline, so that it is ours that ends an exchange


@dataclass(frozen=True)
class Occasion:
    """What an exchange is part of: a round, a test of weights between rounds, or the end of the run."""

    server_round: int  # clients load what they kept in earlier ones
    message_type: str = protocol.TRAIN
    test: bool = False  # an exchange that deploys also tests
    final: bool = False  # an exchange that deploys hands over for good; all are waited for, at most for the deadline


class Mailroom:
    """Sends the exchanges of a method and sorts what comes back.

    `lineage` and `returns_to` are told to clients, so that they load and keep what a resumed server comes back to.
    `tests` names what clients are asked for where weights are tested; those beside `TEST` they need not bring.
    """

    def __init__(self, config: Config, log: RoundLog, lineage: Lineage, tests: Sequence[str] = (TEST,)) -> None:
        self.deadline = config.deadline
        self.returns_to: tuple[int, ...] = ()  # rounds that this server may be resumed from
        self._config = config
        self._log = log
        self._lineage = lineage
        self._tests = tuple(tests)
        # A method without the setting has no bound beyond its schemas.
        is_bounded = issubclass(config.halves.server.Settings, Bounded)
        self._max_norm = config.settings(Bounded).max_delta_norm if is_bounded else math.inf
        self._client_settings = config.settings(config.halves.client.Settings)
        # Clients of the round under way: whose replies were taken, and who has failed in an exchange.
        self._took: dict[str, Client] = {}
        self._missed: set[str] = set()
        self._pull = Pull()
        self._owed = OpenRequests(self._pull)  # by clients, from exchanges that ended without them

    def exchange(self, grid: Grid, exchange: Exchange, occasion: Occasion) -> tuple[Replies, dict[str, Tests]]:
        """Send an exchange; return the good replies, and the tests that came with them, each by client."""
        clients = list(exchange.to) if occasion.final else self._free(grid, exchange.to)
        by_key = {client.key: client for client in clients}
        with self._log.timed("generate"):
            outgoing = exchange.outgoing(clients) if clients else {}
        requests = self._requests(clients, exchange, occasion, outgoing)
        quorum = 1.0 if occasion.final else self._config.quorum
        log = self._log
        trip = RoundTrip(
            grid, requests, len(clients), self.deadline, quorum, log.fail, log.quotes_clients, log.wait, self._pull
        )
        replies: dict[str, Reply] = {}
        tests: dict[str, Tests] = {}
        with self._log.timed("exchange"):
            for key, message in trip.replies():
                try:
                    result, arrays = self._opened(message.content, exchange, by_key[key], occasion)
                except ProtocolError as error:
                    trip.reject(key, error.reason, error.detail)
                    continue
                replies[key] = Reply(arrays, result.num_examples or 0)
                if TEST in result.evaluations and occasion.test and exchange.deploys:
                    tests[key] = {name: each for name, each in result.evaluations.items() if name in self._tests}
                self._note(by_key[key], result, exchange, occasion)
        self._owed.add(trip)
        if occasion.message_type == protocol.TRAIN and exchange.name != DEPLOY:
            self._took |= {key: by_key[key] for key in replies}
            self._missed |= {client.key for client in exchange.to} - replies.keys()
        # Sorted, so that the result does not depend on which reply came first.
        good = Replies({key: replies[key] for key in sorted(replies, key=natural_order)}, self._log.weigh)
        if _trains(exchange, occasion):
            self._log.weigh({key: reply.num_examples for key, reply in good.items()})  # as the mean loss does
        return good, tests

    def close_round(self, server_round: int) -> None:
        """Note who took part in a round with all that was asked of it: no other round counts at a client either."""
        for key in self._took.keys() - self._missed:
            self._took[key].seen = str(self._lineage.at(server_round))
        self._took, self._missed = {}, set()

    def _free(self, grid: Grid, clients: Sequence[Client]) -> list[Client]:
        """Those who do not work on an earlier request any more; the others lose this exchange."""
        busy = self._owed.busy(grid, {client.key: client.node_id for client in clients}, self.deadline)
        for key in busy:
            self._log.fail(key, "busy", "it still works on a request of an exchange that ended without it")
        return [client for client in clients if client.key not in busy]

    def _requests(
        self, clients: Sequence[Client], exchange: Exchange, occasion: Occasion, outgoing: dict[str, Arrays]
    ) -> Iterator[tuple[str, Message]]:
        """The messages, one at a time: a whole cohort's would be as large as all its models."""
        for client in clients:
            if client.key not in outgoing:
                raise UserError(
                    f"Method {self._config.method!r} sends nothing to client {client.label} in exchange "
                    f"{exchange.name!r}: `send` must return arrays for every client that it is called with."
                )
            arrays = outgoing.pop(client.key)
            instructions = self._instructions(client, exchange, occasion)
            content = protocol.encode_request(instructions, self._client_settings, arrays)
            self._log.record.bytes_down += payload_bytes(content)
            ttl, group = self.deadline + TTL_MARGIN, str(occasion.server_round)
            yield client.key, Message(content, client.node_id, occasion.message_type, ttl=ttl, group_id=group)

    def _instructions(self, client: Client, exchange: Exchange, occasion: Occasion) -> Instructions:
        return Instructions(
            method=self._config.halves.client_name,
            exchange=exchange.name,
            client_key=client.key,
            run_name=self._config.run_name,
            server_round=occasion.server_round,
            seed=self._config.seed,
            deploys=exchange.deploys,
            tests=self._tests if exchange.deploys and occasion.test else (),
            final=exchange.deploys and occasion.final,
            compress=tuple(name for name, array in exchange.expected(client).items() if array.codec),
            line=self._lineage.line,
            lineage=self._lineage.earlier,
            returns_to=self.returns_to,
            seen=Point.parse(client.seen) if client.seen else None,
        )

    def _opened(
        self, content: RecordDict, exchange: Exchange, client: Client, occasion: Occasion
    ) -> tuple[Result, Arrays]:
        """A reply that is all that the exchange asked for. Raises ProtocolError."""
        self._log.record.bytes_up += payload_bytes(content)
        result = protocol.decode_result(content)
        if _trains(exchange, occasion) and (result.train_loss is None or result.num_examples is None):
            raise ProtocolError("malformed", "the reply to a training exchange holds num-examples and train-loss")
        is_test = occasion.message_type == protocol.DEPLOY and exchange.deploys and occasion.test
        if is_test and TEST not in result.evaluations:
            raise ProtocolError("malformed", "the reply to a test holds test-correct, test-total and test-loss")
        if result.num_examples is not None:
            _check_count("num-examples", result.num_examples, "train-samples", client.num_train)
        self._check_totals(result.evaluations, client)
        arrays = decode_arrays(content, exchange.expected(client), protocol.upload_form(self._client_settings))
        for name, array in arrays.items():
            self._check_norm(name, array)
        return result, arrays

    def _check_totals(self, tests: Tests, client: Client) -> None:
        for name in (TEST, AFTER_TRAINING):
            if name in tests:
                _check_count(f"{name}-total", tests[name].total, "test-samples", client.num_test)
        # How many samples it holds back a client does not register.
        total, most = tests[VALIDATION].total if VALIDATION in tests else 0, self._config.max_samples
        if total > most:
            raise ProtocolError("too-many-samples", f"{VALIDATION}-total is {total:,}, above max-samples ({most:,})")

    def _check_norm(self, name: str, array: torch.Tensor) -> None:
        if not array.is_floating_point():
            return
        norm = float(torch.linalg.vector_norm(array, dtype=torch.float64))
        if norm > self._max_norm:
            raise ProtocolError("huge-norm", f"{name!r} has norm {norm:.3g}, above max-delta-norm ({self._max_norm:g})")

    def _note(self, client: Client, result: Result, exchange: Exchange, occasion: Occasion) -> None:
        record, key = self._log.record, client.key
        if _trains(exchange, occasion) and result.train_loss is not None and result.num_examples is not None:
            extra = record.extra_losses
            losses = record.train_losses if exchange.losses == "train" else extra.setdefault(exchange.losses, {})
            losses[key] = (result.train_loss, result.num_examples)
        if result.privacy:
            record.privacy[key] = (result.privacy.epsilon, result.privacy.delta)


def _check_count(key: str, count: int, declared: str, number: int) -> None:
    if count != number:
        raise ProtocolError(WRONG_COUNT, f"{key} is {count:,}, but {declared} was {number:,} at registration")


def _trains(exchange: Exchange, occasion: Occasion) -> bool:
    return bool(exchange.losses) and occasion.message_type == protocol.TRAIN
