"""A simulation all of whose processes are killed with -9, at random moments, again and again."""

import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from flower_processes import BIN, environment, kill_all, metrics

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KILLS = 20
ROUNDS = 200
# Batch norm in one architecture, a layer kept local in the other, Adam's state, cohorts: all that a resumed run needs.
SETTINGS = [
    *("num-clients=3", "models=resnet10,lenet/keep-output", "participation=0.67", "max-samples-per-class=8"),
    *("chunk-size=2048", "hidden-dim=8", "local-epochs=1", "checkpoint-every=1", f"num-rounds={ROUNDS}"),
]


def begin(folder: Path, name: str) -> subprocess.Popen[bytes]:
    words = ["run", "-c", *SETTINGS, f"run-name={name}", "resume=latest"]
    with (folder / f"{name}.log").open("ab") as log:
        log.truncate(0)
        return subprocess.Popen(
            [str(BIN / "mh-pfedhn"), *words],
            cwd=folder,
            env=environment(folder / "flwr"),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def kill_later(process: subprocess.Popen[bytes], log: Path, rounds: int, seconds: float) -> bool:
    """Kill so many seconds after so many rounds, or after the clients are there; whether the run was still going on."""

    def is_due() -> bool:
        written = log.read_bytes()
        return b"rounds, results in" in written and written.count(b"Checkpoint: ") >= rounds

    while not is_due():
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    time.sleep(seconds)
    if process.poll() is not None:
        return False
    kill_all(process)
    return True


def timeless(folder: Path) -> list[dict[str, Any]]:
    return [{key: line[key] for key in line if "seconds" not in key} for line in metrics(folder)]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that the run left: the last checkpoint, personal models, what clients have kept."""
    found: dict[str, torch.Tensor] = {}

    def gather(name: str, content: object) -> None:
        if isinstance(content, torch.Tensor):
            found[name] = content
        elif isinstance(content, dict):
            for key, value in content.items():
                gather(f"{name}/{key}", value)

    paths = [folder / "checkpoints" / f"round-{ROUNDS:06}.pt"]
    paths += [*folder.glob("clients/*/personal-model.pt"), *folder.glob("clients/*/kept.*.pt")]
    for path in paths:
        gather(str(path.relative_to(folder)), torch.load(path, map_location="cpu", weights_only=True))
    return found


def test_a_simulation_that_is_killed_twenty_times_ends_bit_for_bit_as_one_that_was_not(tmp_path: Path) -> None:
    moments = random.Random(4)
    done = begin(tmp_path, "whole")
    try:
        assert done.wait(timeout=600) == 0
        kills = 0
        while True:
            done = begin(tmp_path, "killed")
            if kills == KILLS:
                break
            rounds, seconds = moments.randrange(4), moments.uniform(0, 1.5)
            assert kill_later(done, tmp_path / "killed.log", rounds, seconds), (tmp_path / "killed.log").read_text()
            kills += 1
            path = tmp_path / "results" / "killed" / "metrics.jsonl"
            known = len(path.read_bytes().splitlines()) if path.exists() else 0
            print(f"killed {seconds:.2f} s after {rounds} rounds of this start; {known} rounds are in the metrics")
        assert done.wait(timeout=600) == 0
    finally:
        if done.poll() is None:
            kill_all(done)
    whole, killed = tmp_path / "results" / "whole", tmp_path / "results" / "killed"
    assert [line["round"] for line in timeless(killed)] == list(range(1, ROUNDS + 1))
    assert timeless(killed) == timeless(whole)
    expected, found = tensors(whole), tensors(killed)
    assert expected.keys() == found.keys()
    assert any("adam" in name for name in expected)
    assert any("running_mean" in name for name in expected)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
