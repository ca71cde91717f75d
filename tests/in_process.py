"""Flower's Grid without processes: every message is answered at once by a ClientApp in this process."""

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

Answer = Callable[[Message, Context], Message | None]


class InProcessGrid(Grid):
    """Nodes 100, 101, ... play partitions 0, 1, ...

    Parameters
    ----------
    answer: a ClientApp or a function; None: no reply, ever.
    hold: how many times the server looks in vain for the reply to a message; without it, never.

    `connected` holds the nodes that are there. A message to another is refused; change the set between rounds.
    """

    def __init__(
        self,
        answer: Answer,
        num_nodes: int,
        run_config: dict[str, Any] | None = None,
        hold: Callable[[Message], int] | None = None,
    ) -> None:
        # What Flower's processes set before they call an app.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.answer = answer
        self.hold = hold or (lambda message: 0)
        self.sent: list[Message] = []
        self.received: list[Message] = []
        self.contexts = {
            100 + i: Context(
                run_id=1,
                node_id=100 + i,
                node_config={"partition-id": i, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=run_config or {},
            )
            for i in range(num_nodes)
        }
        self.connected = set(self.contexts)
        self.looks = 0
        self._replies: list[tuple[int, Message]] = []  # the look from which on a reply is found

    def set_run(self, run: Any) -> None:
        raise AssertionError("not used")

    @property
    def run(self) -> Any:
        raise AssertionError("not used")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise AssertionError("deprecated in Flower")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError("the strategy pushes and pulls")

    def get_node_ids(self) -> list[int]:
        return list(self.connected)

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:  # type: ignore[override]
        identifiers: list[str | None] = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in self.connected:
                identifiers.append(None)  # as Flower does, whatever its annotation says
                continue
            identifier = f"message-{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = identifier
            self.sent.append(message)
            identifiers.append(identifier)
            try:
                reply = self.answer(message, self.contexts[node])
            except Exception as error:
                reply = Message(Error(code=2, reason=f"{type(error).__name__}: {error}"), reply_to=message)
            if reply is not None:
                reply.metadata.__dict__["_src_node_id"] = 1 if reply.has_error() else node
                self._replies.append((self.looks + 1 + self.hold(message), reply))
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.looks += 1
        wanted = set(message_ids)
        due = [
            (look, reply)
            for look, reply in self._replies
            if look <= self.looks and reply.metadata.reply_to_message_id in wanted
        ]
        self._replies = [each for each in self._replies if each not in due]
        found = [reply for _, reply in sorted(due, key=lambda each: each[0])]
        self.received += found
        return found
