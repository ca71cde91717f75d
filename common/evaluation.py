"""The result of testing one client's model, and which tests of deployed weights there are."""

from dataclasses import dataclass

# Names of the tests, in messages and results.
TEST = "test"  # of the weights as deployed, on the client's test samples
VALIDATION = "validation"  # the same, on samples that it holds back from training, to choose on
AFTER_TRAINING = "after-training"  # on the test samples, of what one local epoch makes of these weights
EVALUATIONS = (TEST, VALIDATION, AFTER_TRAINING)


@dataclass(frozen=True)
class Evaluation:
    """Counts over one split of a client's samples; `loss` is the mean of a sample."""

    correct: int
    total: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of correct answers, 0 to 1."""
        return self.correct / self.total
