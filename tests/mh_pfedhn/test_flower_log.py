"""What is passed on of Flower's log."""

import pytest

from mh_pfedhn import flower_run


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("\x1b[92mINFO \x1b[0m:      Round 1\n", "Round 1"),
        ("\x1b[93mWARNING \x1b[0m:   client 3: late\n", "WARNING: client 3: late"),
        ("\x1b[91mERROR \x1b[0m:     \x1b[2J\x1b]0;owned\x07words\n", "ERROR: words"),
        ("  File \x9b31m'x.py'\x08\n", "  File 'x.py'"),
        ("\n", ""),
    ],
)
def test_a_line_is_passed_on_without_what_a_terminal_obeys(line, shown):
    assert flower_run._text(line) == shown
