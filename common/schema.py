"""Schemas: which arrays a message holds, and which facts a registration; checked at the boundary, before use.

{"delta": Vector(239_856)}                                          a vector for which codecs may be used
{"prototypes": Array((UpTo("n", 100), 64)),                         n <= 100 rows of 64 values,
 "labels": Array((UpTo("n", 100),), "int64", below=100)}            and as many labels, each from 0 to 99
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import ProtocolError

DTYPES = ("float32", "int64")
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class UpTo:
    """A dimension that is only bounded. Dimensions of one name are equal within a message."""

    name: str
    most: int


@dataclass(frozen=True)
class Array:
    """What an array must be: a size or an `UpTo` for each dimension, a type, and for whole numbers their range.

    Raises ValueError for a schema that no array could fit.
    """

    shape: tuple[int | UpTo, ...]
    dtype: str = "float32"  # or int64
    below: int | None = None  # whole numbers are from 0 to below - 1
    codec: bool = False  # whether it may travel in a shorter wire form (`common/codec.py`); see `Vector`

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, but must be one of {', '.join(DTYPES)}")
        if self.below is not None and self.dtype != "int64":
            raise ValueError(f"below is {self.below}, but only whole numbers (int64) have a range")
        if self.codec and not (self.dtype == "float32" and len(self.shape) == 1 and _is_positive(self.shape[0])):
            raise ValueError(f"a codec takes a float32 vector of a fixed length of at least 1, but this is {self}")

    @property
    def most(self) -> int:
        """How many values it holds at most."""
        count = 1
        for size in self.shape:
            count *= size.most if isinstance(size, UpTo) else size
        return count

    def __str__(self) -> str:
        sizes = (f"{size.name} <= {size.most}" if isinstance(size, UpTo) else str(size) for size in self.shape)
        return f"{self.dtype} [{', '.join(sizes)}]"


def _is_positive(size: int | UpTo) -> bool:
    return isinstance(size, int) and size >= 1


def Vector(size: int) -> Array:
    """A float32 vector [size], such as theta_i and delta_i, for which codecs may be used.

    All one-dimensional float32 arrays that a server sends take the wire form `download`, so clients of a method whose
    settings have that must declare them as vectors.
    """
    return Array((size,), codec=True)


Schema = Mapping[str, Array]


@dataclass(frozen=True)
class Whole:
    """A fact that is a whole number."""

    minimum: int
    maximum: int
    required: bool = False

    def check(self, key: str, value: object) -> int:
        """The value. Raises ProtocolError."""
        if type(value) is not int or not self.minimum <= value <= self.maximum:
            raise ProtocolError(
                "malformed",
                f"{key} is {repr(value)[:40]}, but must be a whole number from {self.minimum} to {self.maximum:,}",
            )
        return value


@dataclass(frozen=True)
class Label:
    """A fact that is an opaque label."""

    required: bool = False

    def check(self, key: str, value: object) -> str:
        """The value. Raises ProtocolError."""
        if not isinstance(value, str) or not _LABEL.fullmatch(value):
            raise ProtocolError("malformed", f"a {key} is 1 to 64 letters, digits, dots, dashes and underscores")
        return value


Fact = Whole | Label
Facts = Mapping[str, int | str]


class Dimensions:
    """The sizes that named dimensions of one message have turned out to be."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}

    def check(self, name: str, shape: tuple[int, ...], expected: Array) -> None:
        """Raise ProtocolError unless an array's shape is what is expected."""
        fits = len(shape) == len(expected.shape) and all(
            0 <= size <= bound.most if isinstance(bound, UpTo) else size == bound
            for size, bound in zip(shape, expected.shape, strict=True)
        )
        if not fits:
            raise ProtocolError("wrong-length", f"{name!r} has shape {str(shape)[:60]}, but must be {expected}")
        for size, bound in zip(shape, expected.shape, strict=True):
            if isinstance(bound, UpTo) and self._sizes.setdefault(bound.name, size) != size:
                raise ProtocolError(
                    "wrong-length",
                    f"{name!r} has shape {shape}, but {bound.name} is {self._sizes[bound.name]} elsewhere",
                )
