"""The result of testing one client's model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """Counts over a client's test split; `loss` is the mean cross-entropy of a sample."""

    correct: int
    total: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of correct answers, 0 to 1."""
        return self.correct / self.total
