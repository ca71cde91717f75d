"""Messages as the other side gets them, arrays whose bytes are of our own making, and the fuzzing that all share."""

import contextlib
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import settings
from hypothesis import strategies as st

from common.errors import ProtocolError

REASONS = {"malformed", "wrong-dtype", "wrong-length", "not-finite", "huge-loss", "out-of-range", "version"}
HEADER_BYTES = 128  # of NumPy's file format, for a vector
THREE = np.array([1, 2, 3], np.float32)
PAYLOAD = THREE.tobytes()


def wired(content: RecordDict) -> RecordDict:
    """The content after Flower's own serialisation."""
    proto = recorddict_to_proto(content)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


def with_arrays(**arrays: Array) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord(arrays)})


def array_of(data: bytes, shape: Any = (3,), dtype: str = "float32", stype: str = "numpy.ndarray") -> Array:
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


def npy(header: str, payload: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """NumPy's file format with a header of our own making, filled up as NumPy does."""
    text = (header.ljust(HEADER_BYTES - 11) + "\n").encode("latin1")
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text + payload


def header_of(shape: str = "(3,)", descr: str = "'<f4'", fortran_order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran_order}, 'shape': {shape}, }}"


def error_of(function: Callable[..., object], *arguments: Any) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        function(*arguments)
    error = caught.value
    assert error.reason in REASONS
    assert str(error) == error.detail
    assert "\n" not in error.detail
    return error


@contextlib.contextmanager
def only_protocol_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason = "malformed"
        try:
            yield
        except ProtocolError as error:
            reason = error.reason
        assert reason in REASONS


# Arbitrary content

FUZZ = settings(max_examples=200, deadline=None, derandomize=True, database=None)
NUMBERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats())
SCALARS = st.one_of(NUMBERS, st.booleans(), st.text(max_size=10), st.binary(max_size=10))
CONFIG_VALUES = st.one_of(SCALARS, SCALARS.flatmap(lambda value: st.lists(st.just(value), max_size=3)))
METRIC_VALUES = st.one_of(NUMBERS, NUMBERS.flatmap(lambda value: st.lists(st.just(value), max_size=3)))

# Pieces of a header, so that some of what comes out is almost one.
HEADERS = st.one_of(
    st.text(st.characters(max_codepoint=255), max_size=60),
    st.lists(
        st.sampled_from(["{", "}", "(", ")", "[", "]", ":", ",", "'descr'", "'shape'", "'fortran_order'", "'<f4'"])
        | st.sampled_from(["True", "False", "3", "0", "-1", "L", "'''", "\n", " ", "'|O'", "1e9", "None", "b''"]),
        max_size=25,
    ).map("".join),
    st.builds(
        header_of,
        shape=st.sampled_from(["(3,)", "()", "3", "(3", "(True,)", "(3L,)", "(-3,)", "(1, 3)", "[3]", "(10**9,)"]),
        descr=st.sampled_from(["'<f4'", "()", "('<f4',)", "('<f4', (3,))", "[]", "{}", "[('', '<f4')]", "''", "'|V0'"]),
        fortran_order=st.sampled_from(["False", "True", "0", "None"]),
    ),
)
BYTES = st.one_of(
    st.binary(max_size=200),
    st.builds(npy, HEADERS, st.sampled_from([PAYLOAD, b"", bytes(24)])),
    st.integers(0, 160).map(lambda length: Array(THREE).data[:length]),
    st.tuples(st.integers(0, 139), st.integers(0, 255)).map(
        lambda change: Array(THREE).data[: change[0]] + bytes([change[1]]) + Array(THREE).data[change[0] + 1 :]
    ),
)
ARRAYS = st.builds(
    array_of,
    BYTES,
    shape=st.sampled_from([(3,), (3,), (3,), (), (1, 3), (-3,), (2**62,)]),
    dtype=st.sampled_from(["float32", "float32", "float32", "float64", "object", ""]),
    stype=st.sampled_from(["numpy.ndarray", "", "pickle"]),
)
RECORDS = st.one_of(
    st.dictionaries(st.text(max_size=10), CONFIG_VALUES, max_size=3).map(ConfigRecord),
    st.dictionaries(st.text(max_size=10), METRIC_VALUES, max_size=3).map(MetricRecord),
    st.dictionaries(st.sampled_from(["theta", "delta", ""]), ARRAYS, max_size=2).map(ArrayRecord),
)


def altered(valid: dict[str, Any], values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A good record's values, some left out, replaced or added."""
    changes = st.dictionaries(st.sampled_from([*valid, "other", ""]), st.none() | values, max_size=3)
    return changes.map(lambda changed: {key: value for key, value in {**valid, **changed}.items() if value is not None})


def contents(
    name: str, record_type: type[Any], valid: RecordDict, values: st.SearchStrategy[Any]
) -> st.SearchStrategy[RecordDict]:
    """Messages of which many are almost right: the record altered, of another kind, or not there."""
    right = altered(dict(valid[name]), values).map(record_type)
    others = {key: record for key, record in valid.items() if key != name}
    anything = st.dictionaries(st.sampled_from([name, "arrays", "other"]), RECORDS, max_size=3)
    return st.one_of(right.map(lambda record: {**others, name: record}), anything).map(RecordDict)
