"""A client's samples, split into those that it trains on, those to choose settings on, and those to test on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.data.sources.base import Rows


@dataclass(frozen=True, eq=False)
class ClientIndices:
    """One client's samples, as rows of the data set, in random order."""

    train: Tensor  # [n_train] int64
    validation: Tensor  # [n_validation] int64; empty unless a validation part is asked for
    test: Tensor  # [n_test] int64


@dataclass(frozen=True)
class Fractions:
    """How a client's samples are split."""

    test: float = 0.25  # of all samples
    validation: float = 0.0  # of what is left for training; 0: no such part

    @property
    def parts(self) -> int:
        """How many parts there are; a client needs a sample for each."""
        return 3 if self.validation else 2

    @property
    def purposes(self) -> str:
        """What a client needs a sample for, to end a sentence with."""
        return "one to train, one to validate and one to test" if self.validation else "one to train and one to test"

    def split(self, rows: Rows) -> ClientIndices:
        """Split rows that are in random order, at least `parts` of them; shares are rounded down, but none is empty."""
        count = min(max(_share(len(rows), self.test), 1), len(rows) - self.parts + 1)
        return self.split_training(rows[count:], rows[:count])

    def split_training(self, training: Rows, test: Rows) -> ClientIndices:
        """The same where it is known which rows are for testing; `training` has at least `parts` - 1 rows."""
        count = min(max(_share(len(training), self.validation), 1), len(training) - 1) if self.validation else 0
        parts = training[count:], training[:count], test
        return ClientIndices(*(torch.from_numpy(part.copy()) for part in parts))


def _share(count: int, fraction: float) -> int:
    return int(count * fraction + 1e-9)  # 0.29 * 100 is a little less than 29
