"""Checks of the flat records that messages hold: their keys, and what is under them."""

import re
from collections.abc import Mapping
from typing import Any

from common.errors import ProtocolError

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # of a method or an exchange


def check_keys(record: Mapping[str, Any], required: set[str], optional: set[str], name: str) -> None:
    """Refuse a record of this name that lacks a required key or has one that is neither. Raises ProtocolError."""
    if not required <= set(record) <= required | optional:
        different = sorted((required - set(record)) | (set(record) - required - optional))
        raise ProtocolError("malformed", f"the record {name!r} has missing or unknown keys: {str(different)[:200]}")


def name_in(record: Mapping[str, Any], key: str) -> str:
    """The name of a method or an exchange. Raises ProtocolError."""
    name = record[key]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ProtocolError("malformed", f"{key} is {repr(name)[:40]}, but must be a name")
    return name


def kind_in_words(kind: Any) -> str:
    """What a value of this type is, in words."""
    return {bool: "true or false", int: "a whole number", float: "a number with a decimal point", str: "text"}[kind]
