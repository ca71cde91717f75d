"""Helpers that start real Flower processes on loopback and stop them by their process ids."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.cli import APP_DIR, _free_port, _wait_until_healthy

BIN = Path(sys.executable).parent


def environment(home: Path, **extra: str) -> dict[str, str]:
    """This process's environment with a Flower home of its own."""
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    return {**os.environ, **quiet, "FLWR_HOME": str(home), "PATH": path, **extra}


def run(
    *command: str | Path, env: Mapping[str, str], cwd: Path, timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """Run to the end; its output is printed, so that pytest shows it when the test fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)
    print(done.stdout, done.stderr, sep="\n--- stderr ---\n")
    return done


@contextlib.contextmanager
def process(command: list[str], log: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs until the block ends."""
    with log.open("wb") as file:
        started = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(timeout=20)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@contextlib.contextmanager
def superlink(home: Path, *arguments: str, **extra: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A SuperLink; yields its address and an environment in which it is the connection `federation`."""
    home.mkdir(parents=True)
    port = _free_port()
    env = environment(home, **extra)
    connection = (
        f'[superlink]\ndefault = "federation"\n[superlink.federation]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    (home / "config.toml").write_text(connection)
    command = [str(BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(port), *arguments]
    with process(command, home / "superlink.log", env) as started:
        _wait_until_healthy(started, port, home / "superlink.log")
        yield f"127.0.0.1:{port}", env


@contextlib.contextmanager
def supernode(address: str, name: str, node_config: str, home: Path, env: Mapping[str, str]) -> Iterator[None]:
    """A SuperNode that is connected to a SuperLink."""
    command = [str(BIN / "flower-supernode"), "--insecure", "--superlink", address, "--host", "127.0.0.1"]
    command += ["--port", str(_free_port()), "--node-config", node_config]
    with process(command, home / f"{name}.log", env):
        yield


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


__all__ = ["APP_DIR", "BIN", "environment", "metrics", "process", "run", "superlink", "supernode"]
