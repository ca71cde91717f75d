"""What the examples read, without running them: tests/e2e/test_examples.py does."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from common.data.own import load_own

WRITERS = Path(__file__).resolve().parents[1] / "examples" / "writers"


@pytest.fixture
def my_data(monkeypatch):
    """The module, which is not left to others under a name that the pages use for another."""
    spec = importlib.util.spec_from_file_location("writers_data", WRITERS / "my_data.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "writers_data", module)
    spec.loader.exec_module(module)
    return module


def write_leaf(path, users):
    """A file as LEAF's preprocessing writes it: users, num_samples, and of each user drawings and classes."""
    user_data = {user: {"x": [[pixel] * 784 for pixel in pixels], "y": labels} for user, (pixels, labels) in users}
    sizes = [len(each["y"]) for each in user_data.values()]
    path.write_text(json.dumps({"users": list(user_data), "num_samples": sizes, "user_data": user_data}))


def test_leafs_files_are_read_in_order_with_the_writer_of_each_drawing(my_data, tmp_path):
    write_leaf(tmp_path / "all_data_1.json", [("f0003_41", ([1.0], [61]))])
    write_leaf(tmp_path / "all_data_0.json", [("f0002_07", ([0.2, 0.5], [3, 0])), ("f0001_12", ([0.0], [10]))])
    (tmp_path / "other.json").write_text("{}")
    found = load_own("writers_data:load", tmp_path)
    assert (found.input_shape, found.split.inputs.dtype) == ((1, 28, 28), torch.uint8)
    assert (
        found.split.inputs.amin((1, 2, 3)).tolist() == found.split.inputs.amax((1, 2, 3)).tolist() == [0, 51, 128, 255]
    )
    assert found.labels.tolist() == [10, 3, 0, 61]
    assert [found.owner_names[place] for place in found.owners] == ["f0001_12", "f0002_07", "f0002_07", "f0003_41"]
    assert len(found.class_names) == 62


def test_without_such_files_there_are_the_same_drawings_every_time(my_data, tmp_path):
    found, again = (load_own("writers_data:load", folder) for folder in (tmp_path, tmp_path / "not-there"))
    assert torch.equal(found.split.inputs, again.split.inputs)
    assert torch.equal(found.labels, again.labels)
    assert len(found.owner_names) == 12
    assert set(found.labels.tolist()) == set(range(10))
    assert (found.split.inputs.amin((1, 2, 3)) == 0).all()  # nothing is drawn outside of the paper
