"""Personalised federated learning for parties whose models differ, as a library; `mh-pfedhn` is the same as a command.

    import mh_pfedhn

    result = mh_pfedhn.run("quickstart", num_rounds=3)
    print(result.headline()["last-accuracy"])
    print(mh_pfedhn.compare("fashion").table())

Nothing imports this package, and it imports PyTorch and Flower only when a function needs them.
"""

from common.errors import UserError
from mh_pfedhn.runs import RunFailedError, RunInterruptedError, compare, load_comparison, load_results, run

__all__ = [
    "RunFailedError",
    "RunInterruptedError",
    "UserError",
    "compare",
    "load_comparison",
    "load_results",
    "run",
]
