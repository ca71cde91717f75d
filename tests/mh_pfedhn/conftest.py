"""What the tests of several commands need."""

import pytest

from mh_pfedhn.cli import main

MISTAKE = 2


@pytest.fixture
def complaint(capsys):
    """Run the command with a mistake and return the one line that it writes to stderr."""

    def run(*arguments):
        assert main(arguments) == MISTAKE
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("mh-pfedhn: ")
        assert captured.err.endswith("\n")
        assert captured.err.count("\n") == 1
        return captured.err.removeprefix("mh-pfedhn: ").removesuffix("\n")

    return run
