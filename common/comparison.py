"""What those who run a comparison and those who read one share: the names of its files, and what a target may be."""

from common.errors import UserError
from common.text import shown

# In the comparison's folder, beside the folders of its runs.
FILE = "comparison.yaml"
FAILURES = "failures.json"


def checked_target(given: object, origin: str) -> float | None:
    """The mean accuracy over clients to which costs are counted, None for none. Raises UserError for what is no such.

    `origin` is where it stands, for the sentence.
    """
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= 1:
        raise UserError(f"target-accuracy is {shown(given)} in {origin}, but must be a number above 0 and at most 1.")
    return float(given)
