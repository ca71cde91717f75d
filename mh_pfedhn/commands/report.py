"""`mh-pfedhn report`: what shows a run or a comparison, drawn again from its files; or several runs on one page."""

import argparse
from pathlib import Path

from common.errors import UserError
from common.files import WriteError
from mh_pfedhn.commands import Subparsers

_PAGE = Path("comparison.html")


def add(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "report", help="draw the report of a run or of a comparison again, or several runs on one page"
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="the folder of a run or of a comparison")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"where the page of several runs goes (default: {_PAGE})"
    )
    parser.set_defaults(handle=_report)


def _report(options: argparse.Namespace) -> int:
    try:
        print(_drawn(options.folders, options.output))
    except WriteError as error:
        raise UserError(f"{error}.") from error
    return 0


def _drawn(folders: list[Path], output: Path | None) -> Path:
    """Draw what is asked for; return the page."""
    from server_app.results import write_report
    from server_app.results.comparison import is_comparison, write_comparison, write_report_of

    if len(folders) > 1:
        for folder in filter(is_comparison, folders):
            raise UserError(f"{folder} is a comparison, which is drawn by itself: give it alone, or folders of runs.")
        return write_report_of(folders, output or _PAGE)
    if output:
        raise UserError(f"--output {output} is for several runs: the page of {folders[0]} goes into that folder.")
    return write_comparison(folders[0]) if is_comparison(folders[0]) else write_report(folders[0])
