"""A client as the server knows it: its key, how much it needs, and what else it chose to tell."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

NOWHERE = 0  # no node of Flower's has this id


@dataclass
class Client:
    """One registered client."""

    key: str
    num_params: int  # K
    node_id: int  # NOWHERE: known from a checkpoint, and not yet back
    facts: dict[str, Any] = field(default_factory=dict)  # what its method asked for and it gave
    num_train: int = 0  # training samples that it says it has; its replies are held to it
    num_test: int = 0  # test samples, likewise
    seen: str = ""  # where in the run's history what it had trained was last taken: RUN/LINE/ROUND; empty: never

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it: all but its node, which has to come back first."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "node_id"}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Client":
        """Undo `state`. Raises TypeError for one that does not fit."""
        return cls(node_id=NOWHERE, **state)


def natural_order(key: str) -> tuple[int, str]:
    """Sort key that puts "2" before "10"."""
    return len(key), key
