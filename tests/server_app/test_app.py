"""A mistake of the user's is one sentence in the run's log, whatever Flower does with the error afterwards."""

import logging
from types import SimpleNamespace

import pytest
from flwr.common import log

from common.errors import UserError
from server_app import app


@pytest.fixture
def lines():
    """What Flower's log says; what the ServerApp has added to the log is taken away afterwards."""
    logger, said = logging.getLogger("flwr"), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(handler.format(record))
    logger.addHandler(handler)
    yield said
    logger.removeHandler(handler)
    logger.filters.clear()


def fail(lines):
    """Run the ServerApp with a mistake, and log what Flower logs then."""
    with pytest.raises(UserError) as failed:
        app.main(None, SimpleNamespace(run_config={"num-rounds": 0}))
    log(logging.ERROR, "%s raised an exception", "ServerApp", exc_info=failed.value)
    log(logging.ERROR, "Exit Code: 201\nAn unhandled exception occurred in the ServerApp.")
    return str(failed.value)


def test_a_mistake_is_told_in_one_sentence_without_a_traceback(lines):
    assert lines == [fail(lines)]
    assert "num-rounds is 0" in lines[0]


def test_another_error_keeps_its_traceback(lines):
    fail(lines)
    try:
        raise ValueError("a fault of ours")
    except ValueError as error:
        log(logging.ERROR, "%s raised an exception", "ServerApp", exc_info=error)
    assert "Traceback" in lines[-1]
    assert "a fault of ours" in lines[-1]
