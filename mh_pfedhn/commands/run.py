"""`mh-pfedhn run`: a federation from its first round to its last, and an honest exit code."""

import argparse
import signal
import sys
from pathlib import Path

from common.config import DEFAULT_PROFILE, parse_overrides
from common.errors import UserError
from mh_pfedhn.commands import Subparsers
from mh_pfedhn.processes import handling
from mh_pfedhn.runs import RunFailedError, RunInterruptedError, execute


def add(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser("run", help="run a federation, simulated on this machine unless --superlink is given")
    parser.add_argument(
        "profile",
        nargs="*",
        metavar="PROFILE",
        help=f"default {DEFAULT_PROFILE}; see `profiles`; the config.yaml of a run repeats it",
    )
    parser.add_argument("-c", dest="overrides", action="append", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--superlink", metavar="NAME", help="a connection of Flower's config.toml to a running SuperLink"
    )
    parser.set_defaults(handle=_run)


def overrides_of(options: argparse.Namespace) -> dict[str, object]:
    """The settings of a command line. Raises UserError for what stands in the wrong place."""
    overrides = parse_overrides([item for group in options.overrides for item in group])
    for word in options.profile:
        if "=" in word and not Path(word).exists():
            raise UserError(f"{word!r} is no profile: settings come after -c, as in mh-pfedhn run -c {word}.")
    if len(options.profile) > 1:
        raise UserError(f"{len(options.profile)} profiles are given: join them, as in {'+'.join(options.profile)}.")
    if options.profile and "profile" in overrides:
        raise UserError(f"profile is given twice, as {options.profile[0]!r} and by -c: give it once.")
    return overrides | ({"profile": options.profile[0]} if options.profile else {})


def _run(options: argparse.Namespace) -> int:
    overrides = overrides_of(options)
    try:
        # A terminated script stops its run and its SuperLink as an interrupted one does.
        with handling(signal.default_int_handler, signal.SIGTERM):
            run_dir = execute(overrides, options.superlink)
    except (RunFailedError, RunInterruptedError) as error:
        print(f"mh-pfedhn: {error}", file=sys.stderr)
        return 1
    # On a SuperLink of another machine the files are there.
    if (run_dir / "summary.json").exists():
        from server_app.results import final_table

        print(f"\n{final_table(run_dir)}\n")
        if (run_dir / "report.html").exists():  # else the log says why it could not be written
            print(f"Report: {run_dir / 'report.html'}")
    return 0
