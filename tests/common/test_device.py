"""How much memory is left: the machine's, and the container's where it has a limit."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from common import device
from common.device import free_memory

CPU = torch.device("cpu")
MACHINE = 1_000_000  # bytes that the machine itself has left


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Write the files of a cgroup; None leaves one out."""
    monkeypatch.setattr(device, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=MACHINE))

    def write(limit="900000\n", used="300000\n", stat="anon 1\ninactive_file 0\n"):
        (tmp_path / "cgroup").mkdir()
        for name, text in (("max", limit), ("current", used), ("stat", stat)):
            if text is not None:
                (tmp_path / "cgroup" / f"memory.{name}").write_text(text)

    return write


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 600_000),  # the limit less what is used
        ({"stat": "anon 5\ninactive_file 50000\nactive_file 7\n"}, 650_000),  # cached files make room
        ({"stat": "anon 5\ninactive_file_more 50000\n"}, 600_000),
        ({"stat": ""}, 600_000),
        ({"limit": "5000000\n"}, MACHINE),  # the machine has less than the container may take
        ({"used": "900000\n"}, 0),
        ({"used": "950000\n"}, 0),  # never below nothing
        ({"used": "950000\n", "stat": "inactive_file 60000\n"}, 10_000),
        ({"limit": "0\n", "used": "0\n"}, 0),
        ({"limit": "max\n"}, MACHINE),
    ],
)
def test_memory_is_what_machine_and_container_leave(container, files, free):
    container(**files)
    assert free_memory(CPU) == free


@pytest.mark.parametrize("missing", ["limit", "used", "stat"])
def test_without_all_of_the_containers_files_the_machine_alone_counts(container, missing):
    container(**{missing: None})
    assert free_memory(CPU) == MACHINE


@pytest.mark.parametrize("files", [{"limit": ""}, {"used": "many"}, {"stat": "one two three"}, {"stat": "lonely\n"}])
def test_files_that_are_not_understood_leave_the_machine_alone_to_count(container, files):
    container(**files)
    assert free_memory(CPU) == MACHINE


def test_without_a_container_the_machine_alone_counts(container):
    assert free_memory(CPU) == MACHINE


def test_some_memory_is_free_here():
    assert 0 < free_memory(CPU) <= psutil.virtual_memory().total


def test_the_limit_of_an_older_kernels_container_counts_too(tmp_path, monkeypatch):
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("50000\n")
    (folder / "memory.usage_in_bytes").write_text("30000\n")
    (folder / "memory.stat").write_text("cache 9000\ntotal_inactive_file 4000\n")
    monkeypatch.setattr("common.device._CGROUP", tmp_path)
    assert free_memory(torch.device("cpu")) == 50000 - 30000 + 4000
