"""Arrays of a message: how they are packed, and the checks of type, shape, bytes and finiteness before they are used.

Vectors may travel in a shorter wire form (`codec.py`); every other array travels as it is. Nothing is unpickled: only
one header is right for a type and a shape, so it is compared and never parsed.
"""

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array as WireArray
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from common.codec import decode, encode
from common.errors import ProtocolError
from common.schema import DTYPES, Array, Dimensions, Schema

Arrays = Mapping[str, Tensor]

RECORD = "arrays"  # of a message

# By the names that Flower gives them: the types of arrays, and of the parts that codecs make of a vector.
_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in (*DTYPES, "float16", "int8", "uint8")}
_VALUES = "values"  # the codecs' part that travels under the vector's own name


@dataclass(frozen=True)
class WireForm:
    """How vectors travel in one direction."""

    codec: str = "dense"
    topk_fraction: float = 1.0  # of codec topk


DENSE = WireForm()


def encode_arrays(arrays: Arrays, form: WireForm = DENSE, vectors: Iterable[str] | None = None) -> ArrayRecord:
    """Pack arrays; the vectors among those named in `vectors`, or without it all vectors, in the wire form.

    Each stands under its own name; where a codec makes several arrays of it, the others are `name/part`. Raises
    ProtocolError for what codec or protocol cannot send.
    """
    chosen = set(arrays if vectors is None else vectors)
    packed = {}
    for name, array in arrays.items():
        dtype = _dtype_of(name, array)
        array = array.detach().cpu()
        if name in chosen and is_vector(array):
            parts = encode(array, form.codec, form.topk_fraction)
        else:
            parts = {_VALUES: np.array(array.numpy(), dtype, order="C")}
        for part, values in parts.items():
            packed[_label(name, part)] = WireArray(values)
    return ArrayRecord(packed)


def is_vector(array: Tensor) -> bool:
    """Whether an array is one that a codec can shorten."""
    return isinstance(array, Tensor) and array.dim() == 1 and array.dtype == torch.float32 and len(array) > 0


def decode_arrays(content: RecordDict, schema: Schema, form: WireForm = DENSE) -> dict[str, Tensor]:
    """Unpack the arrays of a message: exactly those of the schema, vectors in the wire form, all values finite.

    Raises ProtocolError with reason `malformed`, `wrong-dtype`, `wrong-length`, `not-finite` or `out-of-range`.
    """
    record = content.array_records.get(RECORD, ArrayRecord())
    found: dict[str, dict[str, WireArray]] = {name: {} for name in schema}
    for label, array in record.items():
        name, _, part = label.partition("/")
        if name not in found or label != _label(name, part or _VALUES):
            raise ProtocolError("malformed", f"the message holds {label[:40]!r}, but must hold {sorted(schema)}")
        found[name][part or _VALUES] = array
    if missing := [name for name, parts in found.items() if not parts]:
        raise ProtocolError("malformed", f"the message lacks {missing}")
    dimensions = Dimensions()
    return {
        name: _vector(name, parts, schema[name].most, form)
        if schema[name].codec
        else _array(name, parts, schema[name], dimensions)
        for name, parts in found.items()
    }


def payload_bytes(content: RecordDict) -> int:
    """Bytes of the arrays of a message as sent."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def _vector(name: str, parts: Mapping[str, WireArray], length: int, form: WireForm) -> Tensor:
    values = {}
    for part, array in parts.items():
        shape, label = _shape(array), _label(name, part)
        # No codec needs more values than the vector has.
        if len(shape) != 1 or not 0 <= shape[0] <= length:
            raise ProtocolError(
                "wrong-length", f"{label!r} has shape {str(shape)[:60]}, for a vector of {length} values"
            )
        values[part] = _values(label, array, shape)
    try:
        return decode(values, form.codec, form.topk_fraction, length)
    except ProtocolError as error:
        raise ProtocolError(error.reason, f"vector {name!r}: {error.detail}") from error


def _array(name: str, parts: Mapping[str, WireArray], expected: Array, dimensions: Dimensions) -> Tensor:
    if set(parts) != {_VALUES}:
        raise ProtocolError("malformed", f"{name!r} has parts, but is no vector")
    array = parts[_VALUES]
    if array.dtype != expected.dtype:
        raise ProtocolError("wrong-dtype", f"{name!r} is {str(array.dtype)[:20]}, but must be {expected.dtype}")
    shape = _shape(array)
    dimensions.check(name, shape, expected)
    values = _values(name, array, shape)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ProtocolError("not-finite", f"{name!r} holds NaN or infinity")
    if expected.below is not None and ((values < 0) | (values >= expected.below)).any():
        raise ProtocolError("out-of-range", f"{name!r} holds a number outside of 0 to {expected.below - 1}")
    return torch.from_numpy(values.astype(expected.dtype))


def _shape(array: WireArray) -> tuple[int, ...]:
    """The shape that an array claims, sizes that are no whole numbers as -1."""
    return tuple(size if type(size) is int else -1 for size in array.shape)


def _values(label: str, array: WireArray, shape: tuple[int, ...]) -> np.ndarray:
    """The values of an array, read-only. Its bytes are a NumPy file."""
    dtype = _DTYPES.get(array.dtype)
    if dtype is None:
        raise ProtocolError("wrong-dtype", f"{label!r} is {str(array.dtype)[:20]}, which nothing here is sent as")
    header, count = _npy_header(dtype, shape), math.prod(shape)
    if len(array.data) != len(header) + dtype.itemsize * count or not array.data.startswith(header):
        raise ProtocolError("malformed", f"the bytes of {label!r} are not the {count} {dtype} values they claim")
    return np.frombuffer(array.data, dtype, offset=len(header)).reshape(shape)


def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """What NumPy writes before an array of this type and shape."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _dtype_of(name: str, array: Tensor) -> np.dtype:
    if not isinstance(array, Tensor):
        raise ProtocolError("wrong-dtype", f"{name!r} is of type {type(array).__name__}, but only tensors are sent")
    dtype = str(array.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ProtocolError("wrong-dtype", f"{name!r} is {dtype}, but only {' and '.join(DTYPES)} arrays are sent")
    return _DTYPES[dtype]


def _label(name: str, part: str) -> str:
    return name if part == _VALUES else f"{name}/{part}"
