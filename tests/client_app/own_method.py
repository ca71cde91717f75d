"""A client half of the tests' own, with arrays of other shapes and types than our methods have."""

from dataclasses import dataclass

import torch

from client_app.methods.base import ClientMethod, Outcome, Task, exchange
from client_app.site import Site
from common.options import option
from common.protocol import DELTA, THETA
from common.schema import Array, Facts, Schema, UpTo, Vector
from common.settings import Compressed, LocalTraining

NAME = "own_method:Own"
CLASSES, WIDTH = 4, 3


@dataclass(frozen=True, kw_only=True)
class OwnSettings(LocalTraining, Compressed):
    rounded: bool = option(False, "a setting of each type, beside those of the groups")
    rows: int = option(2, "rows that are sent", minimum=0, maximum=5)
    share: float = option(0.5, "a number", minimum=0, maximum=1)
    colour: str = option("red", "a choice", choices=("red", "blue"))


def table(rows: int) -> torch.Tensor:
    return torch.arange(rows * WIDTH, dtype=torch.float32).view(rows, WIDTH) / 7


class Own(ClientMethod):
    """Each exchange sends something else."""

    Settings = OwnSettings
    settings: OwnSettings

    def facts(self, site: Site) -> Facts:
        return {"classes": CLASSES, "colour": self.settings.colour}

    def receives(self, exchange: str, site: Site) -> Schema:
        if exchange in ("deploy", "vectors"):
            return {THETA: Vector(site.num_params)}
        if exchange == "echo":
            rows = UpTo("n", 5)
            return {"prototypes": Array((rows, WIDTH)), "labels": Array((rows,), "int64", below=CLASSES)}
        return {}

    def load(self, task: Task) -> None:
        task.site.personal.load(task.arrays[THETA], True, {})

    @exchange
    def prototypes(self, task: Task) -> Outcome:
        """float32 [n, d] and int64 [n]."""
        rows = self.settings.rows
        return Outcome({"prototypes": table(rows), "labels": torch.arange(rows) % CLASSES}, loss=0.25)

    @exchange
    def echo(self, task: Task) -> Outcome:
        """What came, and nothing trained."""
        return Outcome(task.arrays)

    @exchange
    def vectors(self, task: Task) -> Outcome:
        """Two vectors and a table; which of them a codec shortens, the server says."""
        theta = task.arrays[THETA]
        sent = {DELTA: theta - theta.mean(), "bias": torch.linspace(-1, 1, 11) ** 3, "prototypes": table(4)}
        return Outcome(sent, loss=0.5)

    @exchange
    def means(self, task: Task) -> Outcome:
        """A table alone, as large as C = 1 allows and far above."""
        return Outcome({"prototypes": 10 * table(self.settings.rows)})

    @exchange
    def diverged(self, task: Task) -> Outcome:
        """A good vector beside one that is none."""
        return Outcome({DELTA: torch.ones(20), "bias": torch.full((3,), torch.nan)})

    def unmarked(self, task: Task) -> Outcome:
        """Not an exchange: nobody may call it by a message."""
        raise AssertionError("called by a message")

    @exchange
    def careless(self, task: Task) -> Outcome:
        """Something that is no outcome."""
        return {"prototypes": table(1)}  # type: ignore[return-value]
