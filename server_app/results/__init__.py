"""The files that a run leaves behind: written while it goes on, read back, drawn for people."""

from server_app.results.formatting import format_duration
from server_app.results.reading import Run, read_run
from server_app.results.record import PHASES, START, Failure, RoundRecord
from server_app.results.report import final_table, write_report
from server_app.results.tracking import RunTracker

__all__ = [
    "PHASES",
    "START",
    "Failure",
    "RoundRecord",
    "Run",
    "RunTracker",
    "final_table",
    "format_duration",
    "read_run",
    "write_report",
]
