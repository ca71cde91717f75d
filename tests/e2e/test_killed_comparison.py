"""A comparison whose command is killed with -9, started again: all runs are there, each as if nobody had killed it."""

import subprocess
import time
from pathlib import Path

import pytest
import yaml
from flower_processes import BIN, environment, kill_all, metrics, run

pytestmark = pytest.mark.e2e

COMPARISON = {
    "base": "quickstart",
    "methods": {"mh-pfedhn": {"hidden-dim": 8, "chunk-size": 2048}, "fedavg": None},
    "seeds": [0, 1],
    "num-clients": 2,
    "models": "lenet",
    "max-samples-per-class": 12,
    "num-rounds": 6,
    "checkpoint-every": 2,
}
RUNS = ["fedavg-quickstart-0", "fedavg-quickstart-1", "mh-pfedhn-quickstart-0", "mh-pfedhn-quickstart-1"]


def timeless(folder: Path) -> list[dict[str, object]]:
    return [{key: line[key] for key in line if "seconds" not in key} for line in metrics(folder)]


def test_a_comparison_that_is_killed_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(COMPARISON, sort_keys=False))
    env, command = environment(tmp_path / "flwr"), [str(BIN / "mh-pfedhn"), "compare", "small.yaml"]
    results, log = tmp_path / "results" / "small", tmp_path / "log"
    with log.open("wb") as file:
        killed = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=file, stderr=file)
    second = results / "fedavg-quickstart-0" / "metrics.jsonl"
    try:
        ends = time.monotonic() + 200
        while not second.exists() or len(second.read_bytes().splitlines()) < 3:
            assert killed.poll() is None, log.read_text()
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.02)
    finally:
        kill_all(killed)
    first = results / "mh-pfedhn-quickstart-0" / "metrics.jsonl"
    before = first.stat().st_mtime_ns

    done = run(*command, env=env, cwd=tmp_path)
    assert done.returncode == 0
    assert first.stat().st_mtime_ns == before  # what was finished was not touched
    assert sorted(path.parent.name for path in results.glob("*/summary.json")) == RUNS
    assert not list(results.glob("*/checkpoints"))
    assert "run 4 of 4 | fedavg, quickstart, seed 1 | " in done.stdout
    assert done.stdout.count("Starting Flower Simulation") == 1

    for name in RUNS:
        method, _, seed = name.rpartition("-quickstart-")
        single = [str(BIN / "mh-pfedhn"), "run", str(results / name / "config.yaml"), "-c", f"run-name={name}"]
        if name in RUNS[::3]:  # one of each method, alone
            assert run(*single, f"results-dir={tmp_path / 'alone'}", env=env, cwd=tmp_path).returncode == 0
            assert timeless(results / name) == timeless(tmp_path / "alone" / name), (method, seed)
        assert [line["round"] for line in metrics(results / name)] == list(range(1, 7))
        assert [line["failures"] for line in metrics(results / name)] == [{}] * 6

    again = run(*command, env=env, cwd=tmp_path)
    assert again.returncode == 0
    assert "4 runs, 4 of them finished" in again.stdout
    assert "Starting Flower" not in again.stdout
