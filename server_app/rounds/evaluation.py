"""What is tested when, and how results become a line of the metrics.

Accuracy "after round r" is that of the weights that round r's update led to. They go out for round r + 1 anyway, so the
clients test them on arrival and evaluation costs no exchange of its own; the last round's are tested when the final
weights are handed over. So a round's record waits for its tests until the next one has sent its weights.
"""

from collections.abc import Callable, Mapping
from logging import INFO
from typing import TypeVar

from flwr.app import MetricRecord
from flwr.common import log
from flwr.serverapp.strategy import Result

from common.config import Config
from common.evaluation import AFTER_TRAINING, TEST, VALIDATION, Evaluation
from server_app.client import natural_order
from server_app.results import RoundRecord, RunTracker

T = TypeVar("T")


class Evaluations:
    """Holds the record that waits for its tests, collects them, and publishes it.

    `label` makes of a client's key what results show.
    """

    def __init__(self, config: Config, tracker: RunTracker, label: Callable[[str], str] = str) -> None:
        self.waiting: RoundRecord | None = None  # the last complete round, whose weights are not tested yet
        self._every = config.evaluate_every
        self._num_rounds = config.num_rounds
        self._tracker = tracker
        self._label = label
        self._results: dict[str, Mapping[str, Evaluation]] = {}  # by client, then by the name of the test

    def begin(self, num_rounds: int) -> bool:
        """Start collecting; whether the weights of the record that waits are to be tested."""
        self._num_rounds = num_rounds
        self._results = {}
        return self.waiting is not None and self._is_due(self.waiting.round)

    def add(self, results: Mapping[str, Mapping[str, Evaluation]]) -> None:
        """Take tests, by client and by their names."""
        self._results |= results

    def publish(self, trained: set[str], result: Result) -> float | None:
        """Write down the record that waits; return the mean accuracy over the clients that train, to judge it by.

        On validation samples where clients hold some back, so that what is chosen is not chosen on the test samples.
        Over clients and not over samples, whose number is a client's own word: one of n moves it by 1 / n at most. Who
        was not tested counts as 0, so that rounds with few tests are not the best. None: none of them was tested. In
        mode adapt the others are those that the checkpoint knew.
        """
        record = self.waiting
        assert record is not None
        # Sorted, so that nothing in the record depends on who answered first.
        record.evaluations = _sorted(self._named(TEST))
        further = {name: self._named(name) for name in (VALIDATION, AFTER_TRAINING)}
        record.extra_evaluations = {name: _sorted(results) for name, results in further.items() if results}
        record.train_losses = _sorted(record.train_losses)
        record.extra_losses = {name: _sorted(losses) for name, losses in record.extra_losses.items()}
        record.privacy = _sorted(record.privacy)
        record.capped = _sorted(record.capped)
        record.failures.sort(key=lambda failure: natural_order(failure.client))
        shown = record.labelled(self._label)
        self._tracker.log_round(shown)
        log(INFO, "%s", self._tracker.progress_line(shown))
        tested = [test for key, test in record.evaluations.items() if key in trained]
        if not tested:
            return None
        accuracies = [test.accuracy for test in tested]
        of_samples = sum(test.correct for test in tested) / sum(test.total for test in tested)
        mean = sum(accuracies) / len(tested)
        result.evaluate_metrics_clientapp[record.round] = MetricRecord({"accuracy": of_samples, "accuracy-mean": mean})
        validations = record.extra_evaluations.get(VALIDATION, {})
        validated = [test.accuracy for key, test in validations.items() if key in trained]
        return sum(validated or accuracies) / len(trained)

    def _named(self, test: str) -> dict[str, Evaluation]:
        """The results of one of the tests, of the clients that made it."""
        return {client: tests[test] for client, tests in self._results.items() if test in tests}

    def _is_due(self, server_round: int) -> bool:
        return server_round % self._every == 0 or server_round == self._num_rounds


def _sorted(by_client: dict[str, T]) -> dict[str, T]:
    return dict(sorted(by_client.items(), key=lambda item: natural_order(item[0])))
