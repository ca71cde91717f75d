"""What a client that refuses sends, and what can pass as a reason."""

import ast
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from client_app.history import LOST
from common import refusal
from common.refusal import ANOTHER_CLIENT, PASSING, REASONS, Refusal, decode_refusal, encode_refusal

ROOT = Path(refusal.__file__).parents[1]


@pytest.mark.parametrize("reason", REASONS)
def test_a_refusal_is_its_code_and_nothing_else(reason):
    content = encode_refusal(reason)
    assert {name: dict(record) for name, record in content.items()} == {"refusal": {"reason": reason}}
    assert decode_refusal(content) == Refusal(reason)


@pytest.mark.parametrize("reason", ["", "late", "/home/secret", "disk-full ", "x" * 10_000])
def test_nothing_but_a_known_code_can_be_sent_or_is_taken(reason):
    assert dict(encode_refusal(reason)["refusal"]) == {"reason": "client-failed"}
    assert decode_refusal(RecordDict({"refusal": ConfigRecord({"reason": reason})})) == Refusal("client-failed")


def test_the_words_of_a_simulated_client_are_one_line():
    content = encode_refusal("misconfigured", "two\n\x1b[31mlines")
    assert decode_refusal(content) == Refusal("misconfigured", "two lines")


@pytest.mark.parametrize(
    "record",
    [{}, {"reason": 1}, {"reason": ["disk-full"]}, {"detail": 3.5}, {"detail": b"\xff"}, {"more": "x"}],
    ids=str,
)
def test_a_refusal_that_is_malformed_is_one_all_the_same(record):
    assert decode_refusal(RecordDict({"refusal": ConfigRecord(record)})) == Refusal("client-failed")


def test_other_replies_are_none():
    assert decode_refusal(RecordDict()) is None
    assert decode_refusal(RecordDict({"metrics": MetricRecord({"loss": 1.0})})) is None
    assert decode_refusal(RecordDict({"refusal": MetricRecord({"loss": 1.0})})) is None


def reasons_in(path):
    """The codes of the ProtocolErrors that a file raises, as far as they are written out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ProtocolError":
            first = node.args[0]
            if isinstance(first, ast.Constant):
                yield first.value


def test_every_code_that_client_code_can_raise_is_known():
    files = [path for folder in ("client_app", "common") for path in (ROOT / folder).rglob("*.py")]
    raised = {reason for path in files for reason in reasons_in(path)}
    assert {"malformed", "no-teacher", "privacy-budget"} <= raised
    raised = (raised | {LOST, ANOTHER_CLIENT}) - {"huge-loss"}  # which the server raises, of a client's reply
    assert raised <= REASONS.keys()
    assert set(PASSING) | raised == REASONS.keys()  # and there are no others
