"""What the server tells a client about a request, whatever the method, and how it is packed and checked."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.config import RUN_NAME
from common.errors import ProtocolError
from common.evaluation import EVALUATIONS
from common.lineage import Point, is_line
from common.records import check_keys, kind_in_words, name_in
from common.schema import Label
from common.text import kebab, snake


@dataclass(frozen=True)
class Instructions:
    """What the server tells a client about a request, whatever the method."""

    method: str  # a built-in name, or module:Class of a client half from outside
    exchange: str  # name of the method's exchange
    client_key: str  # whom the server believes to speak to
    run_name: str
    server_round: int
    seed: int
    line: str  # of history, since the server was started
    deploys: bool = False  # what comes are the weights that the client is to use
    tests: tuple[str, ...] = ()  # names of the tests that are made of them before anything else
    final: bool = False  # keep them: the run is over
    compress: tuple[str, ...] = ()  # names of the arrays of the reply that take the wire form `upload`
    lineage: tuple[Point, ...] = ()  # the lines that led to this one, the oldest first, each up to its last round
    returns_to: tuple[int, ...] = ()  # the rounds that the server may come back to
    seen: Point | None = None  # the last round in which it took what this client had trained

    def to_record(self) -> dict[str, Any]:
        """As a record holds them: what differs from the defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {kebab(name): _plain(value) for name, value in vars(self).items() if value != defaults[name]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Instructions":
        """Check and undo it. Raises ProtocolError."""
        fields = {kebab(field.name): field for field in dataclasses.fields(cls)}
        required = {key for key, field in fields.items() if field.default is dataclasses.MISSING}
        check_keys(record, required, set(fields), "instructions")
        values = {}
        for key, value in record.items():
            right = fields[key].type
            if key in _READERS:
                values[snake(key)] = _READERS[key](key, value)
            elif type(value) is right:
                values[snake(key)] = value
            else:
                raise ProtocolError("malformed", f"{key} is {repr(value)[:40]}, but must be {kind_in_words(right)}")
        for key in ("method", "exchange"):
            name_in(record, key)
        Label(required=True).check("client-key", record["client-key"])
        found = cls(**values)
        if found.server_round < 1:
            raise ProtocolError("malformed", f"server-round is {found.server_round}, but must be at least 1")
        check_run_name(found.run_name)
        if not is_line(found.line):
            raise ProtocolError("malformed", f"line is {found.line[:40]!r}, but must be lower-case letters and digits")
        return found


def check_run_name(name: object) -> None:
    """Raise ProtocolError unless this names a folder, and nothing outside of where it lies."""
    if not isinstance(name, str) or not RUN_NAME.fullmatch(name):
        raise ProtocolError("malformed", "run-name is not the name of a folder")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Point) else value


def _point(key: str, text: Any) -> Point:
    try:
        return Point.parse(str(text))
    except ValueError as error:
        raise ProtocolError("malformed", f"{key}: {error}") from error


def _points(key: str, texts: Any) -> tuple[Point, ...]:
    return tuple(_point(key, text) for text in _names(key, texts))


def _names(key: str, names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ProtocolError("malformed", f"{key} must be a list of names")
    return tuple(names)


def _tests(key: str, names: Any) -> tuple[str, ...]:
    tests = _names(key, names)
    if unknown := [name for name in tests if name not in EVALUATIONS]:
        raise ProtocolError("malformed", f"{key} holds {unknown[0][:40]!r}, but may hold {', '.join(EVALUATIONS)}")
    return tests


def _rounds(key: str, rounds: Any) -> tuple[int, ...]:
    if not isinstance(rounds, list) or not all(type(number) is int and number >= 1 for number in rounds):
        raise ProtocolError("malformed", f"{key} must be a list of rounds, whole numbers of at least 1")
    return tuple(rounds)


# What reads the instructions that are neither text nor numbers.
_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "compress": _names,
    "lineage": _points,
    "returns-to": _rounds,
    "seen": _point,
    "tests": _tests,
}
