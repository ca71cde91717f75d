"""Words in sentences to users: comma-separated lists, names in any case of letters, hints at what was meant."""

import difflib
from collections.abc import Iterable

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
    matches = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[matches[0]]!r}?" if matches else ""


def spelled(word: str, known: Iterable[str]) -> str:
    """The known name that is this word in another case of letters, or the word as it is."""
    return next((each for each in known if each.lower() == word.lower()), word)
