"""What the server says that a round takes is what it takes: peaks of whole processes, measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server_app import room

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory.py"


def measured(clients: int, width: int) -> dict[str, int]:
    command = [sys.executable, str(SCRIPT), "--clients", str(clients), "--width", str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("small", "large", "constant"),
    [((20, 8), (220, 8), "BYTES_A_GENERATED_VALUE"), ((20, 8), (20, 256), "BYTES_A_VALUE")],
)
def test_a_value_takes_the_memory_that_a_cohort_is_judged_by(small, large, constant):
    before, after = measured(*small), measured(*large)
    values = "generated" if constant == "BYTES_A_GENERATED_VALUE" else "network"
    taken = (after["bytes"] - before["bytes"]) / (after[values] - before[values])
    assert taken == pytest.approx(getattr(room, constant), rel=0.15)
