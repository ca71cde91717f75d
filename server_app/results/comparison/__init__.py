"""What several runs show together: tables over seeds, curves, each client's gain over training alone, one page.

Reads nothing but a comparison's folder and the folders of its runs, and works while runs are missing or go on.
"""

from server_app.results.comparison.compared import ComparedRun
from server_app.results.comparison.comparing import Comparison, Group
from server_app.results.comparison.figures import Spread
from server_app.results.comparison.labelling import labelled_runs
from server_app.results.comparison.reading import is_comparison, read_comparison
from server_app.results.comparison.writing import write_comparison, write_report_of

__all__ = [
    "ComparedRun",
    "Comparison",
    "Group",
    "Spread",
    "is_comparison",
    "labelled_runs",
    "read_comparison",
    "write_comparison",
    "write_report_of",
]
