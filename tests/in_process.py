"""Flower's Grid without processes: every message is answered at once by a ClientApp in this process."""

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

Answer = Callable[[Message, Context], Message | None]


class InProcessGrid(Grid):
    """Nodes 100, 101, ... play partitions 0, 1, ...; `answer` is a ClientApp or a function; None: no reply, ever."""

    def __init__(self, answer: Answer, num_nodes: int, run_config: dict[str, Any]) -> None:
        # What Flower's processes set before they call an app.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.answer = answer
        self.sent: list[Message] = []
        self.received: list[Message] = []
        self.contexts = {
            100 + i: Context(
                run_id=1,
                node_id=100 + i,
                node_config={"partition-id": i, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=run_config,
            )
            for i in range(num_nodes)
        }
        self._replies: list[Message] = []

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
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        identifiers = []
        for message in messages:
            identifier = f"message-{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = identifier
            self.sent.append(message)
            identifiers.append(identifier)
            node = message.metadata.dst_node_id
            try:
                reply = self.answer(message, self.contexts[node])
            except Exception as error:
                reply = Message(Error(code=2, reason=f"{type(error).__name__}: {error}"), reply_to=message)
            if reply is not None:
                reply.metadata.__dict__["_src_node_id"] = 1 if reply.has_error() else node
                self._replies.append(reply)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        found = [reply for reply in self._replies if reply.metadata.reply_to_message_id in wanted]
        self._replies = [reply for reply in self._replies if reply not in found]
        self.received += found
        return found
