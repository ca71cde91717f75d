"""One run of a comparison: what was planned, and what there is of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_app.results.reading import Run

FINISHED, UNFINISHED, FAILED, MISSING = "finished", "unfinished", "failed", "missing"


@dataclass(frozen=True)
class ComparedRun:
    """A run under the labels by which it is compared; `run` is None while there is nothing of it to read."""

    name: str
    method: str  # labels for people
    setting: str
    seed: int
    grid: Mapping[str, Any]  # the values of a grid's keys; empty where there is no grid
    rounds: int | None  # planned, None where unknown
    run_dir: Path
    run: Run | None
    failure: str | None = None  # the sentence why it failed last

    @property
    def state(self) -> str:
        """`finished`, `unfinished`, `failed` or `missing`.

        A run that has finished all planned rounds is finished, even if it failed once before.
        """
        if self.run is not None and self.run.summary is not None and self.last_round >= (self.rounds or 0):
            return FINISHED
        if self.failure is not None:
            return FAILED
        return MISSING if self.run is None else UNFINISHED

    @property
    def last_round(self) -> int:
        """The last round that the run has written down; 0 before any."""
        return int(self.run.metrics[-1]["round"]) if self.run else 0

    @property
    def progress(self) -> str:
        """How far it came, in words: `round 5 of 20`."""
        if not self.last_round:
            return "not begun" if self.state == MISSING else "no round"
        return f"round {self.last_round}" + (f" of {self.rounds}" if self.rounds else "")

    @property
    def point(self) -> str:
        """The values of the grid's keys as one text: `client-lr=0.01 hn-lr=0.001`; empty where there is no grid."""
        return " ".join(f"{key}={value}" for key, value in self.grid.items())
