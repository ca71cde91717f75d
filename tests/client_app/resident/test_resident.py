"""The resident trainer in a process of its own, and the ClientApp that relays to it."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path

import pytest
import torch
import yaml
from asking import FINISH, GD, TEST, greeting
from example_site.messages import request
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from in_process import InProcessGrid
from serving_here import served_here

from client_app.app import app
from client_app.resident import relay, serving
from client_app.resident.__main__ import main
from client_app.resident.relay import Address, TrainerError, ask
from client_app.resident.watchdog import HUNG
from client_app.site.private import load_site
from common import protocol
from common.errors import ProtocolError, UserError
from common.files import WriteError

HERE = Path(__file__).parents[1]
PROJECT = HERE.parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{PROJECT}{os.pathsep}{HERE}"}
SECRET = bytes(range(32))
DISTILLING = {"method": GD, "seed": 3}
QUESTION = greeting("group", "global-num-params", **DISTILLING)


def site_file(folder: Path, **changes) -> Path:
    content = {
        "model": {"factory": "example_site.nets:vision"},
        "data": {"factory": "example_site.data:images"},
        "state-dir": "state",
        "client-key": "site-1",
        "device": "cpu",
        "deploy-global": True,
        "input-shape": [3, 8, 8],
        "num-classes": 3,
    }
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


class Trainer:
    """A resident trainer in a process of its own."""

    def __init__(self, folder: Path, **changes) -> None:
        self.address = Address(str(folder / "socket"), str(folder / "secret"))
        (folder / "secret").write_bytes(SECRET)
        command = [sys.executable, "-m", "client_app.resident", "--site", str(site_file(folder, **changes))]
        command += ["--socket", self.address.socket, "--secret", self.address.secret]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=log, text=True)
        self.said = self.process.stdout.readline()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    with Trainer(tmp_path_factory.mktemp("site")) as trainer:
        yield trainer


@pytest.fixture(autouse=True)
def _the_search_path_is_as_before():
    path = list(sys.path)
    yield
    sys.path[:] = path


@pytest.fixture
def in_process(tmp_path):
    return serving.trainer_of(load_site(site_file(tmp_path)))


def personal(in_process, **changes) -> RecordDict:
    site = in_process._site_of(3)
    theta = 0.02 * torch.randn(site.num_params, generator=torch.Generator().manual_seed(8))
    return request(site, theta, **(DISTILLING | {"client_key": site.key} | changes))


def globally(in_process, **changes) -> RecordDict:
    site = in_process._site_of(3)
    w_g = torch.zeros(site.global_model("lenet").parameters.size)
    return request(site, w_g, **(DISTILLING | {"exchange": "global_step", "client_key": site.key} | changes))


def still_answers(trainer) -> bool:
    reply = ask(trainer.address, protocol.REGISTER, greeting())
    return protocol.decode_registration(reply).client_key == "site-1"


@contextlib.contextmanager
def raw_socket(address):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address.socket)
        client.settimeout(10)
        yield client


@contextlib.contextmanager
def known_client(address):
    """A connection whose challenge is passed."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address.socket)
        connection = Connection(client.detach())
    with connection:
        answer_challenge(connection, SECRET)
        deliver_challenge(connection, SECRET)
        yield connection


def fresh_context(address, run_config=None) -> Context:
    node_config = {"trainer-socket": address.socket, "trainer-secret": address.secret}
    return Context(run_id=1, node_id=5, node_config=node_config, state=RecordDict(), run_config=run_config or {})


# What it answers


def test_it_says_what_it_holds_when_it_listens_and_only_its_user_can_connect(trainer, in_process):
    size = in_process._site_of(3).num_params
    assert trainer.said == f"ready: K = {size:,}, 20 training samples, 9 test samples\n"
    assert os.stat(trainer.address.socket).st_mode & 0o777 == 0o600


def test_answers_are_those_of_a_trainer_in_this_process_bit_for_bit(trainer, in_process):
    conversation = [
        (protocol.REGISTER, QUESTION),
        (protocol.TRAIN, globally(in_process)),
        (protocol.TRAIN, personal(in_process, teacher_round=1)),
        (protocol.TRAIN, globally(in_process, exchange="keep_teacher", server_round=2)),
        (protocol.TRAIN, personal(in_process, server_round=2, upload="topk", error_feedback=True, teacher_round=2)),
        (protocol.DEPLOY, personal(in_process, **TEST)),
        (protocol.DEPLOY, personal(in_process, **FINISH)),
    ]
    for message_type, content in conversation:
        expected = in_process.answer(message_type, content)
        answered = ask(trainer.address, message_type, content)
        assert relay.pack("", answered) == relay.pack("", expected), message_type
        assert answered == expected


def test_the_client_app_relays_every_message_type(trainer, in_process):
    conversation = [
        (protocol.REGISTER, QUESTION),
        (protocol.TRAIN, globally(in_process, run_name="app")),
        (protocol.TRAIN, personal(in_process, run_name="app")),
        (protocol.DEPLOY, personal(in_process, run_name="app", **TEST)),
        (protocol.DEPLOY, personal(in_process, run_name="app", **FINISH)),
    ]
    grid = InProcessGrid(app, 1)
    grid.contexts[100] = fresh_context(trainer.address)
    messages = [Message(content, dst_node_id=100, message_type=each) for each, content in conversation]
    grid.push_messages(messages)
    replies = grid.pull_messages([f"message-{index}" for index in range(len(messages))])
    for (message_type, content), reply in zip(conversation, replies, strict=True):
        assert not reply.has_error(), (message_type, reply)
        assert reply.content == in_process.answer(message_type, content)


@pytest.mark.parametrize(
    ("message_type", "content", "sentence"),
    [
        ("train.exchange", RecordDict(), "the message has no record 'instructions'"),
        ("query.unknown", RecordDict(), "message type is 'query.unknown', but must be one of"),
    ],
)
def test_a_refused_request_is_answered_with_a_code_and_its_sentence_is_in_the_log(
    trainer, message_type, content, sentence
):
    with pytest.raises(TrainerError, match=r"^the trainer's own log says why$") as error:
        ask(trainer.address, message_type, content)
    assert error.value.reason == "malformed"
    assert still_answers(trainer)
    assert f"{message_type} was answered with malformed: {sentence}" in trainer.log.read_text()


SHAPES = "mat1 and mat2 shapes cannot be multiplied (8x31 and 77x3)"
FULL = OSError(errno.ENOSPC, "No space left on device", "/data")


@pytest.mark.parametrize(
    ("error", "reason", "has_traceback"),
    [
        (ProtocolError("no-teacher", "not of round 3"), "no-teacher", False),
        (ProtocolError("/home/secret", "a method's own"), "client-failed", False),
        (UserError("The group is misspelt."), "misconfigured", False),
        (WriteError(Path("/state"), FULL), "disk-full", False),
        (WriteError(Path("/state"), PermissionError(errno.EACCES, "Permission denied")), "not-writable", False),
        (FULL, "disk-full", True),
        (PermissionError(errno.EACCES, "Permission denied", "/data/patient-7"), "client-failed", True),
        (RuntimeError(SHAPES), "client-failed", True),
        (KeyError("x\ny"), "client-failed", True),
        (SystemExit(3), "client-failed", True),
        (MemoryError("7 GiB"), "out-of-memory", True),
        (torch.OutOfMemoryError("31 GiB"), "out-of-memory", True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out-of-memory", True),
        (RuntimeError("\x1b[2J" + "x" * 10_000), "client-failed", True),
    ],
    ids=str,
)
def test_of_an_error_nothing_is_answered_but_a_code_and_its_words_are_in_the_log(capsys, error, reason, has_traceback):
    def answer(message_type, content):
        raise error

    assert relay.unpack(serving._reply_to(relay.pack("evaluate", RecordDict()), answer)) == ("error", reason.encode())
    written = capsys.readouterr().err  # for the operator
    assert ("Traceback" in written) == has_traceback
    *_, last = written.splitlines()
    assert last.startswith(f"evaluate was answered with {reason}: ")
    assert last.isprintable()
    assert len(last) < 600
    assert " ".join(str(error).split())[-1:] in last


def test_a_failure_in_the_sites_own_code_is_in_its_log_and_not_in_the_answer(in_process, tmp_path, capfd):
    model = in_process._site_of(3).personal.model
    content = personal(in_process)
    (tmp_path / "secret").write_bytes(SECRET)
    address = Address(str(tmp_path / "socket"), str(tmp_path / "secret"))
    with served_here(tmp_path / "socket", SECRET, in_process.answer):
        model[5].in_features, model[5].forward = 31, lambda inputs: inputs @ torch.zeros(31, 3)
        with pytest.raises(TrainerError) as error:
            ask(address, protocol.TRAIN, content)
        del model[5].forward
        assert protocol.decode_result(ask(address, protocol.TRAIN, content)).num_examples == 20
    assert error.value.reason == "client-failed"
    assert "31" not in str(error.value)
    assert "31x3" in capfd.readouterr().err


# What clients do to it


def test_a_message_of_50_mb_goes_through(trainer):
    content = greeting()
    content["arrays"] = ArrayRecord({"theta": Array(torch.zeros(12_500_000).numpy())})
    assert protocol.decode_registration(ask(trainer.address, protocol.REGISTER, content)).client_key == "site-1"


def test_a_wrong_secret_is_refused_by_name_and_does_no_harm(trainer, tmp_path):
    (tmp_path / "wrong").write_bytes(SECRET[::-1])
    with pytest.raises(TrainerError, match=f"does not know the secret in {tmp_path}/wrong"):
        ask(Address(trainer.address.socket, str(tmp_path / "wrong")), protocol.REGISTER, greeting())
    assert still_answers(trainer)


def test_a_client_that_cannot_prove_the_secret_never_gets_to_its_request(trainer, in_process, tmp_path):
    state = Path(trainer.address.secret).parent / "state/runs/unproven"
    with raw_socket(trainer.address) as client:
        connection = Connection(os.dup(client.fileno()))
        with connection, contextlib.suppress(OSError, EOFError):
            connection.recv_bytes(256)
            connection.send_bytes(b"x" * 16)
            connection.send_bytes(b"#CHALLENGE#" + b"y" * 20)
            connection.send_bytes(relay.pack(protocol.DEPLOY, personal(in_process, run_name="unproven", **FINISH)))
            while connection.recv_bytes(2**20):
                pass
    assert still_answers(trainer)
    assert not state.exists()


@pytest.mark.parametrize("garbage", [b"", b"\0\0", os.urandom(300), b"\xff" * 12], ids=["none", "two", "many", "long"])
def test_garbage_before_the_challenge_does_no_harm(trainer, garbage):
    with raw_socket(trainer.address) as client:
        client.sendall(garbage)
    assert still_answers(trainer)


@pytest.mark.parametrize(
    "request_bytes",
    [b"", b"hello", b"mhp1evaluate" + bytes(8) + b"\xff\xff", b"mhp0evaluate" + bytes(8)],
    ids=["empty", "short", "no records", "wrong version"],
)
def test_garbage_from_a_client_that_knows_the_secret_is_answered_as_such(trainer, request_bytes):
    with known_client(trainer.address) as connection:
        connection.send_bytes(request_bytes)
        assert relay.unpack(connection.recv_bytes()) == ("error", b"malformed")
    assert still_answers(trainer)


def test_nothing_that_is_sent_is_unpickled(trainer, tmp_path):
    import pickle

    class Touch:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    with known_client(trainer.address) as connection:
        connection.send_bytes(pickle.dumps(Touch()))
        assert relay.unpack(connection.recv_bytes())[0] == "error"
    assert not (tmp_path / "touched").exists()


def test_a_client_that_leaves_in_the_middle_does_no_harm(trainer, in_process):
    packed = relay.pack(protocol.TRAIN, personal(in_process, run_name="left"))
    with known_client(trainer.address) as connection:
        os.write(connection.fileno(), len(packed).to_bytes(4, "big") + packed[: len(packed) // 2])
    with known_client(trainer.address) as connection:
        connection.send_bytes(packed)  # and does not wait for the answer
    assert still_answers(trainer)


def test_a_request_that_claims_more_bytes_than_allowed_is_dropped(trainer):
    with known_client(trainer.address) as connection:
        os.write(connection.fileno(), (-1).to_bytes(4, "big", signed=True) + (2**40).to_bytes(8, "big"))
        with pytest.raises((EOFError, OSError)):
            connection.recv_bytes()
    assert still_answers(trainer)


def test_a_client_that_falls_silent_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "_PATIENCE", 1)
    (tmp_path / "secret").write_bytes(SECRET)
    address = Address(str(tmp_path / "socket"), str(tmp_path / "secret"))
    with served_here(tmp_path / "socket", SECRET, lambda message_type, content: content), raw_socket(address):
        start = time.monotonic()
        assert ask(address, "echo", RecordDict({"a": ConfigRecord({"b": 1})}))["a"]["b"] == 1
        assert 0.5 < time.monotonic() - start < 8


def test_two_clients_at_once_are_answered_one_after_the_other(tmp_path):
    (tmp_path / "secret").write_bytes(SECRET)
    address = Address(str(tmp_path / "socket"), str(tmp_path / "secret"))
    at_once, most = 0, 0

    def answer(message_type, content):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.2)
        at_once -= 1
        return content

    answers = []
    with served_here(tmp_path / "socket", SECRET, answer):
        clients = [
            threading.Thread(target=lambda i=i: answers.append(ask(address, "echo", greeting(f"m{i}"))))
            for i in range(3)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    assert sorted(answer["instructions"]["facts"] for answer in answers) == [["m0"], ["m1"], ["m2"]]
    assert most == 1


# Its end


def wait_for(condition, seconds=20.0):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def in_thread(function, *arguments):
    """Start it; returns the thread and where its result or error will be."""
    results = []

    def run():
        try:
            results.append(function(*arguments))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def test_a_trainer_that_is_killed_at_work_is_told_at_once_and_its_place_can_be_taken(tmp_path, in_process):
    with Trainer(tmp_path) as killed:
        content = personal(in_process, local_epochs=1_000_000)
        thread, results = in_thread(ask, killed.address, protocol.TRAIN, content)
        time.sleep(1.0)
        assert thread.is_alive()
        killed.process.kill()
        start = time.monotonic()
        thread.join(timeout=10)
        assert time.monotonic() - start < 5
        assert isinstance(results[0], TrainerError)
        assert f"The trainer at {killed.address.socket} went away before it answered" in str(results[0])
        killed.process.wait()  # its listening socket is closed by then
        with pytest.raises(TrainerError, match=r"No trainer can be reached at .* start it"):
            ask(killed.address, protocol.REGISTER, greeting())
    assert Path(killed.address.socket).exists()  # what was killed cannot clear up
    with Trainer(tmp_path) as next_one:
        assert still_answers(next_one)
        content = personal(in_process, local_epochs=300)
        thread, results = in_thread(ask, next_one.address, protocol.TRAIN, content)
        time.sleep(0.3)
        assert next_one.stop() == 0
        thread.join(timeout=10)
        # It finished what it was asked before it ended.
        assert results[0] == in_process.answer(protocol.TRAIN, content)
        assert not Path(next_one.address.socket).exists()
        assert next_one.log.read_text() == ""


def test_a_mistake_in_the_file_ends_it_with_the_sentence_and_status_2(tmp_path):
    (tmp_path / "secret").write_bytes(SECRET)
    path = site_file(tmp_path, model={"factory": "example_site.nets:raises"}, sed=1)
    command = [sys.executable, "-m", "client_app.resident", "--site", str(path)]
    command += ["--socket", str(tmp_path / "socket"), "--secret", str(tmp_path / "secret")]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    told = ended.stderr.splitlines()
    assert len(told) == 2
    assert f"{path}: there is no key 'sed'; did you mean 'seed'?" in told[0]
    assert f"{path}: model: example_site.nets:raises raised ZeroDivisionError: no layers" in told[1]
    assert not (tmp_path / "socket").exists()


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: (folder / "secret").unlink(), "secret cannot be read: No such file"),
        (lambda folder: (folder / "secret").write_bytes(b"short"), "has 5 bytes, but must have 16 or more"),
        (lambda folder: (folder / "socket").write_text(""), "which is no socket"),
    ],
)
def test_arguments_that_cannot_work_are_told(tmp_path, capsys, prepare, words):
    (tmp_path / "secret").write_bytes(SECRET)
    prepare(tmp_path)
    arguments = ["--site", str(site_file(tmp_path)), "--socket", str(tmp_path / "socket")]
    assert main([*arguments, "--secret", str(tmp_path / "secret")]) == 2
    assert words in capsys.readouterr().err


def test_a_second_trainer_at_one_socket_is_refused(trainer, tmp_path, capsys):
    arguments = ["--site", str(site_file(tmp_path)), "--socket", trainer.address.socket]
    assert main([*arguments, "--secret", trainer.address.secret]) == 2
    assert "Another trainer listens at" in capsys.readouterr().err
    assert still_answers(trainer)


def test_a_second_trainer_with_one_state_dir_is_refused_until_the_first_has_ended(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    state = {"state-dir": str(tmp_path / "state")}
    with Trainer(tmp_path / "one", **state) as one:
        with Trainer(tmp_path / "other", **state) as other:
            assert other.process.wait(timeout=60) == 2
            assert other.log.read_text() == (
                f"Another trainer uses state-dir {tmp_path / 'state'}: stop it, or give this site a state-dir of its "
                "own.\n"
            )
        assert still_answers(one)
        one.process.kill()
        one.process.wait()
    with Trainer(tmp_path / "other", **state) as other:
        assert still_answers(other)


def test_a_state_dir_that_cannot_be_made_is_told(tmp_path, capsys):
    (tmp_path / "secret").write_bytes(SECRET)
    path = site_file(tmp_path, **{"state-dir": "/proc/nowhere"})  # not even root may make folders there
    arguments = ["--site", str(path), "--socket", str(tmp_path / "socket"), "--secret", str(tmp_path / "secret")]
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith("/proc/nowhere could not be written: No such file or directory.\n")


HANGING = """
import threading
from pathlib import Path

import torch

class Records:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if Path(__file__).with_name("hang").exists():
            threading.Event().wait()
        return torch.randn(3, 8, 8), index % 3

def load():
    return Records(), Records()
"""


def test_a_request_that_hangs_ends_the_trainer_which_says_where(tmp_path, in_process):
    home = tmp_path / "hanging"
    home.mkdir()
    (home / "hanging_records.py").write_text(HANGING)
    changes = {"data": {"factory": "hanging_records:load"}, "request-limit": 2}
    with Trainer(home, **changes) as trainer:
        assert trainer.said.startswith("ready")
        content = personal(in_process)
        assert protocol.decode_result(ask(trainer.address, protocol.TRAIN, content)).num_examples == 8
        (home / "hang").touch()
        with pytest.raises(TrainerError, match="went away before it answered") as error:
            ask(trainer.address, protocol.TRAIN, content)
        assert error.value.reason == "trainer-unreachable"
        assert trainer.process.wait(timeout=20) == HUNG
    *stack, last = trainer.log.read_text().splitlines()
    assert last.startswith("train.exchange took longer than 2 s (request-limit), so the trainer ends")
    assert any("hanging_records.py" in line and "__getitem__" in line for line in stack)
    (home / "hang").unlink()
    with Trainer(home, **changes) as trainer:
        assert still_answers(trainer)


def test_sigterm_while_it_waits_ends_it_and_handlers_are_as_before(tmp_path, capsys):
    (tmp_path / "secret").write_bytes(SECRET)
    before = signal.getsignal(signal.SIGTERM)

    def terminate_when_it_listens():
        wait_for((tmp_path / "socket").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    thread, _ = in_thread(terminate_when_it_listens)
    arguments = ["--site", str(site_file(tmp_path)), "--socket", str(tmp_path / "socket")]
    assert main([*arguments, "--secret", str(tmp_path / "secret")]) == 0
    thread.join()
    assert capsys.readouterr().out.startswith("ready: K = ")
    assert not (tmp_path / "socket").exists()
    assert signal.getsignal(signal.SIGTERM) == before


# The ClientApp's side


def test_the_client_app_imports_neither_torch_nor_the_protocol_to_relay(trainer):
    program = f"""
import sys
from flwr.app import Context, Message, RecordDict, ConfigRecord
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
from client_app.app import app
node = {{"trainer-socket": {trainer.address.socket!r}, "trainer-secret": {trainer.address.secret!r}}}
context = Context(run_id=1, node_id=5, node_config=node, state=RecordDict(), run_config={{}})
said = {{"protocol-version": {protocol.VERSION}, "method": "mh-pfedhn", "run-name": "run", "seed": 0, "facts": []}}
settings = {dict(greeting()["settings"])!r}
greeting = RecordDict({{"instructions": ConfigRecord(said), "settings": ConfigRecord(settings)}})
reply = app(Message(greeting, dst_node_id=5, message_type="query.register"), context)
print(reply.content["registration"]["client-key"])
heavy = "torch", "torchvision", "yaml", "scipy", "pyarrow", "matplotlib"
print([name for name in sys.modules if name.partition(".")[0] in heavy])
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("client_app", "common", "server_app")))
"""
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=True).stdout
    ours = [
        "client_app",
        "client_app.app",
        "client_app.resident",
        "client_app.resident.relay",
        "common",
        "common.errors",
        "common.refusal",
        "common.text",
    ]
    assert told.splitlines() == ["site-1", "[]", str(ours)]


@pytest.mark.parametrize(("key", "other"), [("trainer-socket", "trainer-secret"), ("trainer-secret", "trainer-socket")])
def test_half_an_address_is_told(key, other):
    assert relay.is_named_in({key: "/somewhere"})
    with pytest.raises(UserError, match=f"lacks {other}, but must have both"):
        relay.address_in({key: "/somewhere"})
    assert not relay.is_named_in({"partition-id": 0})


def test_a_listener_that_is_no_trainer_is_told(tmp_path):
    (tmp_path / "secret").write_bytes(SECRET)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def speak():
            with contextlib.closing(listener.accept()[0]) as client:
                client.sendall(b"\0\0\0\4HTTP")

        thread, _ = in_thread(speak)
        with pytest.raises(TrainerError, match="went away before it answered"):
            ask(Address(str(tmp_path / "socket"), str(tmp_path / "secret")), "evaluate", RecordDict())
        thread.join()
