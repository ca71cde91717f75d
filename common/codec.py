"""Codecs: the wire forms of a flat float32 vector [K], as named one-dimensional arrays that are sent as they are.

Lossy ones round to half precision or to eight bits, or send the largest values only (appendix C.7 of the paper).
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from common.errors import ProtocolError

# For each codec the sets of parts that a message may hold, with their dtypes.
PARTS: dict[str, tuple[dict[str, str], ...]] = {
    "dense": ({"values": "<f4"},),
    "half": ({"values": "<f2"},),
    "int8": ({"values": "|i1", "scales": "<f4"},),
    "topk": ({"values": "<f4", "bitmap": "|u1"}, {"values": "<f4", "gaps": "|u1"}),
}
BLOCK = 1024  # values that share a scale in int8

_STEPS = 127  # of a scale from zero to the largest value of its block; without -128 both signs are alike
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(_STEPS), np.float32(0))  # 127 steps stay finite
_GO_ON = 255  # a byte of gaps that stands for 255 positions skipped, and more in the next byte


def lossless(codec: str) -> bool:
    """Whether every vector arrives bit for bit as it was sent."""
    return codec == "dense"


def encode(vector: Tensor, codec: str, topk_fraction: float) -> dict[str, np.ndarray]:
    """Turn a vector into the parts that are sent; they share no memory with it.

    Parameters
    ----------
    vector: [K] float32 on any device, K at least 1.
    codec: a name of PARTS.
    topk_fraction: share of the values that codec topk sends, above 0 and at most 1; the other codecs ignore it.

    Returns
    -------
    `values`, and beside them for codec
        int8: `scales` [ceil(K / 1024)], the size of a step in each block of 1024 values;
        topk: their positions, as `bitmap` [ceil(K / 8)] with a bit a position, lowest bit first, or where that takes
            fewer bytes as `gaps`: how many positions are skipped before each value, in one byte, after a byte of 255
            for every full 255 of them.

    Raises ProtocolError with reason `not-finite` (but for codec dense, where the receiver finds it) or `not-encodable`
    (a value too large for float16).
    """
    values = np.array(vector.detach().cpu().numpy(), "<f4")
    if codec != "dense" and not np.isfinite(values).all():
        raise ProtocolError("not-finite", f"the vector holds NaN or infinity, which codec {codec} does not send")
    match codec:
        case "dense":
            return {"values": values}
        case "half":
            return {"values": _to_half(values)}
        case "int8":
            return _to_steps(values)
        case "topk":
            return _largest(values, _count(topk_fraction, len(values)))
    raise KeyError(codec)


def decode(parts: Mapping[str, np.ndarray], codec: str, topk_fraction: float, length: int) -> Tensor:
    """Turn received parts, which may be read-only, into a vector [length] float32 on the CPU with memory of its own.

    `codec`, `topk_fraction` and `length` (K, at least 1) are what the receiver expects. The parts are trusted in
    nothing: whatever they hold, the memory used is bounded by a multiple of K.

    Raises ProtocolError with reason `malformed`, `wrong-dtype`, `wrong-length` or `not-finite`.
    """
    count = _count(topk_fraction, length) if codec == "topk" else length
    _check(parts, codec, {"values": count, "scales": math.ceil(length / BLOCK), "bitmap": math.ceil(length / 8)})
    values = parts["values"]
    if codec == "int8":
        vector = _from_steps(values, parts["scales"])
    elif codec == "topk":
        vector = np.zeros(length, np.float32)
        if "bitmap" in parts:
            vector[_set_bits(parts["bitmap"], count, length)] = values
        else:
            vector[_after_gaps(parts["gaps"], count, length)] = values
    else:
        vector = values.astype(np.float32)
    return torch.from_numpy(vector)


def _check(parts: Mapping[str, np.ndarray], codec: str, lengths: Mapping[str, int]) -> None:
    """Raise ProtocolError unless the parts are those of the codec, of these lengths, and finite."""
    dtypes = next((dtypes for dtypes in PARTS[codec] if set(dtypes) == set(parts)), None)
    if dtypes is None:
        right = " or ".join(str(sorted(dtypes)) for dtypes in PARTS[codec])
        raise ProtocolError("malformed", f"codec {codec} takes parts {right}, but got {str(sorted(parts))[:60]}")
    for name, dtype in dtypes.items():
        part = parts[name]
        if part.dtype != np.dtype(dtype):
            raise ProtocolError("wrong-dtype", f"part {name!r} is {part.dtype.str[:20]}, but must be {dtype}")
        if part.ndim != 1:
            raise ProtocolError("malformed", f"part {name!r} has {part.ndim} dimensions, but must have one")
        # The length of gaps depends on what they hold.
        if name in lengths and len(part) != lengths[name]:
            raise ProtocolError("wrong-length", f"part {name!r} has length {len(part)}, but must have {lengths[name]}")
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            raise ProtocolError("not-finite", f"part {name!r} holds NaN or infinity")


def _to_half(values: np.ndarray) -> np.ndarray:
    """Round to float16 [K]."""
    with np.errstate(over="ignore"):
        half = values.astype("<f2")
    if not np.isfinite(half).all():
        largest = np.finfo(np.float16).max
        raise ProtocolError(
            "not-encodable",
            f"the vector holds a value of size {np.abs(values).max():.3g}, but codec half sends at most {largest:.0f}: "
            "use codec dense or int8",
        )
    return half


def _to_steps(values: np.ndarray) -> dict[str, np.ndarray]:
    """Round to whole multiples of a scale, the largest magnitude of each block to +-127 of them."""
    largest = np.maximum.reduceat(np.abs(values), np.arange(0, len(values), BLOCK)).astype(np.float64)
    scales = np.minimum(largest / _STEPS, _LARGEST_SCALE).astype(np.float32)
    # Denormal scales are rounded coarsely, the smallest to zero; one rounded down leaves the largest value beyond 127.
    scales = np.where(largest / (_STEPS + 0.25) > scales, np.nextafter(scales, np.float32(1)), scales)
    divisors = np.where(scales > 0, scales, 1)  # a block of zeros has scale zero
    steps = np.rint(values / np.repeat(divisors, BLOCK)[: len(values)]).astype(np.int8)
    return {"values": steps, "scales": scales.astype("<f4")}


def _from_steps(steps: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The values [K] float32 of whole multiples [K] of scales."""
    if (scales < 0).any():
        raise ProtocolError("malformed", "part 'scales' holds a negative scale")
    if (steps < -_STEPS).any():
        raise ProtocolError("malformed", f"part 'values' holds a value below {-_STEPS}")
    with np.errstate(over="ignore"):
        values = steps * np.repeat(scales.astype(np.float32), BLOCK)[: len(steps)]
    if not np.isfinite(values).all():
        raise ProtocolError("not-finite", "part 'scales' holds a scale so large that values become infinite")
    return values


def _count(topk_fraction: float, length: int) -> int:
    """How many of `length` values codec topk sends; a product such as 0.07 * 100, just above 7, means 7."""
    return max(1, math.ceil(topk_fraction * length - 1e-9))


def _largest(values: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """The `count` values of largest magnitude, of equal ones those that come first, and their positions."""
    sizes = np.abs(values)
    smallest = np.partition(sizes, -count)[-count]  # of those sent; many times faster than sorting them all
    chosen = sizes > smallest
    chosen[np.flatnonzero(sizes == smallest)[: count - np.count_nonzero(chosen)]] = True
    positions = np.flatnonzero(chosen)
    skipped = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(skipped // _GO_ON + 1) - 1  # where in `gaps` each distance ends
    if math.ceil(len(values) / 8) <= ends[-1] + 1:
        return {"values": values[positions], "bitmap": np.packbits(chosen, bitorder="little")}
    gaps = np.full(ends[-1] + 1, _GO_ON, np.uint8)
    gaps[ends] = skipped % _GO_ON
    return {"values": values[positions], "gaps": gaps}


def _set_bits(bitmap: np.ndarray, count: int, length: int) -> np.ndarray:
    """The positions [count] of the bits that are set, all below `length`."""
    positions = np.flatnonzero(np.unpackbits(bitmap, bitorder="little"))
    if len(positions) != count or positions[-1] >= length:
        raise ProtocolError("malformed", f"part 'bitmap' must mark {count} positions below {length}, but does not")
    return positions


def _after_gaps(gaps: np.ndarray, count: int, length: int) -> np.ndarray:
    """The positions [count] of values with these gaps before them, all below `length`."""
    # No more than `length - count` positions can be skipped, so more bytes are never needed and not looked at.
    longest = count + (length - count) // _GO_ON
    if not count <= len(gaps) <= longest:
        raise ProtocolError("malformed", f"part 'gaps' has length {len(gaps)}, but must have {count} to {longest}")
    if gaps[-1] == _GO_ON:
        raise ProtocolError("malformed", f"part 'gaps' ends with {_GO_ON}, so its last distance is incomplete")
    ends = np.flatnonzero(gaps != _GO_ON)
    if len(ends) != count:
        raise ProtocolError("malformed", f"part 'gaps' holds {len(ends)} distances, but must hold {count}")
    positions = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(count)
    if positions[-1] >= length:
        raise ProtocolError("malformed", f"part 'gaps' leads to position {positions[-1]}, but must stay below {length}")
    return positions
