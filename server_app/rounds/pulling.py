"""Replies are pulled so that one whose bytes are no message costs nobody else its round."""

from collections.abc import Sequence
from logging import WARNING

from flwr.app import Message
from flwr.common import log
from flwr.serverapp import Grid

from common.text import printable


class Pull:
    """Pulls replies: all at once, and one by one once a pull of several has failed.

    Flower forgets the replies of a pull before it unpacks them. Of a pull that fails because one of them cannot be
    unpacked, the others are gone too, and are answered as unavailable; by themselves that happens to no other again.
    """

    def __init__(self) -> None:
        self._one_by_one = False

    def __call__(self, grid: Grid, identifiers: Sequence[str]) -> tuple[list[Message], list[str]]:
        """The replies that are there to these messages, and the messages whose reply cannot be unpacked.

        Raises what Flower raises where the SuperLink is gone or has ended the run.
        """
        if not self._one_by_one:
            try:
                return list(grid.pull_messages(identifiers)), []
            except OSError:
                raise
            except Exception as error:
                log(WARNING, "Replies could not be unpacked (%s), and are pulled one by one now.", _words(error))
                self._one_by_one = True
        replies: list[Message] = []
        broken: list[str] = []
        for identifier in identifiers:
            try:
                replies += grid.pull_messages([identifier])
            except OSError:
                raise
            except Exception as error:
                grid.get_node_ids()  # raises where it was not the reply: the SuperLink does not answer
                log(WARNING, "A reply could not be unpacked (%s).", _words(error))
                broken.append(identifier)
        return replies, broken


def _words(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}", 200)
