"""Runs of a few rounds: trackers whose clock is in the test's hand, and folders to be read."""

import pytest
from small_runs import CONFIG, SECONDS, of_data

from common.evaluation import Evaluation
from server_app.results import RoundRecord, RunTracker, tracking


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def drawings(monkeypatch, clock):
    """Replaces drawing by a note of when it happened; `drawings.length` is how long one takes."""

    class Drawings(list):
        length = 0.0

    drawings = Drawings()

    def draw(run_dir):
        drawings.append(clock.now)
        clock.now += drawings.length

    monkeypatch.setattr(tracking, "write_report", draw)
    return drawings


@pytest.fixture
def tracker(tmp_path, clock, drawings):
    tracker = RunTracker(tmp_path / "small", CONFIG, num_rounds=4, clock=clock)
    tracker.add_client("a", 1000, 2, "lenet")
    tracker.add_client("b", 1000, 2, "lenet")
    tracker.add_client("c", 2500, 5, "mlp")
    return tracker


@pytest.fixture
def adapting(tmp_path, clock, drawings):
    """A run in which a and b are new and c is known."""
    tracker = RunTracker(tmp_path / "adapting", CONFIG | {"mode": "adapt"}, num_rounds=4, clock=clock)
    tracker.add_client("a", 1000, 2, "lenet")
    tracker.add_client("b", 2500, 5, "mlp")
    tracker.add_client("c", 2500, 5, "mlp", known=True)
    return tracker


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Returns a function that leaves the folder of a run, without the page."""

    def make(keys=("a", "b"), rounds=3, finish=True, evaluate=True, failures=(), class_names=("cat", "dog"), chunks=79):
        monkeypatch.setattr(tracking, "write_report", lambda run_dir: None)
        tracker = RunTracker(tmp_path / "run", CONFIG | {"num-rounds": 3, "seed": 11}, num_rounds=3)
        if class_names:
            tracker.set_data(*of_data({key: list(range(len(class_names))) for key in keys}, class_names))
        for index, key in enumerate(keys):
            tracker.add_client(key, 239_856 + index, chunks, ("lenet", "mlp")[index % 2])
        for number in range(1, rounds + 1):
            evaluations = {key: Evaluation(number % 3 + index, 1000, 1.0) for index, key in enumerate(keys)}
            tracker.log_round(
                RoundRecord(
                    number,
                    evaluations if evaluate else {},
                    {key: (2.0, 20) for key in keys},
                    list(failures),
                    1_500_000,
                    750_000,
                    dict(SECONDS),
                )
            )
        if finish:
            tracker.finish()
        return tracker.run_dir

    return make


@pytest.fixture
def make_adapt_run(tmp_path, monkeypatch):
    """Returns a function that leaves the folder of a run of two rounds in which k and l are known, a, b and c new."""

    def make(evaluated="abckl", known="kl", **changes):
        monkeypatch.setattr(tracking, "write_report", lambda run_dir: None)
        tracker = RunTracker(tmp_path / "run", CONFIG | {"mode": "adapt", "num-rounds": 2}, num_rounds=2)
        for key, architecture in {"k": "vgg8", "a": "lenet", "b": "mlp", "c": "lenet", "l": "lenet"}.items():
            tracker.add_client(key, 1000, 2, architecture, known=key in known)
        for number, correct in enumerate([(2, 4, 6, 90, 60), (4, 8, 12, 90, 72)], start=1):
            evaluations = {
                key: Evaluation(right, total, 1.0)
                for key, right, total in zip("abckl", correct, (20, 20, 20, 100, 100), strict=True)
                if key in evaluated
            }
            tracker.log_round(RoundRecord(number, evaluations, {"a": (2.0, 20)}, seconds=dict(SECONDS), **changes))
        tracker.finish()
        return tracker.run_dir

    return make
