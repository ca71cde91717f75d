"""A refusal: how a client answers that it did not do what it was asked.

Of a real site nothing but a reason code leaves the machine, since what its code, its files and the libraries say may
tell of its model and data; its own log holds the words. In a simulation the words travel too: the sites are the
researcher's. The process that Flower starts for every message imports this, so it imports nothing that takes long.
"""

from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict

from common.text import printable

# Reason codes that a client may answer with; for each, what the server says of a site that does. The site's log says
# what exactly it was.
_LOG = "the site's own log says what it was"
ANOTHER_CLIENT = "another-client"
REASONS = {
    # What it was asked does not fit it.
    ANOTHER_CLIENT: "the site takes part under another client key by now; it is asked to register again",
    "malformed": f"the site refused a message that is not what it should be; {_LOG}",
    "version": "the site runs another release: install the same one on all machines",
    "wrong-dtype": f"the site refused an array of another type than the exchange has; {_LOG}",
    "wrong-length": f"the site refused an array of another shape than its model needs; {_LOG}",
    "out-of-range": f"the site refused an array with numbers out of their range; {_LOG}",
    "not-finite": "an array or a loss at the site holds NaN or infinity",
    "not-encodable": "a value at the site is too large for the run's upload codec: use another one",
    "unknown-method": "the site does not know the run's method, or does not list it under methods in its file",
    "not-private": "the site adds noise to what it sends, and the run's method sends what cannot be noised",
    "privacy-budget": "the site's privacy budget is spent, so it sends nothing more",
    "not-deployed": "the site does not deploy the global model",
    "no-teacher": "the site has not kept the global model of that round",
    "not-distillable": "the site's model has other outputs than the global model, which it cannot learn from",
    "state-missing": "the site no longer has what it kept in an earlier round; it restores its state-dir from a "
    "backup made since, or takes part under another client key",
    "no-head": "the site's model has no linear layer, which the run's method needs",
    # What went wrong at it.
    "misconfigured": "a mistake in what the site's operator set up; the site's own log says which",
    "trainer-unreachable": "the site's trainer was not there, or ended before it answered; the site's own log says why",
    "disk-full": "the site's disk is full; the site's own log says which file it could not write",
    "not-writable": "the site could not write a file; the site's own log says which, and why",
    "out-of-memory": "the site's memory, or its device's, did not suffice",
    "client-failed": "the site's own code raised an exception; the site's own log holds it",
}
MISCONFIGURED = "misconfigured"
TRAINER_UNREACHABLE = "trainer-unreachable"
DISK_FULL = "disk-full"
NOT_WRITABLE = "not-writable"
OUT_OF_MEMORY = "out-of-memory"
CLIENT_FAILED = "client-failed"
# Those that tell nothing of the next request.
PASSING = (MISCONFIGURED, TRAINER_UNREACHABLE, DISK_FULL, NOT_WRITABLE, OUT_OF_MEMORY, CLIENT_FAILED)

_RECORD = "refusal"


@dataclass(frozen=True)
class Refusal:
    """Why a client did not do what it was asked; `detail` is empty unless the client is simulated."""

    reason: str  # one of REASONS
    detail: str = ""


def known(reason: object) -> str:
    """The reason code itself, `client-failed` in the place of anything else: no text can pass as a code."""
    return reason if isinstance(reason, str) and reason in REASONS else CLIENT_FAILED


def encode_refusal(reason: str, detail: str = "") -> RecordDict:
    """Pack a refusal. `detail` is for simulated clients alone."""
    words = {"detail": printable(detail)} if detail else {}
    return RecordDict({_RECORD: ConfigRecord({"reason": known(reason), **words})})


def decode_refusal(content: RecordDict) -> Refusal | None:
    """The refusal that a reply is, whatever else it holds; None: it is none. Never raises."""
    record = content.config_records.get(_RECORD)
    if record is None:
        return None
    detail = record.get("detail", "")
    return Refusal(known(record.get("reason")), printable(detail) if isinstance(detail, str) else "")
