"""The one Flower Strategy: drives the rounds of a method with the parts in `server_app/rounds`.

A round: see who is here, draw the cohort, play the method's exchanges, test on the way what the round before led to.
"""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from logging import INFO
from typing import NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from common.config import Config
from common.errors import UserError
from server_app.checkpoint import Checkpoint
from server_app.client import Client, natural_order
from server_app.methods.base import Method
from server_app.results import START, RunTracker
from server_app.rounds.bindings import Bindings
from server_app.rounds.evaluation import Evaluations
from server_app.rounds.lineage import Lineage
from server_app.rounds.log import RoundLog
from server_app.rounds.mailroom import Mailroom
from server_app.rounds.membership import Membership
from server_app.rounds.patience import Patience
from server_app.rounds.player import Player
from server_app.rounds.registry import Registry
from server_app.rounds.snapshots import Snapshots
from server_app.stopping import at_the_end


class FederationStrategy(Strategy):
    """Owns a method and drives its rounds.

    Parameters
    ----------
    config: of the run.
    method: the server half.
    tracker: writes down what happens.
    architecture_of: labels a client in tables and plots.
    nodes_may_come: False for a simulation, which has all of its nodes from the start.
    start: what mode adapt starts from, or what a resumed run goes on from.
    bindings: which client key belongs to which node, where nodes prove who they are.

    Raises UserError for a `start` that does not fit.
    """

    def __init__(
        self,
        config: Config,
        method: Method,
        tracker: RunTracker,
        architecture_of: Callable[[Client], str],
        *,
        nodes_may_come: bool = False,
        start: Checkpoint | None = None,
        bindings: Bindings | None = None,
    ) -> None:
        self.config = config
        self.method = method
        self._tracker = tracker
        self._architecture_of = architecture_of
        self._cohorts = random.Random(config.seed)
        self._patience = Patience(config.give_up_after)
        registry = Registry(config.max_params, config.max_samples, bindings)
        # Simulated clients are the researcher's own: they may be quoted, and nobody's count has to be doubted.
        max_weight = config.max_client_weight if nodes_may_come else 1.0
        self._log = RoundLog(registry.label, quotes_clients=not nodes_may_come, max_client_weight=max_weight)
        lineage = Lineage.begin(config.run_name, start)
        self.mailroom = Mailroom(config, self._log, lineage)
        self.membership = Membership(config, method, registry, self._log, self._join, nodes_may_come)
        self.evaluations = Evaluations(config, tracker, registry.label)
        self.snapshots = Snapshots(
            config, tracker, method, registry, self.evaluations, {"cohort": self._cohorts}, lineage
        )
        self._player = Player(config, method, self.mailroom, self.evaluations, self._log)
        for name in method.saved:
            if not hasattr(method, name):
                raise UserError(f"Method {config.method!r} lists {name!r} under `saved`, but has no such attribute.")
        self._seen_before: dict[str, str] = {}  # by client key, in the run that mode adapt starts from
        if start and config.mode == "adapt":
            method.adapt(start)
            self._seen_before = {client["key"]: client["seen"] for client in start.loop["clients"]}
        elif start:
            self.snapshots.restore(start)
            for client in self.membership.registry.clients:
                self._track(client)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the federation; see Flower's Strategy. `timeout` is the deadline of one exchange in seconds.

        `initial_arrays`, the two configs and `evaluate_fn` have no use here: weights are per client and tested there.
        Raises UserError when fewer clients than `min-clients` could be registered, or nothing is learned any more.
        """
        self.summary()
        self.mailroom.deadline = self.membership.deadline = timeout
        result = Result()
        at_the_end(self.snapshots.save)
        last = self.evaluations.waiting
        first = last.round + 1 if last else 1
        for server_round in range(first, num_rounds + 1):
            self._play_round(server_round, num_rounds, grid, result, is_first=server_round == first)
        self._hand_over(num_rounds, grid, result)
        return result

    def _play_round(self, server_round: int, num_rounds: int, grid: Grid, result: Result, is_first: bool) -> None:
        self._log.open(server_round)
        self.method.server_round = server_round
        self.mailroom.returns_to = self.snapshots.returns_to()
        record, began = self._log.record, time.monotonic()
        clients = self.membership.gather(grid)
        if is_first:  # of this process: nodes and workers had to come up
            record.seconds[START] = time.monotonic() - began
        cohort = self._cohort(clients)
        learned = self._player.round(cohort, clients, self.evaluations.begin(num_rounds), grid)
        self.mailroom.close_round(server_round)
        if self.evaluations.waiting:
            self._publish(result)
        record.numbers = dict(self.method.numbers())
        self.evaluations.waiting = record
        record.seconds["total"] = time.monotonic() - began
        self.snapshots.end_round(num_rounds)
        if server_round == 1:
            log(
                INFO,
                "Round 1 took %.1f s, %.1f s of it start-up; the accuracy after a round is known when the next ends.",
                record.seconds["total"],
                record.seconds[START],
            )
        self._patience.note(record, learned)
        if self._patience.is_over:
            self.snapshots.save()
            goes_on = "go on with resume=latest" if self.snapshots.last_round else "start anew"
            raise UserError(
                f"The run gives up after round {server_round}: {self._patience.words}. The lines above name each; mend "
                f"that and {goes_on}."
            )

    def _hand_over(self, num_rounds: int, grid: Grid, result: Result) -> None:
        """Send the final weights, which clients test and keep; this is part of the last round's record."""
        record = self.evaluations.waiting
        assert record is not None
        self._log.record = record
        self.mailroom.returns_to = self.snapshots.returns_to()
        self.evaluations.begin(num_rounds)
        began = time.monotonic()
        self.membership.register_new_nodes(grid)
        # In the round after the last, so that clients load what they kept in that one.
        self._player.deploy(self.membership.connected(grid), record.round + 1, grid, final=True)
        record.seconds["total"] += time.monotonic() - began
        self._publish(result)

    def _cohort(self, clients: Sequence[Client]) -> list[Client]:
        """The clients that train in a round, drawn without replacement (paper, appendix C.3)."""
        learning = [client for client in clients if self.method.trains(client)]
        if not learning and any(self.method.trains(client) for client in self.membership.registry.clients):
            raise UserError("None of the clients that learn is connected any more: start them, and the run again.")
        if not learning:
            raise UserError(
                "Every client is known to the checkpoint already, so there is nobody to adapt to: in a simulation, "
                "held-out says how many clients were kept out of training."
            )
        cohort = self._cohorts.sample(learning, max(1, round(self.config.participation * len(learning))))
        return sorted(cohort, key=lambda client: natural_order(client.key))

    def _publish(self, result: Result) -> None:
        record = self.evaluations.waiting
        assert record is not None
        trained = {client.key for client in self.membership.registry.clients if self.method.trains(client)}
        accuracy = self.evaluations.publish(trained, result)
        if accuracy is not None:
            self.snapshots.note_accuracy(record.round, accuracy)

    def _join(self, client: Client) -> None:
        client.seen = self._seen_before.get(client.key, "")
        self._track(client)

    def _track(self, client: Client) -> None:
        self._tracker.add_client(
            client.label,
            client.num_params,
            self.method.num_chunks(client),
            self._architecture_of(client),
            known=not self.method.trains(client),
        )

    def summary(self) -> None:
        """Log what runs."""
        config = self.config
        log(
            INFO,
            "%s on %s: %d rounds, results in %s",
            config.method,
            config.dataset,
            config.num_rounds,
            self._tracker.run_dir,
        )

    # Flower's own loop has one exchange a round; `start` has its own, so nobody calls these.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Not used."""
        _not_used()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Not used."""
        _not_used()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Not used."""
        _not_used()

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Not used."""
        _not_used()


def _not_used() -> NoReturn:
    raise RuntimeError("the exchanges of a round are its method's: call `start`, which drives them.")
