"""What a checkpoint holds, and when it is written: the state after the last complete round, and nothing of the next.

Beside what the method has learned these are the clients that are known, the generators of random numbers, and the
record of the round whose weights are not tested yet.
"""

import copy
import dataclasses
import random
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
from server_app.rounds.registry import Registry


class Snapshots:
    """Writes checkpoints of a run, and restores one.

    `generators` are those of the loop, by name; the method's own is added.
    """

    def __init__(
        self,
        config: Config,
        tracker: RunTracker,
        method: Method,
        registry: Registry,
        evaluations: Evaluations,
        generators: dict[str, random.Random],
    ) -> None:
        self.last_round = 0  # of the last checkpoint; 0: there is none
        self._config = config
        self._run_dir = tracker.run_dir
        self._method = method
        self._registry = registry
        self._evaluations = evaluations
        self._generators = generators | {"method": method.random}
        self._best_accuracy = -1.0  # of the rounds that have a checkpoint
        self._boundary: State | None = None  # the loop's state after the last complete round
        self._is_whole = True  # whether the method's state is that of the last complete round as well

    def restore(self, start: Checkpoint) -> None:
        """Take up the state of a run that was stopped. Raises UserError for a checkpoint that does not fit."""
        try:
            for name, (version, numbers, gauss) in start.loop["generators"].items():
                self._generators[name].setstate((version, tuple(numbers), gauss))
            for client in start.loop["clients"]:
                self._registry.restore(Client.from_state(client))
            self._evaluations.waiting = RoundRecord.from_dict(start.loop["waiting"])
            self._best_accuracy = start.loop["best-accuracy"]
            self._method.load_state(start.method)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(f"The checkpoint {start.path} does not fit this run: {error}.") from error
        self.last_round = start.server_round
        log(INFO, "Going on after round %d, from %s.", start.server_round, start.path)

    def begin_update(self) -> None:
        """Call before what was learned changes: until the round is over, it is of no round."""
        self._is_whole = False

    def draw_boundary(self) -> None:
        """Note the state of the loop between two rounds: a checkpoint holds this, whenever it is written."""
        self._is_whole = True
        waiting = self._evaluations.waiting
        if waiting:
            self._boundary = {
                "generators": {name: list(generator.getstate()) for name, generator in self._generators.items()},
                "clients": [copy.deepcopy(client.state()) for client in self._registry.clients],
                "waiting": dataclasses.asdict(waiting),
                "best-accuracy": self._best_accuracy,
            }

    def save_if_due(self, num_rounds: int) -> None:
        """Write a checkpoint of the round that has just ended, where `checkpoint-every` says so."""
        every, waiting = self._config.checkpoint_every, self._evaluations.waiting
        assert waiting is not None
        if every > 0 and (waiting.round % every == 0 or waiting.round == num_rounds):
            self._save()

    def save_on_exit(self) -> None:
        """On SIGTERM: nothing is lost that was complete."""
        waiting = self._evaluations.waiting
        wanted = self._config.checkpoint_every > 0 and self._is_whole
        if wanted and waiting and waiting.round > self.last_round:
            self._save()

    def note_accuracy(self, server_round: int, accuracy: float) -> None:
        """Keep this round's checkpoint, if it has one, as the best when its mean accuracy over clients is."""
        if accuracy > self._best_accuracy and server_round == self.last_round:
            try:
                checkpoint.mark_best(self._run_dir, server_round)
            except OSError as error:
                log(WARNING, "Round %d: its checkpoint could not be kept as the best: %s", server_round, error)
            else:
                self._best_accuracy = accuracy

    def _save(self) -> None:
        """Write the state after the last complete round; a run outlives a full disk."""
        waiting = self._evaluations.waiting
        assert waiting is not None
        assert self._boundary is not None
        state = self._method.state()
        if found := checkpoint.foreign_type(state):
            raise UserError(
                f"What method {self._config.method!r} has learned cannot be saved: {found}, but must be tensors, "
                "numbers, text, and lists and dicts of them."
            )
        try:
            path = checkpoint.save(self._run_dir, waiting.round, self._config.to_dict(), self._boundary, state)
        except OSError as error:
            log(WARNING, "Round %d: no checkpoint could be written: %s", waiting.round, error)
        else:
            self.last_round = waiting.round
            log(INFO, "Checkpoint: %s", path)
