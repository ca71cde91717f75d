"""Options: what a setting is called, what values it takes, what it is for. They stand in the fields of dataclasses."""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from common.text import kebab, nearest, spelled

AUTO = "auto"

Value = bool | int | float | str


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
        if self.rule.is_list and isinstance(value, list) and all(isinstance(part, str) for part in value):
            value = ",".join(map(str, value))
        wrong = f"{self.key} is {value!r} in {origin}, but must be"
        if bool in self.kinds:
            if not isinstance(value, bool):
                raise UserError(f"{wrong} true or false.")
            return value
        if self.kinds & {int, float}:
            return self._number(value, wrong)
        if isinstance(value, bool | int | float) and not self.rule.choices:
            value = str(value)  # a run named 7
        if not isinstance(value, str):
            raise UserError(f"{wrong} text.")
        return self._chosen(value, wrong) if self.rule.choices else value

    def _number(self, value: object, wrong: str) -> Value:
        rule, whole = self.rule, int in self.kinds
        if isinstance(value, str) and value.lower() in rule.words:
            return value.lower()
        number = "a whole number" if whole else "a number"
        wrong += " ".join(filter(None, ["", number, _range(rule), "".join(f"or {word}" for word in rule.words)])) + "."
        if isinstance(value, str) and not whole:
            # YAML 1.1 reads 1e-3 as a string.
            try:
                value = float(value)
            except ValueError:
                raise UserError(wrong) from None
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise UserError(wrong)
        if whole and value != int(value):
            raise UserError(wrong)
        if not (rule.minimum <= value <= rule.maximum and value > rule.above):
            raise UserError(wrong)
        return int(value) if whole else float(value)

    def _chosen(self, value: str, wrong: str) -> str:
        choices = self.rule.choices
        words = [word.strip() for word in value.split(",")] if self.rule.is_list else [value]
        chosen = [spelled(word, choices) for word in words]
        for word in chosen:
            if word not in choices:
                several = "a comma-separated list of" if self.rule.is_list else "one of"
                raise UserError(f"{wrong} {several} {', '.join(choices)}{nearest(word, choices) or '.'}")
        return ",".join(chosen)


def options_of(settings: type) -> dict[str, Option]:
    """The options of a dataclass by their keys, in order; fields without a rule are none."""
    hints = typing.get_type_hints(settings)
    return {
        kebab(field.name): Option(kebab(field.name), _kinds(hints[field.name]), field.default, field.metadata["rule"])
        for field in dataclasses.fields(settings)
        if "rule" in field.metadata
    }


def _kinds(hint: Any) -> frozenset[type]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return frozenset(typing.get_args(hint) if is_union else [hint])


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
