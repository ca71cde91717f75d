"""A client as the server knows it: its key, how much it needs, and what else it chose to tell."""

from dataclasses import dataclass, field
from typing import Any

NOWHERE = 0  # no node of Flower's has this id


@dataclass
class Client:
    """One registered client."""

    key: str
    num_params: int  # K
    node_id: int  # NOWHERE: known from a checkpoint, and not yet back
    facts: dict[str, Any] = field(default_factory=dict)  # what its method asked for and it gave


def natural_order(key: str) -> tuple[int, str]:
    """Sort key that puts "2" before "10"."""
    return len(key), key
