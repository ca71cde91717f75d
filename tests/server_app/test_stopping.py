"""What is saved when the process ends: by Flower's handlers, and where Ray has taken the signal away from them."""

import gc
import signal
import subprocess
import sys
import weakref
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
    with at_the_end(lambda: Path("earlier").write_text("over")):
        pass
    with at_the_end(lambda: Path("saved").write_text("whole")):
        Path("started").touch()
        while Path("goes-on").exists():
            time.sleep(0.01)

signal.signal(signal.SIGTERM, ray)
thread = threading.Thread(target=loop)
thread.start()
thread.join()
"""


@pytest.fixture
def handlers(monkeypatch):
    """What Flower is asked to call at the end of the process, with when it is to."""
    asked = []
    monkeypatch.setattr(stopping, "add_exit_handler", lambda handler, **when: asked.append((handler, when)))
    stopping._be_called.cache_clear()
    yield asked
    stopping._be_called.cache_clear()


def test_flower_is_asked_once_to_wait_for_it_and_saves_the_run_under_way(handlers):
    saved = []
    for run in ("first", "second"):
        with stopping.at_the_end(lambda run=run: saved.append(run)):
            if run == "second":
                handlers[0][0]()
    assert saved == ["second"]
    assert [when for _, when in handlers] == [{"run_before_force_exit": True}]


def test_a_run_that_is_over_is_let_go_and_one_that_fails_is_saved(handlers):
    class Run:
        saved = 0

        def save(self):
            Run.saved += 1

    run = Run()
    gone = weakref.ref(run)
    with pytest.raises(ValueError, match="a fault"), stopping.at_the_end(run.save):
        raise ValueError("a fault")
    assert Run.saved == 1
    del run
    gc.collect()
    assert gone() is None
    handlers[0][0]()
    assert Run.saved == 1


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
    assert (tmp_path / "saved").exists() == stopped
    assert not (tmp_path / "earlier").exists()


def test_ray_waits_for_it_with_killing_and_does_not_abort_it():
    happened = []

    def save():
        happened.append(("saved", signal.alarm(0)))

    node = SimpleNamespace(kill_all_processes=lambda check_alive: happened.append(("killed", check_alive)))
    stopping._stand_before(node, save)
    signal.alarm(1000)  # as Ray's C++ half does when the signal comes
    node.kill_all_processes(check_alive=False)
    assert happened == [("saved", 0), ("killed", False)]
