"""Plays the exchanges of a method, one after the other: in a round, for a test between rounds, at the end of a run."""

from collections.abc import Callable, Generator, Sequence
from logging import WARNING
from typing import NoReturn

from flwr.common import log
from flwr.serverapp import Grid

from common import protocol
from common.config import Config
from common.errors import UserError
from server_app.client import Client
from server_app.methods.base import Exchange, Exchanges, Method, Replies
from server_app.rounds.evaluation import Evaluations
from server_app.rounds.log import RoundLog
from server_app.rounds.mailroom import Mailroom, Occasion


class Player:
    """Sends what the method yields, and gives it the replies.

    Raises UserError, in all methods, for what the method's author has to mend.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        mailroom: Mailroom,
        evaluations: Evaluations,
        log: RoundLog,
    ) -> None:
        self._config = config
        self._method = method
        self._mailroom = mailroom
        self._evaluations = evaluations
        self._log = log

    def round(self, cohort: Sequence[Client], clients: Sequence[Client], test: bool, grid: Grid) -> bool:
        """Play the exchanges of a round, and where `test` says so test on the way what the round before led to.

        Returns whether any of those that train brought a good update, or none of them does.
        """
        server_round, deployed, all_answered = self._log.record.round, False, True
        answered: dict[str, bool] = {}  # by exchange: whether it had good replies, the first time or later
        trained: dict[str, bool] = {}  # the same of those in which clients train

        def play(exchange: Exchange) -> Replies:
            nonlocal deployed, all_answered
            on_arrival = False
            if exchange.deploys and not deployed and test:
                # The others first: what the clients bring back from this exchange changes what they would be sent.
                on_arrival = self._method.tests_on_arrival
                asked = {client.key for client in exchange.to} if on_arrival else set()
                self.deploy([client for client in clients if client.key not in asked], server_round, grid)
            deployed |= exchange.deploys
            replies, tests = self._mailroom.exchange(grid, exchange, Occasion(server_round, test=on_arrival))
            self._evaluations.add(tests)
            all_answered = all_answered and bool(replies)
            for found in (answered, trained) if exchange.losses else (answered,):
                found[exchange.name] = found.get(exchange.name, False) or bool(replies)
            return replies

        self._drive(self._method.round(cohort), play)
        for name in (name for name, any_reply in answered.items() if not any_reply):
            what = "brought a good update; nothing changes" if name in trained else "answered"
            log(WARNING, "Round %d: exchange %s: no client %s.", server_round, name, what)
        if test and not deployed:
            if all_answered:
                self._refuse_silence("round")
            log(WARNING, "Round %d ended early, so what the round before led to is not tested.", server_round)
        return any(trained.values()) or not trained

    def deploy(self, clients: Sequence[Client], server_round: int, grid: Grid, *, final: bool = False) -> None:
        """Deploy the current weights to clients that test them, and keep them where this is the end."""
        occasion = Occasion(server_round, protocol.DEPLOY, test=True, final=final)
        deployed, all_answered = False, True

        def play(exchange: Exchange) -> Replies:
            nonlocal deployed, all_answered
            replies, tests = self._mailroom.exchange(grid, exchange, occasion)
            self._evaluations.add(tests)
            deployed, all_answered = deployed or exchange.deploys, all_answered and bool(replies)
            return replies

        if clients:
            self._drive(self._method.deploy(clients), play)
            if all_answered and not deployed:
                self._refuse_silence("deploy")

    def _drive(self, exchanges: Exchanges, play: Callable[[Exchange], Replies]) -> None:
        """Play a method's exchanges one after the other; it learns from the replies to each."""
        if not isinstance(exchanges, Generator):
            raise UserError(f"Method {self._config.method!r}: round and deploy must yield exchanges, as generators do.")
        exchange = next(exchanges, None)
        while exchange is not None:
            if not isinstance(exchange, Exchange):
                found = type(exchange).__name__
                raise UserError(f"Method {self._config.method!r} yields a {found}, but must yield an Exchange.")
            replies = play(exchange)
            with self._log.timed("update"):
                try:
                    exchange = exchanges.send(replies)
                except StopIteration:
                    exchange = None

    def _refuse_silence(self, where: str) -> NoReturn:
        raise UserError(
            f"Method {self._config.method!r} deployed nothing in `{where}`, so nothing could be tested: one of its "
            "exchanges must have deploys=True."
        )
