"""A small comparison, and run folders as runs leave them behind."""

import json

import pytest
import yaml

from mh_pfedhn.comparing.plan import make_plan
from server_app.results import comparison


@pytest.fixture
def small(tmp_path, tiny_images, monkeypatch):
    """The plan of two methods and two seeds on little data; further settings as a mapping."""
    monkeypatch.chdir(tmp_path)

    def small(more=(), **options):
        content = {"base": "quickstart", "methods": ["local", "fedavg"], "seeds": [0, 1], "num-rounds": 4}
        content |= {"dataset": "npz", "data-dir": str(tiny_images), "num-clients": 2, "models": "lenet"}
        content |= {"classes-per-client": 2, "device": "cpu"} | dict(more)
        return make_plan(content, {}, **{"name": "small"} | options)

    return small


@pytest.fixture
def leave():
    """Leave the folder of a run behind, with so many rounds of so many seconds, and finished if asked."""

    def leave(run, rounds=4, seconds=1.0, *, finished=True, checkpoint=0, start=0.0):
        folder = run.config.run_dir
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(run.config.to_dict()))
        lines = [line_of(number, seconds, start) for number in range(1, rounds + 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if finished:
            (folder / "summary.json").write_text("{}")
        if checkpoint:
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / f"round-{checkpoint:06}.pt").write_text("")
        return folder

    return leave


def line_of(number, seconds, start=0.0):
    from server_app.results.metrics import METRIC_KEYS

    of_first = {"start": start} if start and number == 1 else {}
    own = {"round": number, "seconds": {"total": seconds} | of_first, "wall-seconds": start + number * seconds}
    return dict.fromkeys(METRIC_KEYS) | own


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn of a comparison, in the place of tables and pictures: the folders, one a drawing."""
    folders = []
    monkeypatch.setattr(comparison, "write_comparison", folders.append)
    monkeypatch.setattr(comparison, "read_comparison", FakeComparison)
    return folders


class FakeComparison:
    def __init__(self, folder):
        self.folder = folder

    def table(self):
        return f"the table of {self.folder.name}"
