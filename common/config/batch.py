"""Several runs that one simulation plays one after the other: Flower's run config then names a file that holds theirs.

The command writes it, and both apps read it: the ServerApp plays its runs in order, a client finds the one that a
message belongs to by its name.
"""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from common.config.run import RUNS, Config
from common.errors import UserError
from common.files import write_text


def write_runs(path: Path, configs: Iterable[Config]) -> None:
    """Write the file of these runs, each with a run-name of its own. It is not changed while they are played."""
    write_text(path, json.dumps([config.to_run_config() for config in configs]))


def is_batch(run_config: Mapping[str, object]) -> bool:
    """Whether what Flower hands to its apps names a file of several runs."""
    return bool(run_config.get(RUNS))


def run_configs(run_config: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """What Flower would hand to its apps in each of these runs alone, by run-name and in order. Raises UserError."""
    return _read(str(run_config[RUNS]))


@lru_cache(maxsize=1)
def _read(path: str) -> dict[str, dict[str, object]]:
    try:
        return {str(run["run-name"]): run for run in json.loads(Path(path).read_text())}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{RUNS} is {path!r}, but that is no file of runs: `mh-pfedhn compare` writes it, and sets this key itself."
        ) from error
