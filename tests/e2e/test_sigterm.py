"""A real ServerApp that gets a real SIGTERM saves the last complete round, exactly, whatever it is doing."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from consortium import Consortium
from flower_processes import BIN, environment, metrics, run

from server_app import checkpoint

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# A method like the first, on a disk so slow that Flower's 5 s for the end of a process are over before a file is there.
SLOW = """
import time

from server_app import checkpoint
from server_app.methods.mh_pfedhn_gd import MHpFedHNGD

write = checkpoint.write_tensors

def write_slowly(path, content):
    (path.parent / "writing").touch()
    time.sleep(8)
    write(path, content)

checkpoint.write_tensors = write_slowly

class Slow(MHpFedHNGD):
    client = "client_app.methods.mh_pfedhn_gd:MHpFedHNGD"
"""
SETTINGS = [
    *("method=slow_disk:Slow", "num-clients=3", "models=lenet,mlp", "global-model=mlp", "max-samples-per-class=8"),
    *("chunk-size=2048", "hidden-dim=8", "local-epochs=1", "checkpoint-every=1000"),
]


def terminate(parent: int, words: str) -> None:
    """Send SIGTERM to the process below this one whose command line has these words."""
    family = psutil.Process(parent).children(recursive=True)
    (found,) = [each for each in family if words in " ".join(each.cmdline()[:2])]
    found.send_signal(signal.SIGTERM)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def assert_same_learned(stopped: Path, quiet: Path) -> None:
    found, expected = checkpoint.load(stopped), checkpoint.load(quiet)
    assert found.server_round == expected.server_round
    assert same(found.method, expected.method)


def test_a_simulation_saves_one_round_though_its_loop_goes_on_while_it_writes(tmp_path: Path) -> None:
    (tmp_path / "slow_disk.py").write_text(SLOW)
    env, words = environment(tmp_path / "flwr"), [str(BIN / "python"), "-m", "mh_pfedhn", "run", "-c", *SETTINGS]
    log, stopped = tmp_path / "log", tmp_path / "results" / "stopped"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*words, "run-name=stopped", "num-rounds=500"], cwd=tmp_path, env=env, stdout=file, stderr=file
        )
    try:
        ends = time.monotonic() + 200
        while b"round   4/500" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.05)
        terminate(process.pid, "flwr-simulation")
        assert process.wait(timeout=120) == 1
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
        print(log.read_text()[-3000:])
    assert (stopped / "checkpoints" / "writing").exists()
    saved = checkpoint.load(stopped).server_round
    assert saved >= 4
    assert run(*words, "run-name=quiet", f"num-rounds={saved}", env=env, cwd=tmp_path).returncode == 0
    assert_same_learned(stopped, tmp_path / "results" / "quiet")


def test_a_deployment_saves_the_last_complete_round_while_it_waits_for_a_site(consortium: Consortium) -> None:
    consortium.start_server()
    consortium.start_site("a", width=24, ward=0)
    consortium.start_site("b", width=40, ward=1)
    settings = {"checkpoint_every": 1000, "min_clients": 2}
    consortium.begin_run(50, run_name="stopped", **settings)
    stopped = consortium.home / "results" / "stopped"
    consortium.until_says("stopped", "round   2/50", within=200)
    consortium.hold("a")
    time.sleep(3)
    terminate(consortium.processes["server"].pid, "flwr-serverapp")
    assert consortium.ended("stopped", within=120) == 1
    consortium.release("a")
    saved = checkpoint.load(stopped).server_round
    assert saved == len(metrics(stopped)) + 1  # what it led to is tested in the round that was interrupted
    assert consortium.run_profile(saved, run_name="quiet", **settings).returncode == 0
    assert_same_learned(stopped, consortium.home / "results" / "quiet")
    assert consortium.run_profile(saved + 1, run_name="stopped", resume="latest", **settings).returncode == 0
    assert [line["failures"] for line in metrics(stopped)] == [{}] * (saved + 1)
