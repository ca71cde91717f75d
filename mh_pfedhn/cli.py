"""The console script `mh-pfedhn`: the frame of its command line, and what its exit codes mean."""

import argparse
import os
import sys
from collections.abc import Sequence

from common.errors import UserError
from mh_pfedhn.commands import certs, compare, export, profiles, report, run, server, site

# In the order of the help: what a researcher uses, then what the operators of a deployment use.
_COMMANDS = (run.add, compare.add, report.add, export.add, profiles.add, certs.add, server.add, site.add)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; what it returns has the handler of the command as `handle`."""
    parser = argparse.ArgumentParser(
        prog="mh-pfedhn", description="Personalised federated learning for parties whose models differ."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0 for success, 1 for a run that failed, 2 for a mistake in what was asked."""
    options = make_parser().parse_args(arguments)
    try:
        status: int = options.handle(options)
    except UserError as error:
        print(f"mh-pfedhn: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read what this prints has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("mh-pfedhn: interrupted.", file=sys.stderr)
        return 1
    return status
