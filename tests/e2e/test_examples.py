"""The examples, run as their docstrings say, for two rounds each."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from flower_processes import APP_DIR, BIN, environment, run

from server_app.results import read_run

pytestmark = pytest.mark.e2e


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A copy, so that nothing is written into the checkout."""
    ignored = shutil.ignore_patterns("results", "__pycache__")
    return shutil.copytree(APP_DIR / "examples", tmp_path / "examples", ignore=ignored)


def test_the_writers_train_a_lenet_and_the_users_own_transformer(examples: Path, tmp_path: Path) -> None:
    env, here = environment(tmp_path / "flwr"), examples / "writers"
    done = run(sys.executable, "run.py", "2", env=env, cwd=here)
    assert done.returncode == 0
    (run_dir,) = (here / "results").iterdir()
    found = read_run(run_dir)
    assert {(row.architecture, row.owner) for row in found.clients} == {
        (("lenet", "my_nets:vit")[place % 2], f"writer-{place:02}") for place in range(12)
    }
    assert [(line["clients"], line["failures"]) for line in found.metrics] == [(12, {}), (12, {})]
    table = done.stdout[done.stdout.index("first-accuracy") :]
    assert all(f"{row.owner} " in table and f"{row.last_accuracy:.6f}" in table for row in found.clients)


def test_the_comparison_is_drawn_and_a_model_of_it_used_in_plain_pytorch(examples: Path, tmp_path: Path) -> None:
    env = environment(tmp_path / "flwr")
    done = run(sys.executable, "examples/compare.py", "2", env=env, cwd=tmp_path)
    assert done.returncode == 0
    folder = tmp_path / "results" / "example-2-rounds"
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    gains = done.stdout[done.stdout.index("(means over seeds") :]
    assert all(name in gains for name in ("fedavg", "mh-pfedhn", "count   20.0"))

    run_dir = folder / "mh-pfedhn-quickstart-0"
    assert (
        run(BIN / "mh-pfedhn", "export", run_dir, "0", "--output", "model.pt2", env=env, cwd=tmp_path).returncode == 0
    )
    # In a Python that cannot find this project: it has only PyTorch's folder.
    alone = {"PATH": env["PATH"], "PYTHONPATH": str(Path(torch.__file__).parents[1])}
    use = [sys.executable, "-S", "examples/use_model.py"]
    done = run(*use, run_dir / "clients" / "0", "model.pt2", env=alone, cwd=tmp_path)
    assert done.returncode == 0
    assert "both ways give the same logits" in done.stdout
    done = run(*use, run_dir / "clients" / "1", "model.pt2", env=alone, cwd=tmp_path)
    assert done.returncode == 1
    assert "has mlp" in done.stderr
