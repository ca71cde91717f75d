"""What a checkpoint holds, and when it is written: the state after the last complete round, and nothing of the next.

Beside what the method has learned these are the clients that are known, the generators of random numbers, and the
record of the round whose weights are not tested yet.
"""

import copy
import dataclasses
import random
import threading
from dataclasses import dataclass
from logging import INFO, WARNING

from flwr.common import log

from common.config import Config
from common.errors import UserError
from server_app import checkpoint
from server_app.checkpoint import Checkpoint, State
from server_app.client import Client
from server_app.methods.base import Method
from server_app.results import RoundRecord, RunTracker
from server_app.rounds.evaluation import Evaluations
from server_app.rounds.lineage import Lineage
from server_app.rounds.registry import Registry


@dataclass(frozen=True)
class Boundary:
    """The state between two rounds."""

    server_round: int  # the one that is complete
    loop: State
    method: State


class Snapshots:
    """Writes checkpoints of a run, and restores one.

    `generators` are those of the loop, by name; the method's own is added. `save` may be called at any moment, from any
    thread: in a simulation Flower's exit handlers run beside the loop, in a deployment they interrupt it.
    """

    def __init__(
        self,
        config: Config,
        tracker: RunTracker,
        method: Method,
        registry: Registry,
        evaluations: Evaluations,
        generators: dict[str, random.Random],
        lineage: Lineage,
    ) -> None:
        self.last_round = 0  # of the last checkpoint; 0: there is none
        self._config = config
        self._run_dir = tracker.run_dir
        self._method = method
        self._registry = registry
        self._evaluations = evaluations
        self._generators = generators | {"method": method.random}
        self._lineage = lineage
        self._best_round = checkpoint.best_round(self._run_dir)
        self._best_accuracy = -1.0  # of the rounds that have a checkpoint
        self._unsaved: Boundary | None = None  # the last one, while no checkpoint holds it
        # Held while the unsaved state is written, or is not a copy yet. An interrupt may come from the thread that
        # holds it: it may take it again, since a loop that is interrupted changes nothing.
        self._lock = threading.RLock()

    def restore(self, start: Checkpoint) -> None:
        """Take up the state of a run that was stopped. Raises UserError for a checkpoint that does not fit."""
        try:
            for name, (version, numbers, gauss) in start.loop["generators"].items():
                self._generators[name].setstate((version, tuple(numbers), gauss))
            for client in start.loop["clients"]:
                self._registry.restore(Client.from_state(client))
            self._evaluations.waiting = RoundRecord.from_dict(start.loop["waiting"])
            if self._best_round:  # what is the best elsewhere is not kept here
                self._best_accuracy = start.loop["best-accuracy"]
            self._method.load_state(start.method)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(f"The checkpoint {start.path} does not fit this run: {error}.") from error
        self.last_round = start.server_round
        log(INFO, "Going on after round %d, from %s.", start.server_round, start.path)

    def returns_to(self) -> tuple[int, ...]:
        """The rounds that this run may be resumed from: those of its checkpoints, and the last complete one."""
        last = self._evaluations.waiting.round if self._evaluations.waiting else 0
        return tuple(sorted({*checkpoint.rounds(self._run_dir), self._best_round, last} - {0}))

    def end_round(self, num_rounds: int) -> None:
        """Call when a round is complete. Writes its checkpoint where `checkpoint-every` says so; else it is copied.

        Raises UserError for a method whose state no checkpoint can hold.
        """
        every = self._config.checkpoint_every
        if every == 0:
            return
        boundary = self._boundary()
        with self._lock:
            # The method's own tensors, which do not change before this returns. The copy of the round before is let go
            # first: there are never two.
            self._unsaved = boundary
            if boundary.server_round % every == 0 or boundary.server_round == num_rounds:
                self._write(boundary)
            if self._unsaved:
                self._unsaved = dataclasses.replace(boundary, method=checkpoint.copied(boundary.method))

    def save(self) -> None:
        """Write the last complete round, if no checkpoint holds it: on SIGTERM nothing is lost that was complete."""
        with self._lock:
            if self._unsaved:
                self._write(self._unsaved)

    def note_accuracy(self, server_round: int, accuracy: float) -> None:
        """Keep this round's checkpoint, if it has one, as the best when the accuracy that it is judged by is."""
        if accuracy > self._best_accuracy and server_round == self.last_round:
            try:
                checkpoint.mark_best(self._run_dir, server_round)
            except OSError as error:
                log(WARNING, "Round %d: its checkpoint could not be kept as the best: %s", server_round, error)
            else:
                self._best_accuracy, self._best_round = accuracy, server_round

    def _boundary(self) -> Boundary:
        waiting = self._evaluations.waiting
        assert waiting is not None
        state = self._method.state()
        if found := checkpoint.foreign_type(state):
            raise UserError(
                f"What method {self._config.method!r} has learned cannot be saved: {found}, but must be tensors, "
                "numbers, text, and lists and dicts of them."
            )
        loop = {
            "generators": {name: list(generator.getstate()) for name, generator in self._generators.items()},
            "clients": [copy.deepcopy(client.state()) for client in self._registry.clients],
            "waiting": dataclasses.asdict(waiting),
            "best-accuracy": self._best_accuracy,
            **self._lineage.state(),
        }
        return Boundary(waiting.round, loop, state)

    def _write(self, boundary: Boundary) -> None:
        """Write a checkpoint; a run outlives a full disk."""
        server_round = boundary.server_round
        try:
            path = checkpoint.save(self._run_dir, server_round, self._config.to_dict(), boundary.loop, boundary.method)
        except OSError as error:
            log(WARNING, "Round %d: no checkpoint could be written: %s", server_round, error)
        else:
            self.last_round, self._unsaved = server_round, None
            log(INFO, "Checkpoint: %s", path)
