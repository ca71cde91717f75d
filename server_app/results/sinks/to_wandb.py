"""A run's numbers in Weights & Biases, through its own client; in files, unless the user has logged in or says else."""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from common.errors import UserError
from server_app.results.sinks.base import LoggedRun, set_unless_given

# Flower's, since that is what is printed.
logger = logging.getLogger("flwr")

_DEFAULTS = {
    "WANDB_INIT_TIMEOUT": "30",  # seconds, as the next one
    "WANDB_FINISH_TIMEOUT": "60",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_CONSOLE": "off",  # Flower's log is its own affair
    "WANDB_SILENT": "true",
    "WANDB_DISABLE_GIT": "true",  # the app runs from Flower's copy
    "WANDB_DISABLE_CODE": "true",
}


def check_login() -> None:
    """Raise UserError where Weights & Biases would ask for a key, in a process that has nobody to ask."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("online", "shared") and not _has_key():
        raise UserError(
            f"log-to names wandb and WANDB_MODE is {mode!r}, but there is no key: run `wandb login`, set "
            "WANDB_API_KEY, or leave WANDB_MODE away, and files are written that `wandb sync` sends later."
        )


class Wandb:
    """One run of Weights & Biases: the settings as its config, a step a round.

    Off line nothing can be added to the files of an earlier process, and of files with one id those that are synced
    later replace the others. So a run that is gone on with keeps its id, and its earlier rounds are written once more:
    the newest files, and what is on line, are then the whole run.
    """

    def __init__(self, run: LoggedRun) -> None:
        set_unless_given(_DEFAULTS)
        import wandb

        self._id = run.remembered("wandb").get("run-id") or secrets.token_hex(4)
        run.remember("wandb", **{"run-id": self._id})
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run.group.replace("+", "-"),
            name=os.environ.get("WANDB_NAME") or run.name,
            id=self._id,
            config=dict(run.config),
            dir=os.environ.get("WANDB_DIR") or str(run.run_dir),
            mode=None if os.environ.get("WANDB_MODE") or _has_key() else "offline",
            reinit="create_new",  # there may be several runs in one process
        )
        where = self._run.url or f"files in {Path(self._run.dir).parent}, which `wandb sync` sends"
        logger.info("Logging to Weights & Biases: run %s (%s), %s.", run.name, self._id, where)

    def catch_up(self, rounds: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Write these rounds once more."""
        for round_number, numbers in rounds:
            self.add(round_number, numbers)

    def add(self, round_number: int, numbers: Mapping[str, float]) -> None:
        """Add a round."""
        self._run.log(dict(numbers), step=round_number, commit=True)

    def close(self, best: Mapping[str, float] | None) -> None:
        """Say how the run has ended, and wait, for a while, until all is sent; its best numbers go into its summary."""
        self._run.summary.update(dict(best or {}))
        self._run.finish(exit_code=1 if best is None else 0)


def _has_key() -> bool:
    """Whether the user has logged in, in one of the ways that the client knows."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    places = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for path in (Path(place).expanduser() for place in places):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(path).authenticators(server):
                return True
    return False
