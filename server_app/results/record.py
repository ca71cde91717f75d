"""What happened in one round, as the strategy hands it in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from common.evaluation import Evaluation

T = TypeVar("T")

PHASES = ("generate", "exchange", "update")
# What a process needs once, before its first exchange: nodes, workers, registration. It is in the total of that round,
# which is the only one that has it, and in no mean over rounds.
START = "start"


@dataclass(frozen=True)
class Failure:
    """A client that lost its round; `reason` is a short kebab-case name such as `late` or `wrong-length`."""

    client: str
    reason: str
    detail: str


@dataclass
class RoundRecord:
    """What happened in one round."""

    round: int
    # Of the weights after this round's update, by client key; empty when the round was not evaluated.
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    # Mean loss and number of training samples of each client whose update was used.
    train_losses: dict[str, tuple[float, int]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0
    # By phase: those of PHASES, START, and total; a phase that the method does not have may be left out.
    seconds: dict[str, float] = field(default_factory=dict)
    # As `train_losses`, for each further training exchange of the method, by a name for what was trained ("global").
    extra_losses: dict[str, dict[str, tuple[float, int]]] = field(default_factory=dict)
    # Epsilon and delta of all that a client has sent so far, of those that send noised vectors.
    privacy: dict[str, tuple[float, float]] = field(default_factory=dict)
    # What else the method has to tell, by a kebab-case name ("server-loss") that no other number of a round has.
    numbers: dict[str, float] = field(default_factory=dict)
    # The largest share that one client has of the weights of a mean over clients; 1: whatever its samples give it.
    max_client_weight: float = 1.0
    # The share of the samples that each client claims whose weight was cut to this, the largest of several means.
    capped: dict[str, float] = field(default_factory=dict)

    def labelled(self, label: Callable[[str], str]) -> RoundRecord:
        """The same with what is shown for each client in the place of its key; failures name it so from the start."""

        def renamed(by_client: Mapping[str, T]) -> dict[str, T]:
            return {label(key): value for key, value in by_client.items()}

        return replace(
            self,
            evaluations=renamed(self.evaluations),
            train_losses=renamed(self.train_losses),
            extra_losses={name: renamed(losses) for name, losses in self.extra_losses.items()},
            privacy=renamed(self.privacy),
            capped=renamed(self.capped),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RoundRecord:
        """Undo `dataclasses.asdict`."""
        record = cls(**values)
        record.evaluations = {key: Evaluation(**value) for key, value in values["evaluations"].items()}
        record.failures = [Failure(**value) for value in values["failures"]]
        return record
