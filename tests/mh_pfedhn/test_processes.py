"""The environment that Flower's processes get."""

import sys
from pathlib import Path

from mh_pfedhn.processes import flower_environment


def test_flower_is_offline_and_finds_its_commands():
    environment = flower_environment({"PATH": "/bin", "MINE": "1"})
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/bin"
    assert environment["MINE"] == "1"
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
