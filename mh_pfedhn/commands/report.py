"""`mh-pfedhn report`: the page and the pictures of a run, drawn again from its files."""

import argparse
from pathlib import Path

from mh_pfedhn.commands import Subparsers


def add(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser("report", help="draw the report of a run again from its files")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.set_defaults(handle=_report)


def _report(options: argparse.Namespace) -> int:
    from server_app.results import write_report

    print(write_report(options.run_dir))
    return 0
