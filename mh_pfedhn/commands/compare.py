"""`mh-pfedhn compare`: methods, settings and seeds side by side, from one file."""

import argparse
import signal
import sys

from common.config import parse_overrides
from mh_pfedhn.commands import Subparsers
from mh_pfedhn.processes import handling
from mh_pfedhn.runs import RunFailedError, RunInterruptedError


def add(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "compare", help="run methods, settings and seeds of a file, or go on with them, and compare the results"
    )
    parser.add_argument("comparison", metavar="FILE", help="a YAML file, or the name of one; see `profiles`")
    parser.add_argument("-c", dest="overrides", action="append", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--name", default="", help="of the folder of results (default: that of the file)")
    parser.add_argument("--seeds", metavar="0,1,2", help="in the place of the file's own")
    parser.add_argument("--dry-run", action="store_true", help="list the runs, with estimated time and memory")
    parser.add_argument("--keep-checkpoints", action="store_true", help="keep those of finished runs, which are large")
    parser.set_defaults(handle=_compare)


def _compare(options: argparse.Namespace) -> int:
    from mh_pfedhn.comparing.plan import make_plan
    from mh_pfedhn.comparing.running import check, finished, in_words, run_plan

    overrides = parse_overrides([item for group in options.overrides for item in group])
    seeds = options.seeds.split(",") if options.seeds else None
    plan = make_plan(options.comparison, overrides, name=options.name, seeds=seeds)
    if options.dry_run:
        from mh_pfedhn.comparing.estimate import described

        check(plan)
        print(described(plan, [run.name for run in plan.runs if finished(run)]))
        return 0
    try:
        # A terminated script stops its run and its SuperLink as an interrupted one does.
        with handling(signal.default_int_handler, signal.SIGTERM):
            failures = run_plan(plan, keep_checkpoints=options.keep_checkpoints)
    except (RunFailedError, RunInterruptedError) as error:
        print(f"mh-pfedhn: {error}", file=sys.stderr)
        return 1
    if any(finished(run) for run in plan.runs):
        from server_app.results.comparison import read_comparison

        print(f"\n{read_comparison(plan.folder).table()}\n")
        page = plan.folder / "comparison.html"
        if page.exists():  # else the log says why it could not be written
            print(f"Comparison: {page}")
    if failures:
        print(f"mh-pfedhn: {in_words(failures, plan)}", file=sys.stderr)
        return 1
    return 0
