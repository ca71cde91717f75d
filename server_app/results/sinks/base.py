"""What a sink is, and what it learns of a run: where its folder is, its settings, and its name at the sink before."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from common import comparison
from common.files import write_text

_REMEMBERED = "logged-to.json"


class Sink(Protocol):
    """A place for a run's numbers. Its methods raise whatever its client raises; it is not called again then."""

    def catch_up(self, rounds: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Take those rounds of a run that is gone on with which the sink does not have, by their numbers."""

    def add(self, round_number: int, numbers: Mapping[str, float]) -> None:
        """Add the numbers of a round, by name."""

    def close(self, best: Mapping[str, float] | None) -> None:
        """Write what is still buffered; `best` are the best numbers of a run that has completed, else None."""


@dataclass(frozen=True)
class LoggedRun:
    """A run, as sinks see it."""

    run_dir: Path
    config: Mapping[str, object]
    resume_after: int | None  # the last round that is kept of a run that is gone on with

    @property
    def name(self) -> str:
        """The run's name, which is that of its folder."""
        return self.run_dir.name

    @property
    def group(self) -> str:
        """What the run belongs to: the comparison in whose folder it lies, or else its profile."""
        folder = self.run_dir.parent
        profile = str(self.config.get("profile", "")) or "mh-pfedhn"
        if (folder / comparison.FILE).exists():
            return folder.name
        return re.sub(r"[^A-Za-z0-9._+-]+", "-", profile.rpartition("/")[2].removesuffix(".yaml"))

    def remembered(self, sink: str) -> dict[str, Any]:
        """What the sink has noted of the run that is gone on with; empty for a new one."""
        path = self.run_dir / _REMEMBERED
        if self.resume_after is None or not path.exists():
            return {}
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")).get(sink, {})
        return found

    def remember(self, sink: str, **notes: str) -> None:
        """Note what leads to the run at the sink, for those who go on with it. Raises OSError."""
        path = self.run_dir / _REMEMBERED
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        write_text(path, json.dumps(content | {sink: notes}, indent=2) + "\n")


def set_unless_given(values: Mapping[str, str]) -> None:
    """Set variables of the environment that the user has not set."""
    for name, value in values.items():
        os.environ.setdefault(name, value)
