"""How far a comparison is: which run a line of the log is of, and the time that is left for all of them.

The time is an estimate from the rounds that are done: the mean seconds a round of the same method in the same setting,
where some are known, else the mean of those that are.
"""

import contextlib
import re
import time
from collections.abc import Callable, Sequence

from common.errors import UserError
from mh_pfedhn.comparing.plan import PlannedRun
from server_app import batch, checkpoint
from server_app.results import format_duration
from server_app.results.reading import read_metrics

_BEGINS = re.compile(batch.BEGINS.replace("%s", r"(\S+)"))
_COMPLETE = re.compile(batch.COMPLETE.replace("%s", r"(\S+)"))
_ROUND = re.compile(r"round +(\d+)/\d+ \| ")  # as `RunTracker.progress_line` begins


class Progress:
    """Reads the log of a comparison's simulations, and says how far the whole is.

    Parameters
    ----------
    runs
        All of the comparison, in order.
    finished
        Names of those that are finished already.
    when_complete
        Called with a run when the log says that it is complete.
    clock
        Seconds that never go backwards.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        finished: set[str],
        when_complete: Callable[[PlannedRun], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runs = list(runs)
        self._by_name = {run.name: run for run in runs}
        self._done = set(finished)
        self._when_complete = when_complete
        self._clock = clock
        self._known: dict[tuple[str, str], list[tuple[float, int]]] = {}  # seconds and rounds, of each finished run
        self._current: PlannedRun | None = None
        self._first: tuple[int, float] | None = None  # the first round of it that was seen here, and when
        self._last: tuple[int, float] | None = None
        for run in runs:
            if run.name in self._done:
                self._learn(run)

    def shown(self, line: str) -> str:
        """What is printed for a line of the log."""
        if (found := _BEGINS.fullmatch(line)) and found[1] in self._by_name:
            self._begin(self._by_name[found[1]])
            return self._told("begins")
        if (found := _COMPLETE.fullmatch(line)) and found[1] in self._by_name:
            run = self._by_name[found[1]]
            self.end(run, finished=True)
            self._when_complete(run)
            return self._told("is complete", run)
        if self._current and (found := _ROUND.match(line)):
            self._last = int(found[1]), self._clock()
            self._first = self._first or self._last
            return self._told(line)
        return line

    def end(self, run: PlannedRun, *, finished: bool) -> None:
        """Note that a run will not go on any more: it is finished, or has failed."""
        if run.name in self._done:
            return
        self._done.add(run.name)
        if finished:
            self._learn(run)
        if run is self._current:
            self._current = None

    def left(self) -> float | None:
        """Seconds that are left for all runs; None while there is nothing to judge by."""
        known = {kind: list(each) for kind, each in self._known.items()}
        if self._current and (pace := self._pace()):
            known.setdefault(_kind(self._current), []).append(pace)
        rates = {kind: sum(seconds for seconds, _ in each) / sum(n for _, n in each) for kind, each in known.items()}
        if not rates:
            return None
        usual = sum(rates.values()) / len(rates)
        return sum(
            rates.get(_kind(run), usual) * self._rounds_left(run) for run in self._runs if run.name not in self._done
        )

    def _begin(self, run: PlannedRun) -> None:
        self._current, self._first, self._last = run, None, None

    def _pace(self) -> tuple[float, int] | None:
        """Seconds and rounds of the run under way, since the first round that was seen."""
        if not self._first or not self._last or self._last[0] == self._first[0]:
            return None
        return self._last[1] - self._first[1], self._last[0] - self._first[0]

    def _rounds_left(self, run: PlannedRun) -> int:
        if run is self._current and self._last:
            return run.config.num_rounds - self._last[0]
        # A run that was interrupted goes on from its checkpoint.
        done = checkpoint.rounds(run.config.run_dir)
        return run.config.num_rounds - max(done, default=0)

    def _learn(self, run: PlannedRun) -> None:
        """Take the seconds of a finished run from its files: with checkpoints, without what round 1 waited for."""
        with contextlib.suppress(UserError):
            lines = read_metrics(run.config.run_dir / "metrics.jsonl")
            if lines:
                seconds = lines[-1]["wall-seconds"] - lines[0]["seconds"].get("start", 0.0)
                self._known.setdefault(_kind(run), []).append((seconds, len(lines)))

    def _told(self, what: str, run: PlannedRun | None = None) -> str:
        run = run or self._current
        assert run is not None
        parts = [f"run {self._runs.index(run) + 1} of {len(self._runs)}", run.title, what]
        left = self.left()
        if left:
            parts.append(f"{format_duration(left)} left in all")
        return " | ".join(parts)


def _kind(run: PlannedRun) -> tuple[str, str]:
    return run.method, run.setting
