"""Small processes for tests of supervision."""

import os
import sys
import time
from pathlib import Path

from mh_pfedhn.deployment.supervision import Child


def child(script, name="child"):
    return Child(name, [sys.executable, "-c", script], os.environ)


def until(condition, within=20.0):
    ends = time.monotonic() + within
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.01)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
