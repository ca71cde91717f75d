"""Words in sentences to users: comma-separated lists, names in any case of letters, hints at what was meant; and what
of a text from outside a terminal may show.
"""

import difflib
import re
from collections.abc import Iterable

# What a terminal obeys instead of showing: colours, movements, titles, links.
_ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]?"
)
_SHOWN = 100  # characters of a value in a sentence


def split(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated value, without the blanks around them."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def kebab(name: str) -> str:
    """The key of a field: `num_rounds` is `num-rounds`."""
    return name.replace("_", "-")


def snake(key: str) -> str:
    """The field of a key: `num-rounds` is `num_rounds`."""
    return key.replace("-", "_")


def shown(value: object) -> str:
    """A value for a sentence: as Python writes it, cut short where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no number of more than 4,300 digits
        return f"a number of {type(value).__name__} with thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}… ({len(text):,} characters)"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at what may have been meant, to end a sentence with; empty when nothing is near."""
    by_lower = {each.lower(): each for each in known}
    matches = difflib.get_close_matches(word.lower()[:100], by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[matches[0]]!r}?" if matches else ""


def spelled(word: str, known: Iterable[str]) -> str:
    """The known name that is this word in another case of letters, or the word as it is."""
    return next((each for each in known if each.lower() == word.lower()), word)


def plain(line: str) -> str:
    """A line from outside without what a terminal would obey: escape sequences, control and invisible characters."""
    return "".join(each if each.isprintable() else " " for each in _ESCAPE.sub("", line))


def printable(text: str, limit: int = 500) -> str:
    """A text from outside on one line of so many characters at most, for a log, a sentence or a table."""
    # Escape sequences and blanks may take most of what is cut here; nobody is owed the rest.
    return " ".join(plain(text[: 8 * limit]).split())[:limit]
