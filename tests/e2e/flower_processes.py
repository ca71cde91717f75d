"""Helpers that start real Flower processes on loopback."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from mh_pfedhn.flower_run import APP_DIR
from mh_pfedhn.processes import flower_environment, free_port, running, tool, wait_until_healthy

BIN = Path(sys.executable).parent


def environment(home: Path, **extra: str) -> dict[str, str]:
    """This process's environment with a Flower home of its own."""
    return {**flower_environment(os.environ), "FLWR_HOME": str(home), **extra}


def run(
    *command: str | Path, env: Mapping[str, str], cwd: Path, timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """Run to the end; its output is printed, so that pytest shows it when the test fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)
    print(done.stdout, done.stderr, sep="\n--- stderr ---\n")
    return done


@contextlib.contextmanager
def superlink(home: Path, *arguments: str, **extra: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A SuperLink; yields its address and an environment in which it is the connection `federation`."""
    home.mkdir(parents=True)
    port = free_port()
    env = environment(home, **extra)
    connection = (
        f'[superlink]\ndefault = "federation"\n[superlink.federation]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    (home / "config.toml").write_text(connection)
    command = [tool("flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(port), *arguments]
    with running(command, home / "superlink.log", env) as started:
        wait_until_healthy(started, port, home / "superlink.log")
        yield f"127.0.0.1:{port}", env


@contextlib.contextmanager
def supernode(address: str, name: str, node_config: str, home: Path, env: Mapping[str, str]) -> Iterator[None]:
    """A SuperNode that is connected to a SuperLink."""
    command = [tool("flower-supernode"), "--insecure", "--superlink", address, "--host", "127.0.0.1"]
    command += ["--port", str(free_port()), "--node-config", node_config]
    with running(command, home / f"{name}.log", env):
        yield


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """What a power failure does: command, SuperLink, ServerApp, Ray and its workers, at once."""
    parent = psutil.Process(process.pid)
    family = [parent, *parent.children(recursive=True)]
    for each in family:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)
    process.wait(timeout=30)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


__all__ = ["APP_DIR", "BIN", "environment", "kill_all", "metrics", "run", "superlink", "supernode"]
