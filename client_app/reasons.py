"""What went wrong at a client, as a reason code."""

import errno
import sys
from collections.abc import Callable

import torch
from flwr.app import RecordDict

from common.errors import ProtocolError, UserError
from common.files import WriteError
from common.refusal import (
    CLIENT_FAILED,
    DISK_FULL,
    MISCONFIGURED,
    NOT_WRITABLE,
    OUT_OF_MEMORY,
    encode_refusal,
    known,
)
from common.text import printable

# Errors that say in a sentence what is wrong; of others, the traceback does.
TOLD = (ProtocolError, UserError, WriteError)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def reason_of(error: BaseException) -> str:
    """The code that a server may learn of an exception."""
    if isinstance(error, ProtocolError):
        return known(error.reason)
    if isinstance(error, UserError):
        return MISCONFIGURED
    if isinstance(error, OSError) and error.errno in _FULL:
        return DISK_FULL
    if isinstance(error, WriteError):
        return NOT_WRITABLE
    # The last is what PyTorch says of the machine's own memory.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return OUT_OF_MEMORY
    return CLIENT_FAILED


def answered(answer: Callable[[], RecordDict]) -> RecordDict:
    """What a simulated client answers, or its refusal in words. Other errors are raised, for the log to show them."""
    try:
        return answer()
    except TOLD as error:
        # Here too: a server of real nodes, which may play simulated clients, does not print their words.
        print(f"mh-pfedhn: this client refused: {printable(str(error))}", file=sys.stderr, flush=True)
        return encode_refusal(reason_of(error), str(error))
