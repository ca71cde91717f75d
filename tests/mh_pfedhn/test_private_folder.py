"""A command's own folder, and what the next command does with one that a killed command has left."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from mh_pfedhn.private_folder import private_folder

# Stands for a command: it has a folder with a secret and starts a process, and then waits to be killed.
COMMAND = """
import os, subprocess, sys, time
from mh_pfedhn.private_folder import OWNER, private_folder
with private_folder() as folder:
    (folder / "secret").write_text("hush")
    words = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = subprocess.Popen(words, env={**os.environ, OWNER: str(folder)}, start_new_session=True)
    print(folder, child.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(monkeypatch, tmp_path):
    """The system's temporary folder, of the test alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def command():
    """A command that goes on; its process, its folder, and the process that it has started."""
    with subprocess.Popen([sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, text=True) as process:
        folder, child = process.stdout.readline().split()
        yield process, Path(folder), psutil.Process(int(child))
        process.kill()
        if psutil.pid_exists(int(child)):
            os.kill(int(child), signal.SIGKILL)


def test_a_folder_is_private_and_gone_with_its_block(temporary):
    with private_folder() as folder:
        assert folder.parent == temporary
        assert folder.name.startswith("mh-pfedhn-")
        assert folder.stat().st_mode & 0o777 == 0o700
        with private_folder() as another:
            assert another != folder
        assert folder.is_dir()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_command_left_is_cleared_by_the_next(command, temporary, capsys):
    process, left, child = command
    process.kill()
    process.wait()
    assert (left / "secret").exists()
    assert child.is_running()
    with private_folder() as folder:
        assert [path for path in temporary.iterdir() if path.is_dir()] == [folder]
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert f"the folder {left} and 1 processes" in capsys.readouterr().out


def test_a_command_that_goes_on_is_left_alone(command, capsys):
    _, left, child = command
    with private_folder():
        pass
    assert (left / "secret").read_text() == "hush"
    assert child.is_running()
    assert capsys.readouterr().out == ""


def test_folders_that_are_not_of_a_command_are_left_alone(temporary, capsys):
    (temporary / "mh-pfedhn-mine").mkdir()
    (temporary / "mh-pfedhn-file").touch()
    (temporary / "elsewhere").mkdir()
    (temporary / "elsewhere" / "lock").touch()
    (temporary / "mh-pfedhn-link").symlink_to(temporary / "elsewhere")
    before = sorted(temporary.iterdir())
    with private_folder():
        pass
    assert sorted(temporary.iterdir()) == before
    assert capsys.readouterr().out == ""


def test_a_folder_of_another_user_is_left_alone(temporary, monkeypatch):
    (temporary / "mh-pfedhn-theirs").mkdir()
    (temporary / "mh-pfedhn-theirs" / "lock").touch()
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    with private_folder():
        pass
    assert (temporary / "mh-pfedhn-theirs").is_dir()
