"""Plays several runs of one simulation, one after the other: its workers, and what they have read, serve all of them.

A run that fails ends the batch, since its workers may be what is wrong. `mh-pfedhn compare`, which has begun it, finds
the reason in a file beside that of the runs, and starts another simulation for the rest.
"""

import gc
import json
from collections.abc import Callable, Mapping
from logging import INFO
from pathlib import Path

from flwr.common import log

from common.config import RUNS, Config, load_run_config
from common.config.batch import run_configs
from common.errors import UserError
from common.files import write_text
from common.text import printable

# By these lines of the log the command knows where a batch is.
BEGINS = "Run %s begins."
COMPLETE = "Run %s is complete."

_FAILURE = "failure.json"


def play(run_config: Mapping[str, object], serve: Callable[[Config], None]) -> None:
    """Serve each of these runs to its end. Raises whatever ends one, once it is written down."""
    for run_name, own in run_configs(run_config).items():
        log(INFO, BEGINS, run_name)
        try:
            serve(load_run_config(own))
        except Exception as error:
            words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            content = json.dumps({"run": run_name, "reason": printable(words, 2000)})
            write_text(_path(Path(str(run_config[RUNS]))), content)
            raise
        log(INFO, COMPLETE, run_name)
        # The parts of a run's strategy refer to each other, so that it goes when the collector looks, and not before: a
        # hypernetwork with its moments may be half of the memory that the next run needs.
        gc.collect()


def failure(runs: Path) -> tuple[str, str] | None:
    """The run of this file's batch that has failed and why, in words; None where none did, or none could say so."""
    try:
        found = json.loads(_path(runs).read_text())
        return str(found["run"]), str(found["reason"])
    except (OSError, ValueError, KeyError):
        return None


def _path(runs: Path) -> Path:
    return runs.with_name(f"{runs.stem}-{_FAILURE}")
