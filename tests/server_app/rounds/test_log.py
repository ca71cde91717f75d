"""What is written down of a failure: one line that a terminal shows and does not obey."""

from server_app.rounds.log import RoundLog


def test_a_failure_is_noted_on_one_line_without_what_a_terminal_obeys(capfd):
    log = RoundLog()
    log.open(3)
    log.fail("7", "malformed", "the message holds '\x1b[2J\x1b]0;owned\x07x'\r\n" + "y" * 1000)
    (failure,) = log.record.failures
    assert (failure.client, failure.reason) == ("7", "malformed")
    assert failure.detail.startswith("the message holds 'x' yyy")
    assert len(failure.detail) == 500
    assert "\x1b]0" not in capfd.readouterr().err


def test_clients_are_quoted_only_where_that_is_said():
    assert not RoundLog().quotes_clients
