"""Drives `flwr run`: settings, log, interrupt, and the run's real status, which its exit code does not tell."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tomlkit

from common.config import RUNS, Config
from common.files import write_text
from common.text import plain
from mh_pfedhn.private_folder import OWNER
from mh_pfedhn.processes import tool

APP_DIR = Path(__file__).resolve().parent.parent

# Flower's log lines: a coloured level, a colon, the text.
_LOG_LINE = re.compile(r"^\x1b\[\d+m(?P<level>[A-Z]+) *\x1b\[0m: +(?P<text>.*)$", re.DOTALL)
# What Flower says about federation sizes, which `simulation.federation` has chosen.
_NOISE = ("default simulated SuperNodes changed", "To change federation size", "flwr federation simulation-config")
# What Flower says of a run whose process has stopped to give signs of life.
_SILENT = "No heartbeat received from the task"


@dataclass(frozen=True)
class Ending:
    """How a run ended: Flower's status, such as `finished:completed` or `finished:failed`, None if it never started."""

    status: str | None
    interrupted: bool
    silent: bool = False  # whether the ServerApp neither completed nor said why it ended


def drive(config: Config, superlink: str, arguments: list[str], environment: Mapping[str, str]) -> Ending:
    """Run the app with these settings on a SuperLink, a connection that `flwr` knows; return when it has ended.

    `arguments` are further ones of `flwr run`. The environment names this command's own folder. The log is printed; an
    interrupt stops the run.
    """
    return _drive(config.to_run_config(), superlink, arguments, environment, str)


def drive_all(
    runs: Path, superlink: str, arguments: list[str], environment: Mapping[str, str], shown: Callable[[str], str]
) -> Ending:
    """The same with the runs of a file, one after the other (`common/config/batch.py`).

    `shown` gets each line of the log as it comes, and returns what is printed in its place.
    """
    return _drive({RUNS: str(runs)}, superlink, arguments, environment, shown)


def _drive(
    run_config: Mapping[str, object],
    superlink: str,
    arguments: list[str],
    environment: Mapping[str, str],
    shown: Callable[[str], str],
) -> Ending:
    environment = {**environment, "PYTHONUNBUFFERED": "1"}
    settings = Path(environment[OWNER], "run.toml")
    write_text(settings, tomlkit.dumps(run_config))
    command = [tool("flwr"), "run", str(APP_DIR), superlink, "--stream", "-c", str(settings), *arguments]
    run_id, interrupted = _stream(command, superlink, environment, shown)
    if run_id is None:
        return Ending(None, interrupted)
    status, details = _status(run_id, superlink, environment)
    return Ending(status, interrupted, silent=details == _SILENT)


def _stream(
    command: list[str], superlink: str, environment: Mapping[str, str], shown: Callable[[str], str]
) -> tuple[str | None, bool]:
    """Run Flower and pass its log on; the id of the run, and whether the user has interrupted it."""
    run_id, interrupted = None, False
    flower = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    with flower:
        assert flower.stdout is not None
        try:
            for line in flower.stdout:
                if started := re.search(r"Successfully started run (\d+)", line):
                    run_id = started[1]
                if not any(noise in line for noise in _NOISE):
                    print(shown(_text(line)), flush=True)
        except KeyboardInterrupt:
            interrupted = True
            flower.terminate()
            if run_id:
                subprocess.run([tool("flwr"), "stop", run_id, superlink], env=environment, check=False)
            print("mh-pfedhn: interrupted; what was computed so far is in the run's folder.", file=sys.stderr)
    return run_id, interrupted


def _text(line: str) -> str:
    """A line of Flower's log without colours or what else a terminal obeys, and without a level that says nothing."""
    found = _LOG_LINE.match(line)
    if found:
        line = found["text"] if found["level"] == "INFO" else f"{found['level']}: {found['text']}"
    return plain(line).rstrip()


def _status(run_id: str, superlink: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """Flower's status of the run when it has ended, and what Flower has to say about it."""
    command = [tool("flwr"), "list", superlink, "--run-id", run_id, "--format", "json"]
    for _ in range(20):
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
        try:
            run = json.loads(answer)["runs"][0]
            status, details = str(run["status"]), str(run["status-details"])
        except (ValueError, LookupError):
            return f"unknown, since `flwr list` answered {answer.strip()!r}", ""
        if status.startswith("finished"):
            break
        time.sleep(0.5)
    return status, details
