"""The round loop that all methods share, as a Flower Strategy on the Message API.

A method says which vectors a client gets, which come back, and what they change; see `hypernet.py`, `local.py` and
`fedavg.py`. Registration, cohorts, evaluation, failures and tracking are the same for all and live here.
"""

import dataclasses
import itertools
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from logging import INFO, WARNING

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore.exit import add_exit_handler
from torch import Tensor

from common import protocol
from common.config import Config
from common.errors import UserError
from common.evaluation import Evaluation
from common.protocol import Instructions, ProtocolError
from server_app import checkpoint
from server_app.checkpoint import Checkpoint, State
from server_app.exchange import WRONG_SENDER, Exchange, OpenRequests, describe_error
from server_app.registry import KEY_IN_USE, NOWHERE, Client, Registry, natural_order
from server_app.results import PHASES, Failure, RoundRecord, RunTracker

Vectors = Mapping[str, Tensor]

_START_PATIENCE = 300.0  # seconds
_PAUSE = 1.0  # seconds between looks for clients
_REST = 10.0  # seconds after which a node is asked again whose registration failed for one of these reasons
_PASSING = ("client-raised", "client-crashed", "client-not-loadable", "node-unavailable", "message-unavailable")
_TTL_MARGIN = 60.0  # seconds that Flower keeps a message beyond the deadline, so that it is ours that ends an exchange
MAX_GRAD_NORM = 50.0  # of a client's gradients, as in the authors' code


@dataclass(frozen=True)
class Update:
    """What one client brought back from a round."""

    vectors: Vectors
    num_examples: int  # m_i
    evaluation: Evaluation | None = None  # of the vectors as received


@dataclass(frozen=True)
class Run:
    """What a strategy is told about the run that it serves; `architecture_of` labels a client in tables and plots."""

    config: Config
    tracker: RunTracker
    architecture_of: Callable[[Client], str]
    nodes_may_come: bool = False  # a simulation has all of its nodes from the start
    start: Checkpoint | None = None  # what mode adapt starts from, or what a resumed run goes on from


class RoundStrategy(Strategy):
    """Base of all methods.

    Accuracy "after round r" is that of the weights that round r's update led to. They go out for round r + 1 anyway, so
    the clients test them on arrival and evaluation costs no exchange of its own; the last round's are tested when the
    final weights are handed over.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config = run.config
        self.tracker = run.tracker
        self.registry = Registry(run.config.max_params)
        self._refused: set[int] = set()  # nodes whose registration failed
        self._asked_again_at: dict[int, float] = {}  # nodes whose registration failed for a reason that may pass
        self._late_registrations = OpenRequests()
        self._owed = OpenRequests()  # by clients, from exchanges that ended without them
        self._present: set[str] = set()  # clients that were connected when last looked
        self.record = RoundRecord(0)  # of the round under way
        self._evaluations: dict[str, Evaluation] = {}
        self._exchange_under_way: Exchange | None = None
        self._tested_on_arrival = False
        self._deadline = run.config.deadline
        self.generators = {"cohort": random.Random(run.config.seed)}  # whose states a checkpoint holds
        self._waiting: RoundRecord | None = None  # the last complete round, whose weights are not tested yet
        self._checkpoint_round = 0
        self._best_accuracy = -1.0  # of the rounds that have a checkpoint
        self._boundary: State | None = None  # the loop's state after the last complete round
        self._is_whole = True  # whether the method's state is that of the last complete round as well
        if run.config.mode == "train" and run.start:
            self._go_on_from(run.start)

    # What a method defines ------------------------------------------------------------------------------------------

    def admit(self, clients: Sequence[Client]) -> None:
        """Make room for clients that have just registered: all of the start at once, later ones one by one.

        Raises UserError when there is no room.
        """

    @abstractmethod
    def outgoing(self, clients: Sequence[Client]) -> dict[str, Vectors]:
        """The vectors that each client gets, for training, evaluation and at the end; key = client key."""

    @abstractmethod
    def incoming(self, client: Client) -> Mapping[str, int]:
        """Names and lengths of the vectors that a client sends back from training."""

    @abstractmethod
    def update(self, updates: Mapping[str, Update]) -> None:
        """Use what the clients of a wave brought back; sorted by client, never empty."""

    def waves(self, cohort: Sequence[Client]) -> list[Sequence[Client]]:
        """Split a cohort into groups that train one after the other; an update follows each."""
        return [cohort]

    def prepare(self, server_round: int, cohort: Sequence[Client], grid: Grid) -> None:
        """What precedes the training of a round's cohort, such as the global exchange of MH-pFedHNGD."""

    def is_trained(self, client: Client) -> bool:
        """Whether a client takes part in training; the others are only tested."""
        return True

    def instruct(self, client: Client, instructions: Instructions) -> Instructions:
        """What one client is told, where that differs from the rest."""
        return instructions

    def state(self) -> State:
        """What the method has learned, for a checkpoint; tensors on any device, not copied."""
        return {}

    def load_state(self, state: State) -> None:
        """Go on from such a state. Raises KeyError, TypeError, ValueError or RuntimeError for one that is none."""

    @property
    def global_model(self) -> str:
        """Name of the public model that clients train together beside their own; empty without one."""
        return ""

    @property
    def anchor(self) -> bool:
        """Whether clients add what they receive to their architecture's seeded initialisation."""
        return self.config.anchor

    @property
    def evaluates_on_arrival(self) -> bool:
        """Whether the weights that go out for training are those that the round before led to."""
        return True

    # The loop -------------------------------------------------------------------------------------------------------

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
        Raises UserError when fewer clients than `min-clients` could be registered.
        """
        self.summary()
        self._deadline = timeout
        result = Result()
        self._draw_boundary()
        add_exit_handler(self._save_on_exit)
        for server_round in range(self._waiting.round + 1 if self._waiting else 1, num_rounds + 1):
            waiting = self._waiting
            self.record = RoundRecord(server_round, seconds=dict.fromkeys(PHASES, 0.0))
            began = time.monotonic()
            clients = self._gather(grid)
            cohort = self._cohort(clients)
            test = waiting is not None and self._is_due(waiting.round, num_rounds)
            on_arrival = test and self.evaluates_on_arrival
            self._evaluations = {}
            self.prepare(server_round, cohort, grid)
            if test:
                self._evaluate([client for client in clients if not on_arrival or client not in cohort], grid)
            for wave in self.waves(cohort):
                self._train(server_round, wave, on_arrival, grid)
            if waiting:
                self._publish(waiting, result)
            self._waiting = self.record
            self.record.seconds["total"] = time.monotonic() - began
            self._is_whole = True
            self._draw_boundary()
            if self._wants_checkpoint(server_round, num_rounds):
                self._save_checkpoint()
            if server_round == 1:
                took = self.record.seconds["total"]
                log(INFO, "Round 1 took %.1f s; the accuracy after a round is known when the next one ends.", took)
        assert self._waiting is not None
        self._evaluations = {}
        self.record = self._waiting
        began = time.monotonic()
        self._register_new_nodes(grid)
        self._finish(grid)
        self.record.seconds["total"] += time.monotonic() - began
        self._publish(self.record, result)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Requests for the clients named in `config["clients"]`; they test first where `config["evaluate"]` says so."""
        self._tested_on_arrival = bool(config["evaluate"])
        return self._personal_requests(protocol.PERSONAL, self._named(config), server_round, self._tested_on_arrival)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check each reply as it arrives, then update once with all that are good."""
        updates = self.collect(replies, self.incoming, self.record.train_losses)
        if self._tested_on_arrival:
            self._evaluations |= {key: update.evaluation for key, update in updates.items() if update.evaluation}
        if updates:
            with self.timed("update"):
                self.begin_update()
                self.update(updates)
        else:
            log(WARNING, "Round %d: no client brought a good update; nothing changes.", server_round)
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Requests to test current weights, for the clients named in `config["clients"]`."""
        return self._personal_requests(protocol.EVALUATE, self._named(config), server_round, evaluate=True)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Collect the results of an evaluation exchange, or of the final one."""
        for client, message in self._sorted_out(replies):
            try:
                self._evaluations[client.key] = protocol.decode_evaluation(message.content)
            except ProtocolError as error:
                self._reject(client.key, error)
        return None

    def collect(
        self,
        replies: Iterable[Message],
        incoming: Callable[[Client], Mapping[str, int]],
        losses: dict[str, tuple[float, int]],
    ) -> dict[str, Update]:
        """The good replies to a training exchange, sorted by client; `losses` gets (loss, samples) of each."""
        updates: dict[str, Update] = {}
        for client, message in self._sorted_out(replies):
            try:
                result = protocol.decode_training_result(message.content)
                vectors = protocol.decode_vectors(
                    message.content, incoming(client), self.config.upload, self.config.topk_fraction
                )
                self._check_norms(vectors)
            except ProtocolError as error:
                self._reject(client.key, error)
                continue
            updates[client.key] = Update(vectors, result.num_examples, result.evaluation)
            losses[client.key] = (result.train_loss, result.num_examples)
            if result.privacy:
                self.record.privacy[client.key] = (result.privacy.epsilon, result.privacy.delta)
        # Sorted, so that the result does not depend on which reply came first.
        return {key: updates[key] for key in sorted(updates, key=natural_order)}

    def _check_norms(self, vectors: Vectors) -> None:
        for name, vector in vectors.items():
            norm = float(torch.linalg.vector_norm(vector, dtype=torch.float64))
            if norm > self.config.max_delta_norm:
                limit = f"max-delta-norm ({self.config.max_delta_norm:g})"
                raise ProtocolError("huge-norm", f"vector {name!r} has norm {norm:.3g}, above {limit}")

    def begin_update(self) -> None:
        """Call before what was learned changes: until the round is over, it is of no round."""
        self._is_whole = False

    def summary(self) -> None:
        """Log what runs."""
        told = self.config.method, self.config.dataset, self.config.num_rounds, self.tracker.run_dir
        log(INFO, "%s on %s: %d rounds, results in %s", *told)

    # Inside ---------------------------------------------------------------------------------------------------------

    def _gather(self, grid: Grid) -> list[Client]:
        """The clients that can take part in a round; waits for `min-clients` of them, at most for the deadline.

        Raises UserError when too few came.
        """
        patience = self._deadline if self.run.nodes_may_come else 0.0
        ends = time.monotonic() + patience
        told = -1
        while True:
            self._register_new_nodes(grid)
            clients = self.connected(grid)
            self._tell_who_left({client.key for client in clients})
            if len(clients) >= self.config.min_clients:
                return clients
            if time.monotonic() >= ends:
                raise UserError(
                    f"{len(clients)} clients are connected and registered after {patience:g} s, but min-clients is "
                    f"{self.config.min_clients}; the lines above name the reason of each node that could not be."
                )
            if len(clients) != told:
                told = len(clients)
                log(INFO, "%d of at least %d clients (min-clients) are here; waiting.", told, self.config.min_clients)
            time.sleep(_PAUSE)

    def _tell_who_left(self, present: set[str]) -> None:
        for key in sorted(self._present - present, key=natural_order):
            log(WARNING, "Client %s is no longer connected; the rounds go on without it until it is back.", key)
        self._present = present

    def connected(self, grid: Grid) -> list[Client]:
        """The registered clients whose nodes are there."""
        live = set(grid.get_node_ids())
        return [client for client in self.registry.clients if client.node_id in live]

    def _cohort(self, clients: Sequence[Client]) -> list[Client]:
        """The clients that train in a round, drawn without replacement (paper, appendix C.3)."""
        clients = [client for client in clients if self.is_trained(client)]
        if not clients:
            raise UserError(
                "Every client is known to the checkpoint already, so there is nobody to adapt to: in a simulation, "
                "held-out says how many clients were kept out of training."
            )
        cohort = self.generators["cohort"].sample(clients, max(1, round(self.config.participation * len(clients))))
        return sorted(cohort, key=lambda client: natural_order(client.key))

    def _register_new_nodes(self, grid: Grid) -> None:
        live = set(grid.get_node_ids())
        self._refused &= live  # a node that went away may try again
        resting = {node for node, until in self._asked_again_at.items() if time.monotonic() < until}
        self._late_registrations.forget_nodes_but(live)
        asked = self.registry.nodes() | self._refused | resting | self._late_registrations.nodes()
        late = self._late_registrations.look(grid)
        new = sorted(live - asked)
        if new or late:
            known = {client.key for client in self.registry.clients}
            # The first exchange of a simulation waits for its workers to start, whatever the deadline of a round.
            patience = self._deadline if known else max(self._deadline, _START_PATIENCE)
            greeting = protocol.encode_greeting(self.global_model)
            requests = {
                f"node {node}": Message(greeting, node, protocol.REGISTER, ttl=patience + _TTL_MARGIN) for node in new
            }
            self._exchange_under_way = Exchange(grid, requests, patience, 1.0, self._fail)
            taken = set()  # nodes that asked for a key which another still holds; it may be gone in the next round
            for name, message in itertools.chain(late, self._exchange_under_way.replies()):
                if message.has_error():  # only late ones: the exchange sorts out its own
                    self._fail(name, *describe_error(message.error))
                    continue
                if name != f"node {message.metadata.src_node_id}":
                    self._fail(name, *WRONG_SENDER)
                    continue
                try:
                    registration = protocol.decode_registration(message.content)
                    self.registry.admit(registration, message.metadata.src_node_id, live)
                except ProtocolError as error:
                    self._exchange_under_way.reject(name, error.reason, error.detail)
                    if error.reason == KEY_IN_USE:
                        taken.add(message.metadata.src_node_id)
            self._late_registrations.add(self._exchange_under_way)
            answered = {int(name.removeprefix("node ")) for name, _ in late} | set(new)
            answered -= self._late_registrations.nodes()
            reasons = {failure.client: failure.reason for failure in self.record.failures}
            passing = {node for node in answered if reasons.get(f"node {node}") in _PASSING}
            self._asked_again_at |= dict.fromkeys(passing, time.monotonic() + _REST)
            self._refused |= answered - self.registry.nodes() - taken - passing
            self._admit_all_but(known)

    def _admit_all_but(self, known: set[str]) -> None:
        """Admit the registered clients that have joined since these keys were all."""
        # In order of their keys, so that the outcome does not depend on who answered first.
        joining = [client for client in self.registry.clients if client.key not in known]
        for batch in [[client] for client in joining] if known else filter(None, [joining]):
            try:
                self.admit(batch)
            except UserError as error:
                if not known:
                    raise
                # A run goes on without one for whom there is no room.
                self._refused.add(batch[0].node_id)
                self.registry.remove(batch[0].key)
                self._fail(batch[0].key, "no-room", str(error))
                continue
            for client in batch:
                self._track(client)
        joined = len(self.registry.clients) - len(known)
        log(INFO, "%d clients joined, %d in all.", joined, len(self.registry.clients))

    def num_chunks(self, client: Client) -> int:
        """Tau of a client (paper, section 3.2); 0 for methods without chunks."""
        return 0

    def _train(self, server_round: int, wave: Sequence[Client], evaluate: bool, grid: Grid) -> None:
        config = ConfigRecord({"clients": [client.key for client in wave], "evaluate": evaluate})
        requests = self.configure_train(server_round, ArrayRecord(), config, grid)
        consume = partial(self.aggregate_train, server_round)
        self.exchange(requests, wave, consume, grid, self.config.quorum)

    def _evaluate(self, clients: Sequence[Client], grid: Grid) -> None:
        if clients:
            server_round = self.record.round
            config = ConfigRecord({"clients": [client.key for client in clients]})
            requests = self.configure_evaluate(server_round, ArrayRecord(), config, grid)
            self.exchange(requests, clients, partial(self.aggregate_evaluate, server_round), grid, self.config.quorum)

    def _finish(self, grid: Grid) -> None:
        # In the round after the last, so that clients load what they kept in that one.
        clients, server_round = self.connected(grid), self.record.round + 1
        requests = self._personal_requests(protocol.FINISH, clients, server_round, evaluate=True)
        # All are waited for, and those who still work on something else get it after that: it brings the final model.
        self.exchange(requests, clients, partial(self.aggregate_evaluate, server_round), grid, also_busy=True)

    def exchange(
        self,
        requests: Iterable[Message],
        clients: Sequence[Client],
        consume: Callable[[Iterable[Message]], object],
        grid: Grid,
        quorum: float = 1.0,
        also_busy: bool = False,
    ) -> None:
        """One exchange: its replies go to `consume` as they arrive. Sets who is told of clients that fail.

        Clients that still work on a request of an exchange which ended without them are left out, unless `also_busy`.
        """
        by_client = {client.key: message for client, message in zip(clients, requests, strict=True)}
        if not also_busy:
            nodes = {client.key: client.node_id for client in clients}
            for key in self._owed.busy(grid, nodes, self._deadline):
                del by_client[key]
                self._fail(key, "busy", "it still works on a request of an exchange that ended without it")
        self.record.bytes_down += sum(protocol.payload_bytes(message.content) for message in by_client.values())
        self._exchange_under_way = Exchange(grid, by_client, self._deadline, quorum, self._fail)
        began, updating = time.monotonic(), self.record.seconds["update"]
        consume(message for _, message in self._exchange_under_way.replies())
        self._owed.add(self._exchange_under_way)
        updating = self.record.seconds["update"] - updating
        self.record.seconds["exchange"] += time.monotonic() - began - updating

    def _personal_requests(
        self, message_type: str, clients: Sequence[Client], server_round: int, evaluate: bool
    ) -> list[Message]:
        with self.timed("generate"):
            outgoing = self.outgoing(clients)
        instructions = self.instructions(server_round, evaluate)
        told = [self.instruct(client, instructions) for client in clients]
        return self.requests(message_type, clients, told, [outgoing[client.key] for client in clients])

    def requests(
        self,
        message_type: str,
        clients: Sequence[Client],
        instructions: Sequence[Instructions],
        vectors: Sequence[Vectors],
    ) -> list[Message]:
        """A message to each client, with what it is told and what it gets."""
        contents: list[RecordDict] = [
            protocol.encode_request(told, outgoing) for told, outgoing in zip(instructions, vectors, strict=True)
        ]
        return [
            Message(
                content,
                client.node_id,
                message_type,
                ttl=self._deadline + _TTL_MARGIN,
                group_id=str(told.server_round),
            )
            for content, client, told in zip(contents, clients, instructions, strict=True)
        ]

    def instructions(self, server_round: int, evaluate: bool) -> Instructions:
        """What all clients are told."""
        config = self.config
        return Instructions(
            method=config.method,
            run_name=config.run_name,
            server_round=server_round,
            seed=config.seed,
            evaluate=evaluate,
            anchor=self.anchor,
            local_epochs=config.local_epochs,
            batch_size=config.batch_size,
            client_lr=config.client_lr,
            client_momentum=config.client_momentum,
            client_weight_decay=config.client_weight_decay,
            max_grad_norm=MAX_GRAD_NORM,
            global_model=self.global_model,
            teacher_round=0,
            temperature=config.temperature,
            distillation_coefficient=config.distillation_coefficient,
            upload=config.upload,
            download=config.download,
            topk_fraction=config.topk_fraction if config.upload == "topk" else protocol.NOT_TOPK,
            error_feedback=config.error_feedback,
            checkpoint_round=self._checkpoint_round,
            previous_run=self._previous_run,
        )

    def _named(self, config: ConfigRecord) -> list[Client]:
        keys = config["clients"]
        assert isinstance(keys, list)
        return [client for client in self.registry.clients if client.key in keys]

    def _sorted_out(self, replies: Iterable[Message]) -> Iterable[tuple[Client, Message]]:
        """Each reply with the client that it is from."""
        for message in replies:
            self.record.bytes_up += protocol.payload_bytes(message.content)
            assert self._exchange_under_way is not None
            yield self.registry.client(self._exchange_under_way.client_of(message)), message

    def _reject(self, client: str, error: ProtocolError) -> None:
        assert self._exchange_under_way is not None
        self._exchange_under_way.reject(client, error.reason, error.detail)

    def _fail(self, client: str, reason: str, detail: str) -> None:
        log(WARNING, "Round %d: client %s: %s: %s", self.record.round, client, reason, detail)
        self.record.failures.append(Failure(client, reason, detail))

    def _is_due(self, server_round: int, num_rounds: int) -> bool:
        return server_round % self.config.evaluate_every == 0 or server_round == num_rounds

    @property
    def _previous_run(self) -> str:
        """The run whose clients' state this one takes over, if it is not this one."""
        name = str(self.run.start.config["run-name"]) if self.run.start else ""
        return "" if name == self.config.run_name else name

    def _go_on_from(self, start: Checkpoint) -> None:
        """Take up the state of a run that was stopped. Raises UserError for a checkpoint that does not fit."""
        try:
            for name, (version, numbers, gauss) in start.loop["generators"].items():
                self.generators.setdefault(name, random.Random()).setstate((version, tuple(numbers), gauss))
            for key, num_params, global_num_params, group in start.loop["clients"]:
                self.registry.restore(Client(key, num_params, NOWHERE, global_num_params, group))
            self._waiting = RoundRecord.from_dict(start.loop["waiting"])
            self._best_accuracy = start.loop["best-accuracy"]
            self.load_state(start.method)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(f"The checkpoint {start.path} does not fit this run: {error}.") from error
        self._checkpoint_round = start.server_round
        for client in self.registry.clients:
            self._track(client)
        log(INFO, "Going on after round %d, from %s.", start.server_round, start.path)

    def _draw_boundary(self) -> None:
        """Note the state of the loop between two rounds: a checkpoint holds this, whenever it is written."""
        if self._waiting:
            self._boundary = {
                "generators": {name: list(generator.getstate()) for name, generator in self.generators.items()},
                "clients": [
                    [client.key, client.num_params, client.global_num_params, client.group]
                    for client in self.registry.clients
                ],
                "waiting": dataclasses.asdict(self._waiting),
                "best-accuracy": self._best_accuracy,
            }

    def _save_checkpoint(self) -> None:
        """Write the state after the last complete round; a run outlives a full disk."""
        assert self._waiting is not None
        assert self._boundary is not None
        server_round = self._waiting.round
        try:
            path = checkpoint.save(
                self.tracker.run_dir, server_round, self.config.to_dict(), self._boundary, self.state()
            )
        except OSError as error:
            log(WARNING, "Round %d: no checkpoint could be written: %s", server_round, error)
        else:
            self._checkpoint_round = server_round
            log(INFO, "Checkpoint: %s", path)

    def _save_on_exit(self) -> None:
        """On SIGTERM: nothing is lost that was complete."""
        wanted = self.config.checkpoint_every > 0 and self._is_whole
        if wanted and self._waiting and self._waiting.round > self._checkpoint_round:
            self._save_checkpoint()

    def _track(self, client: Client) -> None:
        self.tracker.add_client(
            client.key,
            client.num_params,
            self.num_chunks(client),
            self.run.architecture_of(client),
            known=not self.is_trained(client),
        )

    def _wants_checkpoint(self, server_round: int, num_rounds: int) -> bool:
        every = self.config.checkpoint_every
        return every > 0 and (server_round % every == 0 or server_round == num_rounds)

    def _publish(self, record: RoundRecord, result: Result) -> None:
        # Sorted, so that nothing in the record depends on who answered first.
        record.evaluations = dict(sorted(self._evaluations.items(), key=lambda item: natural_order(item[0])))
        record.train_losses = dict(sorted(record.train_losses.items(), key=lambda item: natural_order(item[0])))
        for name, losses in record.extra_losses.items():
            record.extra_losses[name] = dict(sorted(losses.items(), key=lambda item: natural_order(item[0])))
        record.privacy = dict(sorted(record.privacy.items(), key=lambda item: natural_order(item[0])))
        record.failures.sort(key=lambda failure: natural_order(failure.client))
        self.tracker.log_round(record)
        log(INFO, "%s", self.tracker.progress_line(record))
        # In mode adapt, of the new clients.
        tested = [test for key, test in record.evaluations.items() if self.is_trained(self.registry.client(key))]
        total = sum(test.total for test in tested)
        if total:
            correct = sum(test.correct for test in tested)
            if correct / total > self._best_accuracy and record.round == self._checkpoint_round:
                self._best_accuracy = correct / total
                checkpoint.mark_best(self.tracker.run_dir, record.round)
            result.evaluate_metrics_clientapp[record.round] = MetricRecord({"accuracy": correct / total})

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count what happens inside towards a phase of the round."""
        began = time.monotonic()
        yield
        self.record.seconds[phase] = self.record.seconds.get(phase, 0.0) + time.monotonic() - began
