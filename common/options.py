"""Options: what a setting is called, what values it takes, what it is for. They stand in the fields of dataclasses."""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from common.factories import NAME
from common.text import kebab, nearest, shown, spelled

AUTO = "auto"

Value = bool | int | float | str

_LARGEST = 2**63 - 1  # of whole numbers: what Flower's messages hold


@dataclass(frozen=True)
class Rule:
    """What an option means, and what values it takes."""

    help: str
    choices: tuple[str, ...] = ()
    minimum: float = -math.inf
    maximum: float = math.inf
    above: float = -math.inf  # exclusive lower bound
    words: tuple[str, ...] = ()  # words that a number option takes beside numbers
    is_list: bool = False  # comma-separated
    own: str = ""  # what a module:name of the user's own may be, which is taken beside the choices
    source: str = ""  # of the default: a section or equation of the paper, a line of its authors' code
    # When a resumed run must agree with its checkpoint: "always", in mode train ("training"), in a "simulation", or "".
    fixed: str = ""


def option(default: Any, help: str, **rule: Any) -> Any:
    """A field of a settings dataclass; the keyword arguments are those of `Rule`."""
    return dataclasses.field(default=default, metadata={"rule": Rule(help, **rule)})


@dataclass(frozen=True)
class Option:
    """One setting: the field `num_rounds` of a dataclass is the key `num-rounds`."""

    key: str
    kinds: frozenset[type]  # bool, int, float, str
    default: Any
    rule: Rule

    def checked(self, value: object, origin: str) -> Value:
        """The value in this option's type. Raises UserError with one sentence that says what would be right."""
        checked = self._accepted(value)
        if checked is None:
            given = "empty" if value == "" else shown(value)
            raise UserError(f"{self.key} is {given} in {origin}, but must be {self.valid}{self._hint(value) or '.'}")
        return checked

    @property
    def valid(self) -> str:
        """What values it takes, in words."""
        rule = self.rule
        if bool in self.kinds:
            return "true or false"
        if self.kinds & {int, float}:
            number = "a number" if float in self.kinds else "a whole number"
            return " ".join(filter(None, [number, _range(rule), *(f"or {word}" for word in rule.words)]))
        if rule.choices:
            # What stands after a slash is a variant; with all of them nobody would find the names.
            plain = [choice for choice in rule.choices if "/" not in choice]
            variant = next((f", or variants such as {choice}" for choice in rule.choices if "/" in choice), "")
            own = f", or module:name for {rule.own}" if rule.own else ""
            return f"{'a comma-separated list of' if rule.is_list else 'one of'} {', '.join(plain)}{variant}{own}"
        if rule.own:
            return f"module:name for {rule.own}"
        text = "text" if self.default == "" else "text that is not empty"
        return f"{text}, or a list of texts" if rule.is_list else text

    def _accepted(self, value: object) -> Value | None:
        """The value in this option's type, None for one that it does not take."""
        if bool in self.kinds:
            return value if isinstance(value, bool) else None
        if self.kinds & {int, float}:
            return self._number(value)
        if self.rule.is_list and isinstance(value, list) and all(isinstance(part, str) for part in value):
            value = ",".join(value)
        if self.rule.choices or self.rule.own:
            return self._chosen(value)
        if value == "" != self.default:
            return None  # empty is a value only where it is the usual one
        return str(value) if isinstance(value, Value) else None  # a run may be named 7

    def _number(self, value: object) -> Value | None:
        rule = self.rule
        if isinstance(value, str):
            if value.lower() in rule.words:
                return value.lower()
            value = _read_number(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            return None
        if not (rule.minimum <= value <= rule.maximum and value > rule.above):
            return None
        if float in self.kinds:
            return float(value)
        return int(value) if value == int(value) and abs(value) <= _LARGEST else None

    def _chosen(self, value: object) -> str | None:
        if not isinstance(value, str):
            return None
        if value == self.default:
            return value  # also where that is empty, which is no choice
        chosen = [spelled(word, self.rule.choices) for word in self._words(value)]
        return ",".join(chosen) if all(word in self.rule.choices or self._is_own(word) for word in chosen) else None

    def _is_own(self, word: str) -> bool:
        return bool(self.rule.own and NAME.fullmatch(word))

    def _hint(self, value: object) -> str:
        """What may have been meant by the first wrong name, or what else is wrong, to end a sentence with."""
        number = _read_number(value) if isinstance(value, str) else value
        unbounded = int in self.kinds and self.rule.maximum == math.inf
        if unbounded and isinstance(number, int | float) and abs(number) > _LARGEST:
            return f", and at most {_LARGEST}."
        if not self.rule.choices or not isinstance(value, str):
            return ""
        lower = [choice.lower() for choice in self.rule.choices]
        wrong = next((word for word in self._words(value) if word.lower() not in lower and not self._is_own(word)), "")
        return "" if ":" in wrong else nearest(wrong, self.rule.choices)

    def _words(self, value: str) -> list[str]:
        return [word.strip() for word in (value.split(",") if self.rule.is_list else [value])]


def options_of(settings: type) -> dict[str, Option]:
    """The options of a dataclass by their keys, in order; fields without a rule are none.

    Raises UserError for an option of a type that no configuration holds.
    """
    hints = typing.get_type_hints(settings)
    options = {}
    for field in dataclasses.fields(settings):
        if "rule" not in field.metadata:
            continue
        key, kinds = kebab(field.name), _kinds(hints[field.name])
        if not kinds <= {bool, int, float, str}:
            raise UserError(
                f"{settings.__qualname__}.{field.name} is declared as {hints[field.name]}, but an option is bool, int, "
                "float or str, or a number with words beside it, such as int | str."
            )
        options[key] = Option(key, kinds, field.default, field.metadata["rule"])
    return options


def _kinds(hint: Any) -> frozenset[type]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return frozenset(typing.get_args(hint) if is_union else [hint])


def _read_number(text: str) -> int | float | None:
    """The number that a text holds: YAML 1.1 reads 1e-3 as text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _range(rule: Rule) -> str:
    parts = []
    if rule.above > -math.inf:
        parts.append(f"above {rule.above:.12g}")
    if rule.minimum > -math.inf:
        parts.append(f"of at least {rule.minimum:.12g}")
    if rule.maximum < math.inf:
        parts.append(f"at most {rule.maximum:.12g}")
    return " and ".join(parts)
