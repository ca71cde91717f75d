"""What tests of several sources need: their files, and a way to open them where nothing else is installed."""

import numpy as np
import pytest

from common.data.datasets import open_dataset
from common.data.sources import idx


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def open_at(tmp_path, monkeypatch):
    """Open a data set where neither the project nor a system package brings Fashion-MNIST."""
    monkeypatch.setattr(idx, "FASHION_MNIST_PACKAGE_FOLDER", tmp_path / "system")

    def open_at(name, data_dir):
        return open_dataset(name, data_dir, project_dir=tmp_path / "project")

    return open_at
