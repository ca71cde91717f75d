"""Every test of the client starts in what is to the trainers a new process."""

import sys

import pytest
from fresh_process import new_process


@pytest.fixture(autouse=True)
def _no_trainers_are_left_for_other_tests():
    yield
    new_process()


@pytest.fixture(autouse=True)
def _imports_are_as_before():
    """The folder of a site's file is put in front, and its modules have everyday names."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name in ("nets", "data", "private_module"):
            del sys.modules[name]
