"""Serving a site's trainer at a socket, until the process is asked to end.

It answers one request at a time, of ClientApps on the same machine which know the secret (`relay.py`).
"""

import contextlib
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path

from flwr.app import RecordDict

from client_app.reasons import TOLD, reason_of
from client_app.resident import relay
from client_app.resident.watchdog import Watchdog
from client_app.site.private import PrivateSite
from client_app.trainer import Trainer
from common.errors import ProtocolError, UserError
from common.text import printable

Answer = Callable[[str, RecordDict], RecordDict]

_PATIENCE = 10  # seconds without a byte after which a client that has begun to speak is given up
_WAITING = 64  # clients in line while a request is worked on


def trainer_of(site: PrivateSite) -> Trainer:
    """The trainer of a site that an operator brings, with its files under the site's own `state-dir`."""
    return Trainer(site.for_seed, site.file.run_folder)


def serve(listener: socket.socket, secret: bytes, answer: Answer, end: socket.socket, watchdog: Watchdog) -> None:
    """Answer one client after the other until `end` can be read. Nothing that a client does ends it.

    A request that takes longer than the watchdog allows ends the process.
    """

    def watched(message_type: str, content: RecordDict) -> RecordDict:
        with watchdog.watching(message_type):
            return answer(message_type, content)

    while True:
        readable, _, _ = select.select([listener, end], [], [])
        if end in readable:
            return
        try:
            with _accepted(listener) as connection:
                _serve_client(connection, secret, watched)
        except Exception as error:
            # A wrong secret, or a client that went away, fell silent or never spoke this protocol.
            print(f"a client was dropped: {_one_line(error)}", file=sys.stderr, flush=True)


def _serve_client(connection: Connection, secret: bytes, answer: Answer) -> None:
    deliver_challenge(connection, secret)
    answer_challenge(connection, secret)
    request = connection.recv_bytes(relay.MAX_BYTES)
    connection.send_bytes(_reply_to(request, answer))


def _reply_to(request: bytes, answer: Answer) -> bytes:
    """The answer to a request, or the reason code of what went wrong: its words are for the operator, in this log."""
    message_type = "a request"
    try:
        try:
            message_type, payload = relay.unpack(request)
            content = relay.records(payload)
        except Exception as error:  # whatever protobuf makes of garbage
            raise ProtocolError("malformed", f"the bytes are no request ({_one_line(error)})") from error
        return relay.pack(relay.REPLY, answer(message_type, content))
    except (Exception, SystemExit) as error:  # the latter by a site's own code
        if not isinstance(error, TOLD):
            traceback.print_exc()
        reason = reason_of(error)
        words = f"{printable(message_type, 40)} was answered with {reason}: {_one_line(error)}"
        print(words, file=sys.stderr, flush=True)
        return relay.pack(relay.ERROR, reason)


@contextlib.contextmanager
def _accepted(listener: socket.socket) -> Iterator[Connection]:
    accepted, _ = listener.accept()
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        # `settimeout` would not reach the Connection, which reads the descriptor itself.
        accepted.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", _PATIENCE, 0))
    accepted.setblocking(True)
    with Connection(accepted.detach()) as connection:
        yield connection


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket that this user alone can connect to; removed at the end."""
    with socket.socket(socket.AF_UNIX) as listener:
        _remove_stale(path)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        except OSError as error:
            raise UserError(f"The socket {path} cannot be made: {error.strerror or error}.") from error
        finally:
            os.umask(before)
        try:
            listener.listen(_WAITING)
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove the socket of a trainer that was killed. Raises UserError when another trainer listens there."""
    if not path.exists():
        return
    if not path.is_socket():
        raise UserError(f"The socket {path} cannot be made: there is a file of this name, which is no socket.")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise UserError(f"Another trainer listens at {path}: stop it, or choose another socket.")


@contextlib.contextmanager
def asked_to_end() -> Iterator[socket.socket]:
    """A socket that can be read once SIGTERM or SIGINT has come, so that a request is never cut off."""
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        woken = signal.set_wakeup_fd(writer.fileno())
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield reader
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(woken)


def _one_line(error: BaseException) -> str:
    """What an error says, which may quote what was sent; its type too where that is no sentence."""
    return printable(str(error) if isinstance(error, TOLD) else f"{type(error).__name__}: {error}")
