"""Simulations in which nothing is learned any more end, say why, and keep what was learned before."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from flower_processes import BIN, environment, metrics, run

from server_app import checkpoint

pytestmark = pytest.mark.e2e

SMALL = [
    *("num-clients=3", "models=lenet", "max-samples-per-class=8", "hidden-dim=8", "local-epochs=1", "run-name=run"),
    *("chunk-size=2048", "checkpoint-every=1000"),
]
WORDS = [str(BIN / "python"), "-m", "mh_pfedhn", "run", "-c", *SMALL]


def test_a_learning_rate_at_which_all_clients_diverge_ends_the_run_after_three_rounds(tmp_path: Path) -> None:
    env = environment(tmp_path / "flwr")
    done = run(*WORDS, "client-lr=1e8", "num-rounds=30", env=env, cwd=tmp_path)
    assert done.returncode == 1
    assert "The run gives up after round 3: 3 rounds in a row (give-up-after) brought not one good" in done.stdout
    assert re.search(r"training update \((not-finite|huge-norm) \d times", done.stdout)
    folder = tmp_path / "results" / "run"
    assert checkpoint.load(folder).server_round == 3
    assert run(*WORDS, "num-rounds=5", "resume=latest", env=env, cwd=tmp_path).returncode == 0
    assert [line["clients"] for line in metrics(folder)] == [0, 0, 0, 3, 3]


@pytest.mark.slow
def test_workers_that_hang_end_the_run_instead_of_every_later_round(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*WORDS, "num-rounds=500", "deadline=10"],
            cwd=tmp_path,
            env=environment(tmp_path / "flwr"),
            stdout=file,
            stderr=file,
        )
    family: list[psutil.Process] = []
    try:
        ends = time.monotonic() + 200
        while b"round   2/500" not in log.read_bytes():
            assert process.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
        actors = [each for each in family if "ClientAppActor" in " ".join(each.cmdline())]
        assert actors
        for actor in actors:
            actor.send_signal(signal.SIGSTOP)
        assert process.wait(timeout=300) == 1
    finally:
        for each in family:  # what is stopped ends by nothing else
            if each.is_running() and each.status() == psutil.STATUS_STOPPED:
                each.kill()
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
        print(log.read_text()[-3000:])
    assert "3 rounds in a row (give-up-after) brought not one good training update" in log.read_text()
    assert checkpoint.load(tmp_path / "results" / "run").server_round >= 5
