"""Files are written whole or not at all: crashes, full disks, permission bits, and what is left behind."""

import errno
import os
import resource
import signal
import stat
import threading
from pathlib import Path

import pytest
import torch

from common import files


@pytest.fixture
def path(tmp_path):
    """A file that is there already."""
    path = tmp_path / "state"
    path.write_bytes(b"old")
    return path


def bits(path):
    return stat.S_IMODE(path.stat().st_mode)


def assert_untouched(path, content=b"old"):
    assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_file_is_replaced_and_nothing_is_left_beside_it(path):
    files.write_bytes(path, b"new")
    assert_untouched(path, b"new")
    files.write_text(path, "neu: ü")
    assert_untouched(path, "neu: ü".encode())


def test_a_file_that_is_not_there_is_made(tmp_path):
    files.write_bytes(tmp_path / "new", b"")
    assert (tmp_path / "new").read_bytes() == b""


def test_tensors_and_what_holds_them_come_back(path):
    content = {"phi": torch.arange(3.0), "round": 4, "names": ["a", "b"]}
    files.write_tensors(path, content)
    read = torch.load(path, weights_only=True)
    assert torch.equal(read.pop("phi"), content.pop("phi"))
    assert read == content


class Interrupted(BaseException):
    """As KeyboardInterrupt and SystemExit are, which are no Exception."""


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(1), Interrupted()])
def test_whatever_goes_wrong_while_writing_leaves_the_old_content_and_nothing_else(path, error):
    def fill(file):
        file.write(b"half of the new")
        raise error

    with pytest.raises(type(error)) as caught:
        files.write(path, fill)
    assert caught.value is error
    assert_untouched(path)


def test_a_new_file_that_cannot_be_written_is_not_there_afterwards(tmp_path):
    with pytest.raises(ValueError, match="bad"):
        files.write(tmp_path / "new", lambda file: (_ for _ in ()).throw(ValueError("bad")))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk():
    """Files of 4 KB at most: writing more fails in the system call, as on a disk that is full."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_bytes(path, bytes(100_000)),
        lambda path: files.write_tensors(path, {"phi": torch.zeros(100_000)}),
    ],
    ids=["bytes", "tensors"],
)
def test_a_full_disk_is_told_in_the_systems_words_with_the_file_and_not_in_pytorchs(path, write):
    with pytest.raises(files.WriteError, match=rf"^{path} could not be written: File too large$") as caught:
        write(path)
    assert caught.value.errno == errno.EFBIG
    assert_untouched(path)


@pytest.mark.parametrize("size", [3, 2_000_000])
def test_what_is_appended_follows_what_was_there(path, size):
    files.append_bytes(path, size * b"x")
    assert path.read_bytes() == b"old" + size * b"x"
    new = path.with_name("new")
    files.append_bytes(new, b"first")
    assert new.read_bytes() == b"first"


@pytest.mark.usefixtures("full_disk")
def test_half_of_what_is_appended_is_taken_back_when_the_disk_is_full(path):
    with pytest.raises(OSError, match="File too large"):
        files.append_bytes(path, bytes(100_000))
    assert path.read_bytes() == b"old"


def test_what_pytorch_alone_knows_of_a_failure_is_told_in_its_words(path):
    def fill(file):
        raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(files.WriteError, match=rf"^{path} could not be written: unexpected pos 64 vs 0$") as caught:
        files.write(path, fill)
    assert caught.value.errno is None
    assert_untouched(path)


def test_a_folder_that_cannot_be_made_is_named(path):
    with pytest.raises(files.WriteError, match=rf"^{path}/below could not be written: Not a directory$"):
        files.make_folder(path / "below")
    files.make_folder(path.parent / "a" / "b")
    files.make_folder(path.parent / "a" / "b")
    assert (path.parent / "a" / "b").is_dir()


class Full:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, content):
        self.room -= memoryview(content).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(content)

    def flush(self):
        self.file.flush()


@pytest.mark.parametrize("room", [0, 100, 5000])
def test_a_full_disk_is_told_in_the_systems_words_and_not_in_pytorchs(path, room):
    content = {"phi": torch.zeros(10_000)}
    with pytest.raises(OSError, match="No space left on device") as caught:
        files.write(path, lambda file: torch.save(content, Full(file, room)))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert str(caught.value) == f"{path} could not be written: No space left on device"
    assert_untouched(path)


def test_what_cannot_be_saved_leaves_the_old_content(path):
    with pytest.raises(Exception, match=r"pickle|local object"):
        files.write_tensors(path, {"no": lambda: None})
    assert_untouched(path)


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
def test_a_step_that_fails_leaves_the_old_content_and_nothing_else(path, monkeypatch, step):
    def fail(*arguments):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="broken disk"):
        files.write_bytes(path, b"new", mode=0o600)
    monkeypatch.undo()
    assert_untouched(path)


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "state").mkdir()
    with pytest.raises(files.WriteError, match="could not be written: Is a directory"):
        files.write_bytes(tmp_path / "state", b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_a_file_in_a_folder_that_is_not_there_cannot_be_written(tmp_path):
    with pytest.raises(files.WriteError, match="could not be written: No such file or directory"):
        files.write_bytes(tmp_path / "nowhere" / "state", b"new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o755])
def test_the_permission_bits_of_a_replaced_file_are_kept(path, mode):
    path.chmod(mode)
    files.write_bytes(path, b"new")
    assert bits(path) == mode


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400])
@pytest.mark.parametrize("existed", [True, False])
def test_the_permission_bits_that_are_asked_for_are_set(tmp_path, mode, existed):
    path = tmp_path / "secret"
    if existed:
        path.write_bytes(b"old")
        path.chmod(0o666)
    mask = os.umask(0o077)  # which would take bits away
    try:
        files.write_text(path, "new", mode=mode)
    finally:
        os.umask(mask)
    assert bits(path) == mode


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_new_file_has_the_usual_permission_bits(tmp_path, mask, expected):
    before = os.umask(mask)
    try:
        files.write_bytes(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert bits(tmp_path / "new") == expected


def test_a_secret_is_for_nobody_else_even_while_it_is_written(tmp_path):
    seen = []

    def fill(file):
        file.write(b"secret")
        seen.append(bits(next(tmp_path.iterdir())))

    before = os.umask(0)
    try:
        files.write(tmp_path / "key", fill, mode=0o644)
    finally:
        os.umask(before)
    assert seen == [0o600]


def test_the_content_is_on_the_disk_before_its_name_and_the_name_before_it_returns(path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            assert status.st_ino == path.parent.stat().st_ino
            steps.append("folder")
        else:
            steps.append(f"{status.st_size} bytes")
        fsync(descriptor)

    def noted_replace(source, target):
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    files.write_bytes(path, b"new content")
    assert steps == ["11 bytes", "rename", "folder"]


def test_a_reader_finds_the_old_content_or_the_new_and_never_a_part(path):
    contents = [bytes([letter]) * 100_000 for letter in b"ab"]
    files.write_bytes(path, contents[0])
    done = threading.Event()
    found = set()

    def read():
        while not done.is_set():
            found.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(50):
            files.write_bytes(path, contents[turn % 2])
    finally:
        done.set()
        reader.join()
    assert found <= set(contents)


def test_no_descriptor_stays_open(path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        files.write_bytes(path, b"new")
        with pytest.raises(ValueError, match="bad"):
            files.write(path, lambda file: (_ for _ in ()).throw(ValueError("bad")))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_holds_the_same_and_replaces_what_had_it(tmp_path, monkeypatch, links):
    source, target = tmp_path / "one", tmp_path / "two"
    source.write_bytes(b"new")
    target.write_bytes(b"old")
    if not links:

        def no_links(*paths):
            raise OSError("this file system has none")

        monkeypatch.setattr(files.os, "link", no_links)
    files.link_or_copy(source, target)
    assert target.read_bytes() == b"new"
    assert source.samefile(target) == links
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_folder_is_tried_and_nothing_is_left_behind(tmp_path):
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", tmp_path / "there/new", tmp_path / "a/b/c"):
        files.check_writable(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_folder_in_which_nothing_can_be_written_is_found(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/x", tmp_path / ("x" * 300), Path("/proc/x")):
        with pytest.raises(files.WriteError) as caught:
            files.check_writable(folder)
        assert str(caught.value) == f"{folder} could not be written: {caught.value.strerror}"
    # Room for a folder, but not for a byte in it.
    monkeypatch.setattr(files.tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        files.check_writable(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
