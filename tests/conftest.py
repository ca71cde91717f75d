"""A data set and a run config small enough for tests which train real models, and a clock for those which wait."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small gain nothing from threads, and on busy cores threads that wait for each other take minutes."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_exit_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower keeps what is to be called at the end of the process, and a strategy with it: here there are hundreds."""
    from server_app import strategy

    monkeypatch.setattr(strategy, "at_the_end", lambda save: contextlib.nullcontext())


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of 160 noisy colour images of 8 x 8, 40 of each of four classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 4
    patterns = rng.integers(0, 256, (4, 8, 8, 3))
    images = 0.6 * patterns[labels] + 0.4 * rng.integers(0, 256, (160, 8, 8, 3))
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return path


@pytest.fixture
def run_config(tiny_images: Path, tmp_path: Path) -> dict[str, Any]:
    """Overrides for a run of a few seconds: two small architectures, a narrow hypernetwork, one local epoch."""
    return {
        "method": "mh-pfedhn",
        "num-rounds": 2,
        "dataset": "npz",
        "data-dir": str(tiny_images),
        "classes-per-client": 2,
        "max-samples-per-class": 0,
        "models": "lenet,mlp",
        "local-epochs": 1,
        "batch-size": 8,
        "client-lr": 0.02,
        "chunk-size": 2048,
        "embedding-dim": 4,
        "hidden-dim": 8,
        "device": "cpu",
        "results-dir": str(tmp_path / "results"),
        "run-name": "run",
    }


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time in which the server waits for replies, nodes and clients: deadlines pass without waiting."""
    from server_app.rounds import membership, round_trip

    clock = Clock()
    for module in (membership, round_trip):
        monkeypatch.setattr(module, "time", clock)
    return clock
