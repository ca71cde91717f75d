"""A secret is planted in each thing that can fail at a real site: it must be in none of the bytes that leave.

The trainer is served as in a process of its own, and Flower's ClientApp relays to it.
"""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from asking import WHOEVER, context_of, greeting, settings_of, told
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_to_proto, recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity
from in_process import InProcessGrid
from serving_here import served_here

from client_app.app import app
from client_app.resident import serving
from client_app.resident.relay import pack
from client_app.site.private import load_site
from common import protocol
from common.files import WriteError
from common.lineage import Point
from common.refusal import Refusal, decode_refusal

SECRET = "oncology7"
CODE = f"""
from pathlib import Path

import torch
from torch import nn

FAILS = Path(__file__).with_name("fails")


def fails(what):
    return FAILS.exists() and FAILS.read_text() == what


class {SECRET}Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.{SECRET}_encoder = nn.Linear(3, width)
        self.{SECRET}_norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 2)

    def forward(self, inputs):
        if fails("forward"):
            raise RuntimeError("{SECRET} has shape (8x31)")
        return self.head(self.{SECRET}_norm(self.{SECRET}_encoder(inputs)))


class Records:
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if fails("dataset"):
            return open("/nowhere/{SECRET}/patient.png")
        if fails("exit"):
            raise SystemExit("{SECRET}")
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, generator=generator), index % 2


def {SECRET}_build():
    if fails("build"):
        raise ValueError("{SECRET} of another width")
    return {SECRET}Net(5 if fails("mismatch") else 4)


def load():
    return Records(), Records()


def {SECRET}_loss(outputs, targets):
    if fails("loss"):
        raise KeyError("{SECRET}")
    if fails("memory"):
        raise torch.OutOfMemoryError("{SECRET} of 31 GiB")
    return nn.functional.cross_entropy(outputs, targets)
"""


class Site:
    """A site served here, and what leaves it."""

    def __init__(self, home: Path) -> None:
        self.home = home / SECRET
        self.home.mkdir()
        module = f"{SECRET}_code"
        sys.modules.pop(module, None)
        (self.home / f"{module}.py").write_text(CODE)
        self.file = self.home / "site.yaml"
        content = {
            "model": {"factory": f"{module}:{SECRET}_build"},
            "data": {"factory": f"{module}:load"},
            "loss": {"factory": f"{module}:{SECRET}_loss"},
            "state-dir": f"{SECRET}-state",
            "client-key": WHOEVER,
            "device": "cpu",
        }
        self.file.write_text(yaml.safe_dump(content))
        self.private = load_site(self.file)
        self.size = self.private.for_seed(0).num_params
        # Not below tmp_path, which is too long for the path of a socket.
        self.sockets = Path(tempfile.mkdtemp(prefix=SECRET))
        self.secret = self.sockets / f"{SECRET}.key"
        self.secret.write_bytes(bytes(range(32)))
        self.socket = self.sockets / SECRET
        self.left: list[bytes] = []

    def fails(self, what: str) -> None:
        """From now on this part of the site's code fails."""
        (self.home / "fails").write_text(what)

    def served(self, answer=None):
        """The trainer, in a thread."""
        answer = answer or serving.trainer_of(self.private).answer
        return served_here(self.socket, self.secret.read_bytes(), answer)

    def asked(self, message_type=protocol.TRAIN, content=None, **node_config) -> str:
        """The reason that the app answers with; its bytes are kept as they leave."""
        import torch

        node_config = {"trainer-socket": str(self.socket), "trainer-secret": str(self.secret)} | node_config
        context = Context(1, 5, {key: value for key, value in node_config.items() if value}, RecordDict(), {})
        if content is None:
            instructions = told(tests=("test",), run_name="trial")
            settings = settings_of("mh-pfedhn", {})
            content = protocol.encode_request(instructions, settings, {"theta": torch.zeros(self.size)})
        grid = InProcessGrid(app, 1)
        grid.contexts[100] = context
        (identifier,) = grid.push_messages([Message(content, dst_node_id=100, message_type=message_type)])
        (reply,) = grid.pull_messages([identifier])
        assert not reply.has_error(), reply.error
        self.left.append(message_to_proto(reply).SerializeToString())
        self.left.append(recorddict_to_proto(reply.content).SerializeToString())
        refusal = decode_refusal(reply.content)
        assert set(reply.content) == {"refusal"} if refusal else True
        return refusal.reason if refusal else ""


@pytest.fixture
def site(tmp_path):
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    made = Site(tmp_path)
    yield made
    assert made.left, "nothing left it"
    assert not any(SECRET.encode() in left for left in made.left)
    assert not any(b"Traceback" in left or b"/" in left.replace(b"query/", b"") for left in made.left[1::2])


def test_without_a_fault_it_answers(site):
    with site.served():
        assert site.asked() == ""
    site.left.clear()
    site.left.append(b"")


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("forward", "client-failed"),
        ("dataset", "client-failed"),
        ("exit", "client-failed"),
        ("loss", "client-failed"),
        ("memory", "out-of-memory"),
    ],
)
def test_of_what_the_sites_code_raises_in_a_round_a_code_leaves(site, what, reason, capfd):
    with site.served():
        site.fails(what)
        assert site.asked() == reason
    assert SECRET in capfd.readouterr().err  # the operator reads it


def test_of_a_model_that_cannot_be_built_for_the_runs_seed_a_code_leaves(site, capfd):
    with site.served():
        site.fails("build")
        instructions = told(seed=9, run_name="trial")
        content = protocol.encode_request(instructions, settings_of("mh-pfedhn", {}), {})
        assert site.asked(content=content) == "misconfigured"
        assert site.asked(protocol.REGISTER, greeting(seed=9)) == "misconfigured"
    assert f"{SECRET} of another width" in capfd.readouterr().err


def test_of_layers_that_do_not_fit_what_was_kept_a_code_leaves(site, capfd):
    import torch

    with site.served():
        assert site.asked() == ""
        site.left.clear()
        for path in (site.private.file.state_dir / "runs/trial").rglob("*.pt"):
            content = torch.load(path, weights_only=True)
            content["state"] = {name: torch.zeros(77) for name in content["state"]}
            torch.save(content, path)
        seen = Point("trial", "first", 1)
        instructions = told(server_round=2, run_name="trial", tests=("test",), seen=seen)
        arrays = {"theta": torch.zeros(site.size)}
        content = protocol.encode_request(instructions, settings_of("mh-pfedhn", {}), arrays)
        assert site.asked(content=content) == "client-failed"
    assert f"{SECRET}_norm" in capfd.readouterr().err


def test_of_a_state_dir_that_cannot_be_written_a_code_leaves_and_its_operator_reads_which(site, capfd):
    with site.served():
        # Also for root, whom permissions do not stop.
        site.private.file.state_dir.write_text("a file in the place of the folder")
        assert site.asked() == "not-writable"
    told_ = capfd.readouterr().err
    assert f"{site.private.file.state_dir}/runs/trial could not be written: Not a directory" in told_
    assert "Traceback" not in told_


def test_of_a_full_disk_a_code_leaves_and_its_operator_reads_which_file(site, capfd, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with site.served():
        monkeypatch.setattr(os, "fsync", full)
        assert site.asked() == "disk-full"
    told_ = capfd.readouterr().err
    assert f"{site.private.file.state_dir}/runs/trial/" in told_
    assert "could not be written: No space left on device" in told_
    assert "Traceback" not in told_


def test_of_a_client_key_that_cannot_be_written_a_code_leaves(site, capfd):
    def answer(message_type, content):
        raise WriteError(site.home / "client-key", PermissionError(errno.EACCES, "Permission denied"))

    with site.served(answer):
        assert site.asked(protocol.REGISTER, greeting()) == "not-writable"
    assert f"{site.home}/client-key could not be written: Permission denied" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("node_config", "reason"),
    [
        ({"trainer-socket": f"/tmp/{SECRET}/none"}, "trainer-unreachable"),
        ({"trainer-secret": f"/tmp/{SECRET}/none"}, "misconfigured"),
        ({"trainer-secret": ""}, "misconfigured"),
        ({"trainer-socket": f"/tmp/{SECRET}" + "x" * 200}, "trainer-unreachable"),
    ],
    ids=["no socket", "no secret", "half", "too long"],
)
def test_of_a_relay_that_fails_a_code_leaves(site, node_config, reason, capfd):
    with site.served():
        assert site.asked(**node_config) == reason
    assert f"train.exchange was answered with {reason}: " in capfd.readouterr().err


def test_of_a_wrong_secret_a_code_leaves(site, capfd):
    other = site.sockets / f"{SECRET}.other"
    other.write_bytes(bytes(32))
    with site.served():
        assert site.asked(**{"trainer-secret": str(other)}) == "trainer-unreachable"
    assert f"does not know the secret in {other}" in capfd.readouterr().err


def test_of_a_trainer_that_goes_away_meanwhile_a_code_leaves(site):
    program = f"""
import os, socket
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
listener = socket.socket(socket.AF_UNIX)
listener.bind({str(site.socket)!r})
listener.listen()
print("ready", flush=True)
with Connection(listener.accept()[0].detach()) as connection:
    deliver_challenge(connection, {site.secret.read_bytes()!r})
    answer_challenge(connection, {site.secret.read_bytes()!r})
    connection.recv_bytes()
    os._exit(9)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        assert site.asked() == "trainer-unreachable"


def test_of_an_answer_that_is_none_a_code_leaves(site, monkeypatch):
    monkeypatch.setattr(serving.relay, "pack", lambda kind, content: pack(kind, content)[:-1] + SECRET.encode())
    with site.served(lambda message_type, content: content):
        assert site.asked() == "client-failed"


def test_the_app_imports_nothing_of_the_sites_so_that_flower_has_nothing_to_quote_of_it():
    program = """
import sys
from client_app.app import app
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("client_app", "common")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    apps = ["client_app", "client_app.app", "client_app.resident", "client_app.resident.relay"]
    assert done.stdout.strip() == str([*apps, "common", "common.errors", "common.refusal", "common.text"])


# In a simulation the sites are the researcher's


def answer_of(run_config, content, message_type=protocol.TRAIN, **node_config):
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(content, dst_node_id=5, message_type=message_type)
    message.metadata.__dict__["_message_id"] = "1"
    return app(message, context_of(run_config, **node_config)).content


def test_a_simulated_client_refuses_in_words(run_config, capfd):
    place = {"partition-id": 0, "num-partitions": 4}
    assert decode_refusal(answer_of(run_config, RecordDict(), **place)) == Refusal(
        "malformed", "the message has no record 'instructions'"
    )
    wrong = answer_of(run_config | {"keep-local": "nosuch.*"}, greeting(), protocol.REGISTER, **place)
    refusal = decode_refusal(wrong)
    assert refusal.reason == "misconfigured"
    assert "nosuch.*" in refusal.detail
    assert "nosuch.*" in capfd.readouterr().err
    assert decode_refusal(answer_of(run_config, RecordDict())).detail.startswith("This SuperNode does not say which")


def test_a_bug_in_a_simulation_is_raised_so_that_its_traceback_is_in_the_log(run_config, monkeypatch):
    monkeypatch.setattr(protocol, "decode_instructions", lambda content: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer_of(run_config, RecordDict(), **{"partition-id": 0, "num-partitions": 4})
