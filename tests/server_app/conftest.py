"""What the tests of the server start from; `playing.py` beside this file holds what they play runs with."""

import pytest
from fresh_process import new_process

from server_app.results import tracking


@pytest.fixture
def _no_drawing(monkeypatch):
    monkeypatch.setattr(tracking, "write_report", lambda folder: None)


@pytest.fixture
def _new_process():
    yield
    new_process()


@pytest.fixture
def small(run_config):
    """A config for the scripted clients: several chunks each."""
    return run_config | {"chunk-size": 16, "num-rounds": 3, "deadline": 30.0}
