"""The wire forms of a vector: what arrives, how many bytes it takes, and what the receiver refuses."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.codec import BLOCK, PARTS, decode, encode, lossless
from common.errors import ProtocolError
from common.settings import DOWNLOADS, UPLOADS

pytestmark = pytest.mark.filterwarnings("error")

LENET = 239_856  # K of the paper's LeNet on CIFAR-100 (Table 20)
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
LARGEST_HALF = 65_504.0
REASONS = {"malformed", "wrong-dtype", "wrong-length", "not-finite"}
NOT_FINITE = (math.nan, math.inf, -math.inf)
LOSSY = tuple(codec for codec in UPLOADS if codec != "dense")

finite_floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
any_floats = st.floats(width=32)
few_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0])
fractions = st.one_of(st.sampled_from([0.01, 0.07, 0.3, 0.5, 1.0]), st.floats(min_value=1e-6, max_value=1))


def vectors(elements, max_size=40):
    return st.lists(elements, min_size=1, max_size=max_size).map(lambda values: np.array(values, np.float32))


@st.composite
def long_vectors(draw):
    """Vectors of several blocks, whose sizes differ as much as float32 allows."""
    length = draw(st.sampled_from([1023, 1024, 1025, 2048, 2600]))
    exponents = draw(st.lists(st.integers(-46, 38), min_size=3, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    scales = np.repeat([10.0**exponent for exponent in exponents], BLOCK)[:length]
    return (rng.uniform(-3, 3, length) * scales).astype(np.float32)


def normal(length, seed=0):
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


def sent(values, codec, fraction=0.3):
    return encode(torch.tensor(np.asarray(values, np.float32)), codec, fraction)


def received(parts, codec, fraction, length):
    """What decode returns, of parts that are read-only as those of a message are."""
    read_only = {name: np.frombuffer(part.tobytes(), part.dtype) for name, part in parts.items()}
    vector = decode(read_only, codec, fraction, length)
    assert vector.dtype == torch.float32
    assert vector.shape == (length,)
    return vector.numpy()


def passed_on(values, codec, fraction=0.3):
    return received(sent(values, codec, fraction), codec, fraction, len(values))


def refusal(parts, codec, length, fraction=0.3):
    with pytest.raises(ProtocolError) as caught:
        decode(parts, codec, fraction, length)
    error = caught.value
    assert error.reason in REASONS
    assert "\n" not in error.detail
    assert len(error.detail) < 200
    return error


def assert_same_bits(left, right):
    assert left.dtype == right.dtype
    assert left.tobytes() == right.tobytes()


def num_bytes(parts):
    return {name: part.nbytes for name, part in parts.items()}


# Independent references: one value at a time, in plain Python.


def outcome(*message):
    """The vector or the error."""
    try:
        return decode(*message)
    except ProtocolError as error:
        return error


def slow_count(fraction, length):
    count = 1
    while count < fraction * length - 1e-9:
        count += 1
    return count


def slow_topk(values, count):
    """Repeatedly take the first of the largest values that are left; the vector of them and their positions."""
    left = [abs(float(value)) for value in values]
    kept, positions = np.zeros(len(values), np.float32), []
    for _ in range(count):
        position = left.index(max(left))
        kept[position] = values[position]
        left[position] = -1.0
        positions.append(position)
    return kept, sorted(positions)


def slow_gaps(positions):
    gaps, previous = [], -1
    for position in positions:
        distance = position - previous - 1
        while distance >= 255:
            gaps.append(255)
            distance -= 255
        gaps.append(distance)
        previous = position
    return gaps


def slow_bitmap(positions, length):
    bitmap = [0] * math.ceil(length / 8)
    for position in positions:
        bitmap[position // 8] |= 1 << position % 8
    return bitmap


# All codecs


def test_there_is_a_codec_for_every_name_that_the_config_takes():
    assert set(PARTS) == {*UPLOADS, *DOWNLOADS}


def test_only_dense_is_lossless():
    assert [codec for codec in UPLOADS if lossless(codec)] == ["dense"]


@pytest.mark.parametrize("codec", UPLOADS)
@pytest.mark.parametrize("length", [1, 8, 9, 1024, 1025, 3000])
def test_parts_are_plain_arrays_of_the_dtypes_promised(codec, length):
    for fraction in (0.001, 0.3, 1.0):
        parts = sent(normal(length), codec, fraction)
        dtypes = {name: part.dtype.newbyteorder("=").str for name, part in parts.items()}
        assert {name: part.dtype.str for name, part in parts.items()} == dtypes
        assert dtypes in PARTS[codec]
        assert all(part.ndim == 1 and part.flags.c_contiguous for part in parts.values())


@pytest.mark.parametrize("codec", UPLOADS)
@pytest.mark.parametrize("values", [[0.0], [-3.0], [0.0] * 8, [0.0] * 9, [0.0] * 3000], ids=str)
def test_zeros_and_a_single_value_arrive_exactly(codec, values):
    assert passed_on(values, codec).tolist() == values


@pytest.mark.parametrize("codec", UPLOADS)
@pytest.mark.parametrize("length", [1, 8, 9, 1025])
def test_equal_values_arrive_as_they_were_sent_or_not_at_all(codec, length):
    arrived = passed_on([-0.5] * length, codec)
    count = slow_count(0.3, length) if codec == "topk" else length
    assert arrived[:count] == pytest.approx(-0.5, rel=1e-6)
    assert not arrived[count:].any()


@pytest.mark.parametrize("codec", UPLOADS)
def test_encoding_the_same_vector_gives_the_same_bytes(codec):
    first, second = sent(normal(2000), codec), sent(normal(2000), codec)
    assert first.keys() == second.keys()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.parametrize("codec", UPLOADS)
def test_a_vector_with_a_history_and_with_strides_is_sent_by_its_values(codec):
    values = normal(200)
    vector = (torch.tensor(np.repeat(values, 2), requires_grad=True) * 1)[::2]
    parts = encode(vector, codec, 0.3)
    assert all(part.flags.c_contiguous for part in parts.values())
    assert_same_bits(received(parts, codec, 0.3, 200), passed_on(values, codec))


@pytest.mark.parametrize("codec", UPLOADS)
def test_nobody_shares_memory_with_the_other_side(codec):
    vector = torch.tensor(normal(2000))
    before = vector.clone()
    parts = encode(vector, codec, 0.3)
    copies = {name: part.copy() for name, part in parts.items()}
    arrived = decode(parts, codec, 0.3, 2000)
    expected = arrived.clone()
    assert torch.equal(vector, before)
    vector.fill_(7)
    assert torch.equal(arrived, expected)
    arrived.fill_(8)
    assert all(np.array_equal(parts[name], copies[name]) for name in parts)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("position", [0, 1500, 1999])
def test_a_lossy_codec_does_not_send_what_is_not_finite(codec, value, position):
    values = normal(2000)
    values[position] = value
    with pytest.raises(ProtocolError) as caught:
        sent(values, codec)
    assert caught.value.reason == "not-finite"
    assert codec in caught.value.detail


@pytest.mark.parametrize("value", NOT_FINITE)
def test_what_is_not_finite_is_refused_with_the_same_reason_when_it_is_sent_dense(value):
    parts = sent([1.0, value], "dense")
    assert parts["values"].tobytes() == np.array([1.0, value], np.float32).tobytes()
    assert refusal(parts, "dense", 2).reason == "not-finite"


def test_an_unknown_codec_is_a_mistake_of_the_callers():
    with pytest.raises(KeyError, match="zip"):
        sent([1.0], "zip")
    with pytest.raises(KeyError, match="zip"):
        decode({"values": np.zeros(1, np.float32)}, "zip", 0.3, 1)


# dense and half


@settings(deadline=None)
@given(vectors(finite_floats))
def test_dense_arrives_bit_for_bit(values):
    parts = sent(values, "dense")
    assert num_bytes(parts) == {"values": 4 * len(values)}
    assert_same_bits(passed_on(values, "dense"), values)


@settings(deadline=None)
@given(vectors(st.floats(width=32, min_value=-65_519, max_value=65_519)))
@example(np.array([65_519.0, -65_519.0, 1e-7, -1e-9, 0.1], np.float32))
def test_half_arrives_as_numpy_rounds_it(values):
    parts = sent(values, "half")
    assert num_bytes(parts) == {"values": 2 * len(values)}
    assert_same_bits(passed_on(values, "half"), values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("value", [65_520.0, -65_520.0, 1e6, LARGEST, -LARGEST])
def test_half_does_not_send_a_value_that_would_become_infinite(value):
    with pytest.raises(ProtocolError) as caught:
        sent([1.0, value, 0.0], "half")
    assert caught.value.reason == "not-encodable"
    assert f"{abs(value):.3g}" in caught.value.detail
    assert "65504" in caught.value.detail
    assert "use codec dense" in caught.value.detail


# int8


def assert_int8_is_close(values):
    parts = sent(values, "int8")
    assert num_bytes(parts) == {"values": len(values), "scales": 4 * math.ceil(len(values) / BLOCK)}
    arrived = passed_on(values, "int8").astype(np.float64)
    for block, scale in enumerate(parts["scales"].astype(np.float64)):
        inside = slice(block * BLOCK, (block + 1) * BLOCK)
        exact = values[inside].astype(np.float64)
        largest = np.abs(exact).max()
        # A scale is a float32: a step of 2 ** -149 off at most among the denormals, and half a unit in the last place.
        assert abs(scale - largest / 127) <= max(SMALLEST, 1.2e-7 * scale)
        assert (np.abs(arrived[inside] - exact) <= 0.50001 * scale).all()
        assert np.abs(parts["values"][inside].astype(int)).max() <= 127


@settings(deadline=None)
@given(vectors(finite_floats))
@example(np.array([LARGEST], np.float32))
@example(np.array([-LARGEST, LARGEST, 1e38], np.float32))
@example(np.array([SMALLEST, -SMALLEST], np.float32))
def test_int8_is_off_by_half_a_step_at_most(values):
    assert_int8_is_close(values)


@settings(max_examples=40, deadline=None)
@given(long_vectors())
def test_int8_is_off_by_half_a_step_of_its_own_block(values):
    assert_int8_is_close(values)


def test_int8_of_blocks_of_denormal_values_is_off_by_half_a_step_at_most():
    for units in range(1, 600):
        assert_int8_is_close(np.array([units, -units, units // 2, 1, 0], np.float32) * np.float32(SMALLEST))


def test_int8_by_hand():
    values = np.zeros(2 * BLOCK + 1, np.float32)
    values[[0, 1, 2, BLOCK - 1]] = [254.0, -254.0, 2.9, 3.1]  # steps of 2
    values[2 * BLOCK] = -12.7  # steps of 0.1
    parts = sent(values, "int8")
    assert parts["scales"] == pytest.approx([2.0, 0.0, 0.1])
    assert parts["values"][[0, 1, 2, 3, BLOCK - 1, BLOCK, 2 * BLOCK]].tolist() == [127, -127, 1, 0, 2, 0, -127]
    arrived = passed_on(values, "int8")
    assert arrived[[0, 1, 2, BLOCK - 1, 2 * BLOCK]] == pytest.approx([254, -254, 2, 4, -12.7])


@settings(max_examples=20, deadline=None)
@given(long_vectors())
def test_int8_reaches_127_in_every_block_of_normal_size(values):
    steps = sent(values, "int8")["values"]
    for start in range(0, len(values), BLOCK):
        if np.abs(values[start : start + BLOCK]).max() > 1e-35:
            assert np.abs(steps[start : start + BLOCK].astype(int)).max() == 127


# topk


@settings(deadline=None)
@given(st.one_of(vectors(finite_floats), vectors(few_values)), fractions)
@example(np.array([1, -1, 1, -1, 1, 1, 1, 1, 1], np.float32), 0.3)
def test_topk_keeps_the_largest_and_of_equal_ones_the_first(values, fraction):
    kept, _ = slow_topk(values, slow_count(fraction, len(values)))
    assert_same_bits(passed_on(values, "topk", fraction), kept)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000), st.sampled_from([0.0005, 0.002, 0.05, 0.1]), st.integers(0, 99), st.booleans())
def test_topk_of_few_values_keeps_the_largest(length, fraction, seed, rounded):
    values = normal(length, seed)
    values = np.round(values, 1) if rounded else values  # rounded ones are often equal
    count = slow_count(fraction, length)
    kept, positions = slow_topk(values, count)
    parts = sent(values, "topk", fraction)
    assert len(parts["values"]) == count
    assert_same_bits(received(parts, "topk", fraction, length), kept)
    gaps, bitmap = slow_gaps(positions), slow_bitmap(positions, length)
    if len(gaps) < len(bitmap):
        assert (parts.keys(), parts["gaps"].tolist()) == ({"values", "gaps"}, gaps)
    else:
        assert (parts.keys(), parts["bitmap"].tolist()) == ({"values", "bitmap"}, bitmap)


@pytest.mark.parametrize("length", [1, 8, 9, 254, 255, 256, 257, 510, 511, 512, 767, 100_000])
def test_topk_of_one_value_wherever_it_is(length):
    for position in {0, length // 2, length - 1}:
        values = np.zeros(length, np.float32)
        values[position] = -2.0
        assert_same_bits(passed_on(values, "topk", 1e-9), values)


@pytest.mark.parametrize(
    ("fraction", "length", "count"),
    [(0.3, 1, 1), (0.3, 10, 3), (0.3, 9, 3), (0.3, 8, 3), (0.07, 100, 7), (0.01, 8, 1), (1.0, 9, 9), (1e-9, 5000, 1)],
)
def test_topk_sends_this_many_values(fraction, length, count):
    assert len(sent(normal(length), "topk", fraction)["values"]) == count


def test_a_bitmap_is_sent_where_both_take_the_same_bytes():
    assert sent([0] * 8, "topk", 0.125).keys() == {"values", "bitmap"}  # a byte either way
    assert sent([0] * 9, "topk", 0.01).keys() == {"values", "gaps"}
    assert sent([0] * 9, "topk", 0.2).keys() == {"values", "bitmap"}
    assert sent([0] * 17, "topk", 2 / 17).keys() == {"values", "gaps"}


def test_all_values_are_sent_at_a_fraction_of_one():
    values = normal(1000)
    assert_same_bits(passed_on(values, "topk", 1.0), values)


def test_gaps_by_hand():
    values = np.zeros(1000, np.float32)
    values[[2, 3, 259, 770]] = [1.0, -2.0, 3.0, -4.0]
    parts = sent(values, "topk", 0.004)
    assert parts["values"].tolist() == [1.0, -2.0, 3.0, -4.0]
    assert parts["gaps"].tolist() == [2, 0, 255, 0, 255, 255, 0]


def test_bitmap_by_hand():
    parts = sent([0, 5, 0, 0, 0, 0, 0, -4, 3], "topk", 0.3)
    assert parts["values"].tolist() == [5.0, -4.0, 3.0]
    assert parts["bitmap"].tolist() == [0b10000010, 0b1]


def test_bytes_of_a_lenet_of_the_paper():
    values = normal(LENET)
    assert num_bytes(sent(values, "dense")) == {"values": 959_424}
    assert num_bytes(sent(values, "half")) == {"values": 479_712}
    assert num_bytes(sent(values, "int8")) == {"values": 239_856, "scales": 940}
    parts = sent(values, "topk", 0.3)
    assert num_bytes(parts) == {"values": 287_828, "bitmap": 29_982}
    assert round(parts["values"].nbytes / 2**20, 3) == 0.274  # MiB, Table 20
    few = sent(values, "topk", 0.01)
    assert few.keys() == {"values", "gaps"}
    assert len(few["values"]) == 2399
    assert 2399 < few["gaps"].nbytes < 2399 * 1.2


# What the receiver refuses

VALID = {
    "dense": sent(normal(2000), "dense"),
    "half": sent(normal(2000), "half"),
    "int8": sent(normal(2000), "int8"),
    "topk": sent(normal(2000), "topk", 0.3),
    "topk of few": sent(normal(2000), "topk", 0.01),
}
FRACTIONS = {"topk of few": 0.01}
EVERY_PART = [(form, name) for form, parts in VALID.items() for name in parts]


def refused(form, **changes):
    """The error that a valid message of 2000 values gets with these parts changed."""
    return refusal({**VALID[form], **changes}, form.split()[0], 2000, FRACTIONS.get(form, 0.3))


def test_the_messages_that_are_changed_here_are_valid():
    for form, parts in VALID.items():
        assert received(parts, form.split()[0], FRACTIONS.get(form, 0.3), 2000).any()
    assert [tuple(parts) for parts in VALID.values()][3:] == [("values", "bitmap"), ("values", "gaps")]


@pytest.mark.parametrize(("form", "name"), EVERY_PART)
def test_a_missing_part_is_malformed(form, name):
    parts = {other: part for other, part in VALID[form].items() if other != name}
    error = refusal(parts, form.split()[0], 2000, FRACTIONS.get(form, 0.3))
    assert error.reason == "malformed"
    assert f"'{name}'" in error.detail
    assert str(sorted(parts)) in error.detail


@pytest.mark.parametrize("form", VALID)
@pytest.mark.parametrize("name", ["theta", "x" * 10_000, "a\nb", ""])
def test_a_part_too_many_is_malformed(form, name):
    assert refused(form, **{name: np.zeros(3, np.float32)}).reason == "malformed"


def test_positions_in_both_forms_are_malformed():
    assert refused("topk", gaps=VALID["topk of few"]["gaps"]).reason == "malformed"


def test_no_parts_are_malformed():
    assert {refusal({}, codec, 5).reason for codec in UPLOADS} == {"malformed"}


@pytest.mark.parametrize(("form", "name"), EVERY_PART)
@pytest.mark.parametrize(
    "dtype", ["<f4", ">f4", "<f2", ">f2", "<f8", "|i1", "|u1", "<i4", "|b1", "<c8", "|O", "|S4", [("a" * 999, "<f4")]]
)
def test_a_part_of_another_dtype_is_refused_by_name(form, name, dtype):
    right = VALID[form][name].dtype
    if np.dtype(dtype) == right:
        return
    error = refused(form, **{name: np.zeros(len(VALID[form][name]), dtype)})
    assert error.reason == "wrong-dtype"
    assert f"'{name}' is {np.dtype(dtype).str[:20]}" in error.detail
    assert right.str in error.detail


@pytest.mark.parametrize(("form", "name"), EVERY_PART)
@pytest.mark.parametrize("shape", [(), (1, -1), (-1, 1), (-1, 1, 1)])
def test_a_part_that_is_not_one_dimensional_is_malformed(form, name, shape):
    part = VALID[form][name]
    error = refused(form, **{name: part.reshape(shape) if shape else part[0, ...]})
    assert error.reason == "malformed"
    assert f"'{name}' has {len(shape)} dimensions" in error.detail


@pytest.mark.parametrize(("form", "name"), [case for case in EVERY_PART if case[1] != "gaps"])
def test_a_part_of_another_length_is_refused_by_name(form, name):
    part = VALID[form][name]
    for other in (part[:-1], part[:0], np.append(part, part[:1]), np.concatenate([part, part])):
        error = refused(form, **{name: other})
        assert error.reason == "wrong-length"
        assert f"'{name}' has length {len(other)}, but must have {len(part)}" in error.detail


@pytest.mark.parametrize(("form", "name"), [case for case in EVERY_PART if VALID[case[0]][case[1]].dtype.kind == "f"])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_part_with_a_value_that_is_not_finite_is_refused_by_name(form, name, value):
    for position in (0, -1):
        part = VALID[form][name].copy()
        part[position] = value
        error = refused(form, **{name: part})
        assert error.reason == "not-finite"
        assert f"'{name}'" in error.detail


def test_a_negative_scale_is_malformed():
    error = refused("int8", scales=np.array([1.0, -SMALLEST], np.float32))
    assert error.reason == "malformed"
    assert "'scales'" in error.detail


def test_an_int8_of_minus_128_is_malformed():
    steps = VALID["int8"]["values"].copy()
    steps[1999] = -128
    error = refused("int8", values=steps)
    assert error.reason == "malformed"
    assert "'values'" in error.detail
    steps[1999] = -127
    received({**VALID["int8"], "values": steps}, "int8", 0.3, 2000)


@pytest.mark.parametrize("step", [127, -127, 2])
def test_steps_that_decode_to_infinity_are_refused(step):
    steps = np.zeros(2000, np.int8)
    steps[1999] = step
    assert refused("int8", values=steps, scales=np.array([0, LARGEST], np.float32)).reason == "not-finite"
    steps[1999] = 1
    parts = {"values": steps, "scales": np.array([0, LARGEST], np.float32)}
    assert received(parts, "int8", 0.3, 2000)[1999] == LARGEST


def test_a_bitmap_with_a_bit_too_many_or_too_few_is_malformed():
    for flip in (0, 1000, 1999):
        bits = np.unpackbits(VALID["topk"]["bitmap"], bitorder="little")
        bits[flip] ^= 1
        error = refused("topk", bitmap=np.packbits(bits, bitorder="little"))
        assert error.reason == "malformed"
        assert "'bitmap'" in error.detail


@pytest.mark.parametrize("bitmap", [[0b111, 0b10], [0b11, 0b10], [0b11, 0b10000000], [0, 0], [255, 255]])
def test_a_bitmap_that_marks_what_is_beyond_the_end_is_malformed(bitmap):
    values = np.ones(3, np.float32)
    valid = {"values": values, "bitmap": np.array([0b11, 0b1], np.uint8)}
    assert received(valid, "topk", 0.3, 9).tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 1]
    parts = {"values": values, "bitmap": np.array(bitmap, np.uint8)}
    assert refusal(parts, "topk", 9).reason == "malformed"


@pytest.mark.parametrize(
    ("gaps", "positions"),
    [
        ([0, 0], [0, 1]),
        ([254, 254], [254, 509]),
        ([255, 0, 1], [255, 257]),
        ([0, 255, 255, 254], [0, 765]),
        ([0, 255, 255, 255, 232], [0, 998]),
        ([0, 255, 255, 255, 233], [0, 999]),
        ([255, 255, 255, 233, 0], [998, 999]),
    ],
)
def test_gaps_lead_to_these_positions(gaps, positions):
    parts = {"values": np.array([1, 2], np.float32), "gaps": np.array(gaps, np.uint8)}
    arrived = received(parts, "topk", 0.002, 1000)
    assert np.flatnonzero(arrived).tolist() == positions
    assert arrived[positions].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "gaps",
    [
        *[[], [0], [255], [255, 255], [255, 255, 255, 255, 255]],
        *[[0, 255], [0, 0, 255], [255, 0, 255]],  # unfinished
        *[[255, 3], [0, 0, 0], [0, 0, 0, 0, 0]],  # one or three values
        *[[0, 255, 255, 255, 234], [255, 255, 255, 234, 0], [0, 255, 255, 255, 254]],  # beyond the end
        *[[0, 255, 255, 255, 255, 0], [0] * 999, [255] * 999],  # longer than can be needed
    ],
    ids=lambda gaps: str(gaps)[:30],
)
def test_gaps_that_are_not_two_positions_below_1000_are_malformed(gaps):
    parts = {"values": np.ones(2, np.float32), "gaps": np.array(gaps, np.uint8)}
    error = refusal(parts, "topk", 1000, 0.002)
    assert error.reason == "malformed"
    assert "'gaps'" in error.detail


def test_the_error_of_gaps_says_what_is_wrong_with_them():
    def detail(gaps):
        parts = {"values": np.ones(2, np.float32), "gaps": np.array(gaps, np.uint8)}
        return refusal(parts, "topk", 766, 2 / 766).detail

    assert "has length 1, but must have 2 to 4" in detail([0])
    assert "has length 5, but must have 2 to 4" in detail([0, 255, 255, 255, 0])
    assert "its last distance is incomplete" in detail([0, 0, 255])
    assert "holds 3 distances, but must hold 2" in detail([0, 0, 0])
    assert "leads to position 766, but must stay below 766" in detail([1, 255, 255, 254])


def test_a_single_value_has_a_position_too():
    for gaps, reason in (([0], None), ([1], "malformed"), ([255], "malformed")):
        parts = {"values": np.ones(1, np.float32), "gaps": np.array(gaps, np.uint8)}
        if reason:
            assert refusal(parts, "topk", 1).reason == reason
        else:
            assert received(parts, "topk", 0.3, 1).tolist() == [1.0]


@pytest.mark.parametrize(("form", "name"), EVERY_PART)
def test_a_part_of_absurd_length_is_refused_before_it_is_looked_at(form, name):
    # More than any machine could copy; only views of a single value can be that long.
    absurd = np.broadcast_to(VALID[form][name][:1], (1 << 58,))
    assert refused(form, **{name: absurd}).reason == ("malformed" if name == "gaps" else "wrong-length")


def memory_to_decode(parts, fraction, length):
    tracemalloc.start()
    try:
        decode(parts, "topk", fraction, length)
    except ProtocolError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


def test_memory_to_decode_is_bounded_by_the_length_of_the_vector():
    length = 100_000
    for fraction in (1e-5, 0.3, 1.0):
        count = slow_count(fraction, length)
        values = np.ones(count, np.float32)
        for byte in (0, 1, 254, 255):
            bitmap = np.full(math.ceil(length / 8), byte, np.uint8)
            assert memory_to_decode({"values": values, "bitmap": bitmap}, fraction, length) < 40 * length
            for extra in (0, (length - count) // 255, length):
                gaps = np.full(count + extra, byte, np.uint8)
                assert memory_to_decode({"values": values, "gaps": gaps}, fraction, length) < 40 * length


one_in_ten = st.integers(0, 9).map(lambda number: number == 7)
part_dtypes = st.one_of(st.sampled_from(["<f4", "<f2", "|i1", "|u1"]), hnp.scalar_dtypes())


@st.composite
def random_messages(draw):
    """A codec, a length, and parts with now and then a wrong name, dtype, number of dimensions or length."""
    codec = draw(st.sampled_from(UPLOADS))
    length = draw(st.integers(1, 40) | st.sampled_from([255, 256, 300, 1024, 1025]))
    fraction = draw(fractions)
    form = dict(draw(st.sampled_from(PARTS[codec])))
    if draw(one_in_ten):
        form[draw(st.sampled_from(["gaps", "bitmap", "scales", "a part"]))] = draw(part_dtypes)
    count = slow_count(fraction, length) if codec == "topk" else length
    lengths = {"values": count, "scales": math.ceil(length / BLOCK), "bitmap": math.ceil(length / 8)}
    parts = {}
    for name, right in form.items():
        dtype = np.dtype(draw(part_dtypes) if draw(one_in_ten) else right)
        size = draw(st.integers(0, 50)) if draw(one_in_ten) else lengths.get(name, count + draw(st.integers(0, 2)))
        rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
        likely = draw(st.sampled_from([(0,), (0, 0, 0, 1, 2), (0, 0, 0, 1, 255), range(256)]))
        data = rng.choice(likely, size * dtype.itemsize).astype(np.uint8).tobytes()
        if name == "bitmap" and draw(st.booleans()):  # one that chance would hardly make right
            data, dtype = np.packbits(rng.permutation(length) < count, bitorder="little").tobytes(), np.dtype(np.uint8)
        part = np.frombuffer(data, dtype) if dtype.itemsize else np.zeros(size, dtype)
        parts[name] = part.reshape(draw(st.sampled_from([(1, -1), (-1, 1)]))) if draw(one_in_ten) else part
    return parts, codec, fraction, length


@settings(max_examples=300, deadline=None)
@given(random_messages())
def test_random_parts_are_refused_or_decode_to_finite_values(message):
    parts, _, _, length = message
    before = {name: part.tobytes() for name, part in parts.items()}
    result = outcome(*message)
    if isinstance(result, ProtocolError):
        assert result.reason in REASONS
        assert len(result.detail) < 200
    else:
        assert result.dtype == torch.float32
        assert result.shape == (length,)
        assert torch.isfinite(result).all()
        result.fill_(1)
    assert {name: part.tobytes() for name, part in parts.items()} == before


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 254, 255]) | st.integers(0, 255), max_size=8), st.integers(1, 4), st.data())
def test_gaps_are_accepted_exactly_if_they_are_those_of_some_positions(gaps, count, data):
    end = sum(gaps) + count  # the shortest vector that has these positions
    length = max(count, data.draw(st.integers(end - 1, end + 1) | st.integers(1, 1500)))
    parts = {"values": np.ones(count, np.float32), "gaps": np.array(gaps, np.uint8)}
    result = outcome(parts, "topk", count / length, length)
    if sum(byte < 255 for byte in gaps) == count and gaps[-1] < 255 and end <= length:
        assert slow_gaps(np.flatnonzero(result).tolist()) == gaps
        assert int(result.sum()) == count
    else:
        assert result.reason == "malformed"
