"""A command that is kept running, and what is left of it when it ends: nothing."""

import pytest
from children import alive, child, until

from mh_pfedhn.deployment import supervision


@pytest.mark.usefixtures("quick")
def test_a_child_that_dies_is_started_again_after_doubling_delays(capsys, tmp_path):
    marks = tmp_path / "marks"
    marks.write_text("")
    dies = child(f"open({str(marks)!r}, 'a').write('x'); print('because'); exit(3)")
    until(lambda: dies.keep_running() and len(marks.read_text()) == 4)
    dies.stop()
    lines = [line.split(" ", 2)[2] for line in capsys.readouterr().out.splitlines() if "ended after" in line]
    assert len(lines) == 4
    assert all("exit status 3, because" in line for line in lines)
    assert dies._delay == pytest.approx(0.16)


@pytest.mark.usefixtures("quick")
def test_delays_are_bounded_and_start_anew_after_a_steady_run(monkeypatch):
    dies = child("")
    until(lambda: dies.keep_running() and dies._delay == 0.3)
    monkeypatch.setattr(supervision, "_STEADY", 0.0)
    until(dies.keep_running)
    assert dies._delay == 0.02
    dies.stop()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "signal SIGKILL"),
        (
            "print('Exit Code: 302')\nprint('Unable to parse.')\nprint('Hint.')\nprint('x')\nexit(1)",
            "Flower's exit code 302, Unable to parse. Hint. It",
        ),
        ("print('Exit Code: 305\\nFailed.\\n[code: 2004] Failed to activate.')\nexit(1)", "the server refused it"),
        ("", "exit status 0. It"),
    ],
)
def test_the_reason_of_an_end_is_one_line(capsys, script, reason):
    dies = child(script)
    until(dies.keep_running)
    assert [reason in line for line in capsys.readouterr().out.splitlines() if "ended after" in line] == [True]


PARENT = """
import signal, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
grandchild = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
grandchild.stdout.readline()
print("grandchild", grandchild.pid, flush=True)
"""


def grandchild_of(parent):
    until(lambda: parent.keep_running() or any(line.startswith("grandchild") for line in parent.lines))
    return int(next(line for line in parent.lines if line.startswith("grandchild")).split()[1])


def test_stopping_a_child_takes_its_grandchildren_even_deaf_ones():
    parent = child(PARENT + "time.sleep(600)")
    pid = grandchild_of(parent)
    parent.stop()
    until(lambda: not alive(pid))
    assert not parent.running


def test_a_child_that_crashes_leaves_no_grandchildren_behind():
    parent = child(PARENT + "exit(1)")
    pid = grandchild_of(parent)
    until(lambda: not parent.running or parent.keep_running())
    until(lambda: not alive(pid))
    parent.stop()


def test_what_a_child_writes_cannot_give_the_terminal_orders(capsys):
    writes = child("print('  \\x1b[2J\\x1b]0;owned\\x07indented \\x1b[31mred\\x1b[0m\\x08\\x9b1m\\n\\x1b[0m')")
    until(writes.keep_running)
    assert "[child]   indented red\n" in capsys.readouterr().out
