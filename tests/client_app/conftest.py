"""Every test of the client starts in what is to the trainers a new process."""

import asking
import pytest


@pytest.fixture(autouse=True)
def _no_trainers_are_left_for_other_tests():
    yield
    asking.new_process()
