"""What is saved when the process ends: by Flower's handlers, and where Ray has taken the signal away from them."""

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from server_app import stopping

# A simulation in small: the loop is a thread that goes on for ever, the main thread ends by what Ray's handler raises.
SIMULATION = """
import signal, sys, threading, time
from pathlib import Path
from server_app.stopping import at_the_end

def ray(signum, frame):
    sys.exit(1)

def loop():
    at_the_end(lambda: Path("saved").write_text("whole"))
    Path("started").touch()
    while Path("goes-on").exists():
        time.sleep(0.01)

signal.signal(signal.SIGTERM, ray)
thread = threading.Thread(target=loop)
thread.start()
thread.join()
"""


def test_flower_is_asked_to_wait_for_it(monkeypatch):
    asked = []
    monkeypatch.setattr(stopping, "add_exit_handler", lambda handler, **when: asked.append((handler, when)))
    stopping.at_the_end(print)
    assert asked == [(print, {"run_before_force_exit": True})]


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped by SIGTERM", "at its end"])
def test_where_the_main_thread_ends_without_a_word_the_loop_saves_and_ends_with_it(tmp_path: Path, stopped):
    (tmp_path / "goes-on").touch()
    process = subprocess.Popen([sys.executable, "-c", SIMULATION], cwd=tmp_path)
    try:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
        if stopped:
            process.send_signal(signal.SIGTERM)
        else:
            (tmp_path / "goes-on").unlink()
        assert process.wait(timeout=60) == int(stopped)
    finally:
        process.kill()
    assert (tmp_path / "saved").read_text() == "whole"


def test_ray_waits_for_it_with_killing_and_does_not_abort_it():
    happened = []

    def save():
        happened.append(("saved", signal.alarm(0)))

    node = SimpleNamespace(kill_all_processes=lambda check_alive: happened.append(("killed", check_alive)))
    stopping._stand_before(node, save)
    signal.alarm(1000)  # as Ray's C++ half does when the signal comes
    node.kill_all_processes(check_alive=False)
    assert happened == [("saved", 0), ("killed", False)]
