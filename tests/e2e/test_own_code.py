"""Own models, data and loss in a simulation: the example of docs/settings.md, run as its reader runs it."""

import shutil
from pathlib import Path

import pytest
import yaml
from flower_processes import BIN, environment, metrics, run
from test_docs import SETTINGS, blocks

from server_app.results import read_run


@pytest.mark.e2e
def test_the_example_of_the_docs_runs_and_is_repeated_from_another_folder(tmp_path: Path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        for name, content in blocks(SETTINGS, "python"):
            if name:
                (folder / name).write_text(content)
    (here / "visits.yaml").write_text(dict(blocks(SETTINGS, "yaml"))["visits.yaml"])
    env = environment(tmp_path / "home")
    small = ["num-clients=6", "num-rounds=2", "local-epochs=1"]
    done = run(BIN / "mh-pfedhn", "run", "visits.yaml", "-c", *small, "run-name=first", env=env, cwd=here)
    assert done.returncode == 0
    assert "my_nets:small" in done.stdout  # of the table
    first = here / "results" / "first"
    lines = metrics(first)
    assert [(line["clients"], line["failures"]) for line in lines] == [(6, {}), (6, {})]
    rows = read_run(first).clients
    assert {row.architecture for row in rows} == {"my_nets:small", "my_nets:large"}
    assert all(row.owner.startswith("hospital-") and row.train_samples + row.test_samples == 100 for row in rows)
    assert yaml.safe_load((first / "config.yaml").read_text())["loss"] == "my_nets:focal"

    shutil.rmtree(here / "__pycache__", ignore_errors=True)
    words = [BIN / "mh-pfedhn", "run", first / "config.yaml", "-c", "run-name=again", f"results-dir={there}"]
    assert run(*words, env=env, cwd=there).returncode == 0
    assert [line["accuracy-mean"] for line in metrics(there / "again")] == [line["accuracy-mean"] for line in lines]
