"""Where in a run's history something lies: a server that goes back to an earlier round starts a new line of history.

A round alone does not say which state is meant: after a resume from round 50 there may be two rounds 60, of which only
one led to what the server has now. So every start of a server draws the name of a new line, and a point is a round of a
line of a run.
"""

import re
import uuid
from dataclasses import dataclass

from common.config import RUN_NAME

_LINE = re.compile(r"[0-9a-z]{1,32}")
_POINT = re.compile(rf"({RUN_NAME.pattern})/({_LINE.pattern})/([1-9][0-9]{{0,8}})")


@dataclass(frozen=True)
class Point:
    """A round of a line of a run; as text RUN/LINE/ROUND."""

    run_name: str
    line: str
    round: int

    def __str__(self) -> str:
        return f"{self.run_name}/{self.line}/{self.round}"

    @classmethod
    def parse(cls, text: str) -> "Point":
        """Undo `str`. Raises ValueError for a text that is none of a point."""
        found = _POINT.fullmatch(text)
        if not found:
            raise ValueError(f"{text[:40]!r} is not RUN/LINE/ROUND")
        return cls(found[1], found[2], int(found[3]))


def new_line() -> str:
    """A name that no other line has."""
    return uuid.uuid4().hex[:12]


def is_line(text: str) -> bool:
    """Whether this can be the name of a line."""
    return bool(_LINE.fullmatch(text))
