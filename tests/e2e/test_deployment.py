"""One SuperLink and three SuperNodes as separate processes on loopback."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from flower_processes import APP_DIR, BIN, metrics, run, superlink, supernode

pytestmark = pytest.mark.e2e


def test_three_supernodes_with_three_architectures_finish_two_rounds(tmp_path: Path):
    home = tmp_path / "home"
    settings = [
        "models=lenet,vgg8,resnet10",
        "max-samples-per-class=12",
        "num-rounds=2",
        "min-clients=3",
        "hidden-dim=8",
        f"data-dir={APP_DIR / 'data'}",
        f"results-dir={tmp_path / 'results'}",
        "run-name=run",
    ]
    with superlink(home) as (address, env), ExitStack() as nodes:
        for i in range(3):
            nodes.enter_context(supernode(address, f"node-{i}", f"partition-id={i} num-partitions=3", home, env))
        done = run(
            BIN / "mh-pfedhn", "run", "quickstart", "-c", *settings, "--superlink", "federation", env=env, cwd=tmp_path
        )
    for log in sorted(home.glob("*.log")):
        print(f"--- {log.name} ---\n{log.read_text()[-3000:]}")
    assert done.returncode == 0
    lines = metrics(tmp_path / "results" / "run")
    assert [line["round"] for line in lines] == [1, 2]
    for line in lines:
        assert line["failures"] == {}
        assert set(line["client-train-loss"]) == set(line["client-accuracy"]) == {"0", "1", "2"}
    # Without a simulation the server knows K, but no architecture.
    clients = (tmp_path / "results" / "run" / "clients.csv").read_text()
    assert '"K = 233,718"' in clients
    assert "lenet" not in clients
