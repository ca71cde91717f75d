"""The wire between Flower's ClientApp, a new process for every message, and a site's resident trainer.

An AF_UNIX connection of the standard library's, authenticated with a secret that both read from a file; one request
and one reply a connection. Only bytes are sent: a header with the message type, then a RecordDict as Flower packs it,
or the reason code of an error.
"""

import socket
import struct
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from common.errors import ProtocolError, UserError
from common.refusal import CLIENT_FAILED, MISCONFIGURED, TRAINER_UNREACHABLE, encode_refusal
from common.text import printable

MAX_BYTES = 2**31 - 1  # of a message: what protobuf can pack
REPLY, ERROR = "reply", "error"  # message types of answers

_HEADER = struct.Struct("<4s16s")
_MAGIC = b"mhp1"
_SHORTEST_SECRET = 16  # bytes
_KEYS = {"trainer-socket", "trainer-secret"}  # of a SuperNode's configuration


class TrainerError(ProtocolError):
    """The resident trainer is out of reach, or refuses what it was asked: a reason code, and a sentence."""

    @classmethod
    def unreachable(cls, detail: str) -> "TrainerError":
        """No answer can be had of it."""
        return cls(TRAINER_UNREACHABLE, detail)


@dataclass(frozen=True)
class Address:
    """Where a resident trainer listens, and the file with the secret that it shares with its clients."""

    socket: str
    secret: str


def is_named_in(node_config: Mapping[str, object]) -> bool:
    """Whether a SuperNode's configuration names a trainer, or half of one."""
    return bool(_KEYS & node_config.keys())


def address_in(node_config: Mapping[str, object]) -> Address:
    """The trainer that a SuperNode's configuration names. Raises UserError when one of the two keys is missing."""
    if missing := sorted(_KEYS - node_config.keys()):
        raise UserError(
            f"The SuperNode's --node-config lacks {' and '.join(missing)}, but must have both trainer-socket and "
            "trainer-secret."
        )
    return Address(str(node_config["trainer-socket"]), str(node_config["trainer-secret"]))


def answer(node_config: Mapping[str, object], message_type: str, content: RecordDict) -> RecordDict:
    """What the trainer that a SuperNode's configuration names answers, or a refusal. Never raises.

    Flower would send to the server what an exception says. Here that goes to this process's own output, for the
    operator, and to the server nothing but a reason code.
    """
    try:
        return ask(address_in(node_config), message_type, content)
    except ProtocolError as error:
        return _refusal(message_type, error.reason, error)
    except UserError as error:
        return _refusal(message_type, MISCONFIGURED, error)
    except Exception as error:
        traceback.print_exc()
        return _refusal(message_type, CLIENT_FAILED, error)


def _refusal(message_type: str, reason: str, error: Exception) -> RecordDict:
    words = f"mh-pfedhn: {message_type} was answered with {reason}: {printable(str(error))}"
    print(words, file=sys.stderr, flush=True)
    return encode_refusal(reason)


def ask(address: Address, message_type: str, content: RecordDict) -> RecordDict:
    """Send a request and wait for the answer, however long the trainer works on it.

    Raises TrainerError at once when the trainer is not there, dies meanwhile, or answers with an error, and UserError
    for a secret that cannot be read.
    """
    secret = read_secret(Path(address.secret))
    request = pack(message_type, content)
    try:
        with _connected(address) as connection:
            answer_challenge(connection, secret)
            deliver_challenge(connection, secret)
            connection.send_bytes(request)
            reply = connection.recv_bytes(MAX_BYTES)
    except AuthenticationError:
        raise TrainerError.unreachable(
            f"The trainer at {address.socket} does not know the secret in {address.secret}: name the file that it was "
            "started with."
        ) from None
    except (OSError, EOFError, AssertionError) as error:  # the last: whoever listens knows no challenge
        raise TrainerError.unreachable(
            f"The trainer at {address.socket} went away before it answered ({type(error).__name__})."
        ) from error
    answer_type, payload = unpack(reply)
    if answer_type == ERROR:
        raise TrainerError(payload.decode(errors="replace"), "the trainer's own log says why")
    return records(payload)


def _connected(address: Address) -> Connection:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(address.socket)
        except OSError as error:
            raise TrainerError.unreachable(
                f"No trainer can be reached at {address.socket} ({error.strerror or error}): start it, or name the "
                "socket that it was started with."
            ) from None
        return Connection(client.detach())


def read_secret(path: Path) -> bytes:
    """The bytes of a secret file. Raises UserError when there is none, or not enough in it."""
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise UserError(f"The secret {path} cannot be read: {error.strerror}.") from error
    if len(secret) < _SHORTEST_SECRET:
        raise UserError(
            f"The secret {path} has {len(secret)} bytes, but must have {_SHORTEST_SECRET} or more that nobody guesses."
        )
    return secret


def pack(message_type: str, content: RecordDict | str) -> bytes:
    """A message: its header, and records or the reason code of an error."""
    payload = content.encode() if isinstance(content, str) else recorddict_to_proto(content).SerializeToString()
    return _HEADER.pack(_MAGIC, message_type.encode()) + payload


def unpack(message: bytes) -> tuple[str, bytes]:
    """Type and payload of a message. Raises ValueError for bytes that are none."""
    if len(message) < _HEADER.size:
        raise ValueError(f"a message has {_HEADER.size} bytes or more, not {len(message)}")
    magic, message_type = _HEADER.unpack_from(message)
    if magic != _MAGIC:
        raise ValueError("a message begins with other bytes")
    return message_type.rstrip(b"\0").decode("ascii", "replace"), message[_HEADER.size :]


def records(payload: bytes) -> RecordDict:
    """The records in a payload. Raises ValueError, or what protobuf raises, for bytes that are none."""
    return recorddict_from_proto(ProtoRecordDict.FromString(payload))
