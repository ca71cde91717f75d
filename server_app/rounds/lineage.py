"""Which lines of history led to the server's state: a resume from a checkpoint ends one and begins another."""

from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from common.lineage import Point, new_line
from server_app.checkpoint import Checkpoint


@dataclass(frozen=True)
class Lineage:
    """The line of this process, and those before it that its checkpoint comes from."""

    run_name: str
    line: str
    earlier: tuple[Point, ...]  # the last round of each, the oldest first

    @classmethod
    def begin(cls, run_name: str, start: Checkpoint | None) -> "Lineage":
        """A new line, from this checkpoint on. Raises UserError for a checkpoint that does not tell its own."""
        return cls(run_name, new_line(), lineage_of(start) if start else ())

    def at(self, server_round: int) -> Point:
        """A round of this line."""
        return Point(self.run_name, self.line, server_round)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"line": self.line, "lineage": [str(point) for point in self.earlier]}


def lineage_of(start: Checkpoint) -> tuple[Point, ...]:
    """The lines that led to a checkpoint, its own last. Raises UserError where it does not tell."""
    try:
        earlier = tuple(Point.parse(text) for text in start.loop["lineage"])
        own = Point.parse(f"{start.config['run-name']}/{start.loop['line']}/{start.server_round}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The checkpoint {start.path} does not say which rounds led to it: {error}.") from error
    return (*earlier, own)
