"""Arrays of a message: what arrives as it was sent, and what is refused before it is used."""

import math
import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from flwr.app import Array as WireArray
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from wires import (
    ARRAYS,
    BYTES,
    FUZZ,
    HEADER_BYTES,
    PAYLOAD,
    RECORDS,
    THREE,
    array_of,
    contents,
    error_of,
    header_of,
    npy,
    only_protocol_errors,
    wired,
    with_arrays,
)

from common.arrays import DENSE, WireForm, decode_arrays, encode_arrays, payload_bytes
from common.protocol import DELTA, THETA, Result, encode_result
from common.schema import Array, UpTo, Vector

N = UpTo("n", 5)
# Prototypes of at most five classes: rows of four values, the class of each, and how many samples stand behind it.
PROTOTYPES = {"rows": Array((N, 4)), "classes": Array((N,), "int64", below=10), "counts": Array((N,), "int64")}


def message(arrays, *form):
    """A message with these arrays, as the other side gets it."""
    return wired(RecordDict({"arrays": encode_arrays(arrays, *form)}))


def prototypes(n=3):
    return {
        "rows": torch.arange(4.0 * n).view(n, 4),
        "classes": torch.arange(n) + 2,
        "counts": torch.full((n,), 2**40),
    }


# What arrives


@pytest.mark.parametrize("n", [0, 1, 3, 5])
def test_arrays_arrive_as_they_were_sent(n):
    arrays = prototypes(n)
    received = decode_arrays(message(arrays), PROTOTYPES)
    assert set(received) == set(arrays)
    for name, array in arrays.items():
        assert received[name].dtype == array.dtype
        assert torch.equal(received[name], array)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (0,), (2, 3), (3, 0), (1, 1), (2, 3, 4), (1, 0, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_an_array_of_any_shape_arrives_bit_for_bit(shape, dtype):
    array = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(1000).to(dtype)
    expected = Array(shape, str(dtype).removeprefix("torch."))
    received = decode_arrays(message({"a": array}), {"a": expected})["a"]
    assert (received.shape, received.dtype) == (array.shape, dtype)
    assert received.numpy().tobytes() == array.numpy().tobytes()


def test_an_array_in_another_order_of_memory_arrives_by_its_values():
    array = torch.arange(6.0).view(2, 3).t()
    assert not array.is_contiguous()
    assert torch.equal(decode_arrays(message({"a": array}), {"a": Array((3, 2))})["a"], array)
    strided = torch.arange(10)[::3]
    assert torch.equal(decode_arrays(message({"a": strided}), {"a": Array((4,), "int64")})["a"], strided)


def test_an_array_with_a_history_is_sent_by_its_values():
    theta = torch.tensor([1.0, 2.0], requires_grad=True) * 2
    received = decode_arrays(message({THETA: theta}), {THETA: Vector(2)})[THETA]
    assert torch.equal(received, theta)
    assert not received.requires_grad


def test_what_is_packed_shares_no_memory_with_what_is_sent():
    arrays = prototypes() | {THETA: torch.zeros(3)}
    content = RecordDict({"arrays": encode_arrays(arrays)})
    for array in arrays.values():
        array.add_(1)
    received = decode_arrays(content, PROTOTYPES | {THETA: Vector(3)})
    assert received[THETA].tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(received["rows"], prototypes()["rows"])


@pytest.mark.parametrize("expected", [Vector(3), Array((3,)), Array((UpTo("n", 3),))], ids=str)
def test_a_received_array_may_be_written_to(expected):
    content = message({THETA: torch.zeros(3)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_arrays(content, {THETA: expected})[THETA].add_(1)
    assert decode_arrays(content, {THETA: expected})[THETA].tolist() == [0.0, 0.0, 0.0]


def test_arrays_are_given_by_name_in_the_order_of_the_schema():
    content = with_arrays(delta=WireArray(THREE), theta=WireArray(THREE[:2]))
    arrays = decode_arrays(content, {THETA: Vector(2), DELTA: Vector(3)})
    assert list(arrays) == [THETA, DELTA]
    assert (arrays[THETA].tolist(), arrays[DELTA].tolist()) == ([1.0, 2.0], [1.0, 2.0, 3.0])
    assert {array.dtype for array in arrays.values()} == {torch.float32}


# What is packed


def test_only_vectors_take_a_wire_form():
    arrays = prototypes() | {THETA: torch.ones(3), "scalar": torch.tensor(1.0)}
    content = message(arrays, WireForm("half"))
    dtypes = {name: array.dtype for name, array in content["arrays"].items()}
    assert dtypes == {
        "rows": "float32",
        "classes": "int64",
        "counts": "int64",
        THETA: "float16",
        "scalar": "float32",
    }
    schema = PROTOTYPES | {THETA: Vector(3), "scalar": Array(())}
    for name, array in decode_arrays(content, schema, WireForm("half")).items():
        assert torch.equal(array, arrays[name])


def test_of_several_vectors_only_those_named_take_the_wire_form():
    arrays = {DELTA: torch.full((3,), 1 / 3), THETA: torch.full((3,), 1 / 3)}
    content = message(arrays, WireForm("half"), [DELTA])
    assert {name: array.dtype for name, array in content["arrays"].items()} == {DELTA: "float16", THETA: "float32"}
    received = decode_arrays(content, {DELTA: Vector(3), THETA: Array((3,))}, WireForm("half"))
    assert torch.equal(received[DELTA], arrays[DELTA].half().float())
    assert torch.equal(received[THETA], arrays[THETA])


@pytest.mark.parametrize("form", [WireForm("half"), WireForm("int8"), WireForm("topk", 0.5)])
def test_what_is_no_vector_is_sent_as_it_is_even_where_it_is_named(form):
    arrays = prototypes() | {"none": torch.zeros(0), "scalar": torch.tensor(0.1)}
    content = message(arrays, form, list(arrays))
    schema = PROTOTYPES | {"none": Array((UpTo("m", 3),)), "scalar": Array(())}
    for name, array in decode_arrays(content, schema, form).items():
        assert torch.equal(array, arrays[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(2, 2), (3,)])
def test_an_array_of_another_type_is_not_sent(dtype, shape):
    error = error_of(encode_arrays, {"a": torch.zeros(shape).to(dtype)})
    assert error.reason == "wrong-dtype"
    name = str(dtype).removeprefix("torch.")
    assert error.detail == f"'a' is {name}, but only float32 and int64 arrays are sent"


def test_payload_bytes_are_those_of_the_values_and_one_header_an_array():
    for length in (1, 3, 3072, 239_856):
        assert payload_bytes(message({THETA: torch.zeros(length)})) == 4 * length + HEADER_BYTES
    content = RecordDict({"arrays": encode_arrays(prototypes())})
    assert payload_bytes(content) == 4 * 12 + 8 * 3 + 8 * 3 + 3 * HEADER_BYTES
    assert payload_bytes(wired(content)) == payload_bytes(content)
    two = encode_result(Result(5, 1.0), {DELTA: torch.zeros(5), THETA: torch.zeros(7)})
    assert payload_bytes(two) == 4 * 12 + 2 * HEADER_BYTES
    assert payload_bytes(RecordDict()) == 0


@FUZZ
@given(st.dictionaries(st.sampled_from(["arrays", "other", ""]), RECORDS, max_size=3).map(RecordDict))
def test_the_bytes_of_any_message_can_be_counted(content):
    assert payload_bytes(content) == sum(
        len(array.data) for record in content.array_records.values() for array in record.values()
    )


# What is refused


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint16, np.bool_, np.complex64, "S4", "U1"])
def test_a_vector_of_a_dtype_that_is_never_sent_is_refused_by_its_dtype(dtype):
    error = error_of(decode_arrays, with_arrays(theta=WireArray(np.zeros(3, dtype))), {THETA: Vector(3)})
    assert error.reason == "wrong-dtype"
    assert "'theta'" in error.detail
    assert str(np.dtype(dtype)) in error.detail


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.uint8, np.int64])
def test_a_dense_vector_of_another_dtype_that_is_sent_is_refused_by_its_dtype(dtype):
    error = error_of(decode_arrays, with_arrays(theta=WireArray(np.zeros(3, dtype))), {THETA: Vector(3)})
    assert error.reason == "wrong-dtype"
    assert np.dtype(dtype).str in error.detail
    assert "<f4" in error.detail


@pytest.mark.parametrize("sent", [np.float64, np.float16, np.int8, np.int32, np.uint64, np.bool_, "float32", "int64"])
@pytest.mark.parametrize("right", ["float32", "int64"])
def test_an_array_of_another_dtype_is_refused_with_both(sent, right):
    if sent == right:
        return
    error = error_of(decode_arrays, with_arrays(a=WireArray(np.zeros((2, 2), sent))), {"a": Array((2, 2), right)})
    assert error.reason == "wrong-dtype"
    assert error.detail == f"'a' is {np.dtype(sent)}, but must be {right}"


@pytest.mark.parametrize("shape", [(4,), (), (3, 1), (1, 3), (1, 1, 3)])
def test_a_vector_of_another_shape_is_refused_with_its_shape_and_the_right_length(shape):
    error = error_of(decode_arrays, with_arrays(theta=WireArray(np.zeros(shape, np.float32))), {THETA: Vector(3)})
    assert error.reason == "wrong-length"
    assert f"'theta' has shape {shape}" in error.detail
    assert "3 values" in error.detail


@pytest.mark.parametrize("length", [0, 1, 2])
def test_a_vector_that_is_too_short_is_refused_with_both_lengths(length):
    error = error_of(decode_arrays, with_arrays(theta=WireArray(THREE[:length])), {THETA: Vector(3)})
    assert error.reason == "wrong-length"
    assert f"length {length}, but must have 3" in error.detail


@pytest.mark.parametrize("shape", [(6, 4), (3, 5), (4, 3), (12,), (), (3, 4, 1), (1, 3, 4)])
def test_an_array_outside_of_its_bounds_is_refused_with_its_shape_and_what_it_must_be(shape):
    error = error_of(decode_arrays, with_arrays(rows=WireArray(np.zeros(shape, np.float32))), {"rows": Array((N, 4))})
    assert error.reason == "wrong-length"
    assert error.detail == f"'rows' has shape {shape}, but must be float32 [n <= 5, 4]"


@pytest.mark.parametrize("odd", ["rows", "classes", "counts"])
def test_arrays_whose_common_dimension_differs_are_refused(odd):
    arrays = prototypes(3) | {odd: prototypes(2)[odd]}
    error = error_of(decode_arrays, message(arrays), PROTOTYPES)
    assert error.reason == "wrong-length"
    assert "but n is " in error.detail
    assert error.detail.endswith(" elsewhere")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("expected", [Vector(3), Array((3,)), Array((UpTo("n", 3),))], ids=str)
def test_an_array_with_a_value_that_is_not_finite_is_refused(value, position, expected):
    values = THREE.copy()
    values[position] = value
    error = error_of(decode_arrays, with_arrays(theta=WireArray(values)), {THETA: expected})
    assert error.reason == "not-finite"
    assert "'theta'" in error.detail or "values" in error.detail
    assert "NaN or infinity" in error.detail


@pytest.mark.parametrize("value", [-1, 10, 2**63 - 1, -(2**63)])
def test_a_whole_number_outside_of_its_range_is_refused(value):
    arrays = prototypes() | {"classes": torch.tensor([0, value, 9])}
    error = error_of(decode_arrays, message(arrays), PROTOTYPES)
    assert error.reason == "out-of-range"
    assert error.detail == "'classes' holds a number outside of 0 to 9"


@pytest.mark.parametrize("value", [-(2**63), -1, 2**63 - 1])
def test_whole_numbers_without_a_range_may_be_any(value):
    arrays = prototypes() | {"counts": torch.tensor([0, value, 9])}
    assert decode_arrays(message(arrays), PROTOTYPES)["counts"].tolist() == [0, value, 9]


@pytest.mark.parametrize(
    ("names", "expected", "words"),
    [
        ([], ["theta"], "lacks ['theta']"),
        (["delta"], ["theta"], "holds 'delta', but must hold ['theta']"),
        (["theta", "delta"], ["theta"], "holds 'delta', but must hold ['theta']"),
        (["theta"], [], "holds 'theta', but must hold []"),
        (["theta"], ["theta", "delta"], "lacks ['delta']"),
        ([], ["theta", "delta"], "lacks ['theta', 'delta']"),
    ],
)
@pytest.mark.parametrize("kind", [Vector(3), Array((3,))], ids=str)
def test_a_missing_or_extra_array_is_refused_by_name(names, expected, words, kind):
    content = with_arrays(**{name: WireArray(THREE) for name in names})
    error = error_of(decode_arrays, content, dict.fromkeys(expected, kind))
    assert error.reason == "malformed"
    assert words in error.detail


@pytest.mark.parametrize("part", ["values", "scales", "bitmap", "gaps", "", "more/parts"])
def test_an_array_that_is_no_vector_has_no_parts(part):
    content = message(prototypes())
    content["arrays"][f"rows/{part}"] = WireArray(THREE)
    assert error_of(decode_arrays, content, PROTOTYPES).reason == "malformed"
    del content["arrays"]["rows"]
    assert error_of(decode_arrays, content, PROTOTYPES).reason == "malformed"


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({"arrays": ConfigRecord({"theta": [1.0, 2.0, 3.0]})})])
def test_a_message_without_a_record_of_arrays_has_none(content):
    assert error_of(decode_arrays, content, {THETA: Vector(3)}).reason == "malformed"
    assert decode_arrays(content, {}) == {}


def test_one_bad_array_among_good_ones_is_the_one_that_is_named():
    content = with_arrays(theta=WireArray(THREE), delta=WireArray(THREE[:2]))
    assert "'delta'" in error_of(decode_arrays, content, {THETA: Vector(3), DELTA: Vector(3)}).detail
    assert "'delta'" in error_of(decode_arrays, content, {THETA: Vector(3), DELTA: Array((3,))}).detail


def test_what_is_said_of_a_message_is_short():
    long = "x" * 10_000
    for content in (
        with_arrays(**{long: WireArray(THREE)}),
        with_arrays(a=array_of(PAYLOAD, shape=(1,) * 1000)),
        with_arrays(a=array_of(PAYLOAD, dtype=long)),
    ):
        for expected in (Vector(3), Array((3,))):
            assert len(error_of(decode_arrays, content, {"a": expected}).detail) < 200


# Bytes that are not what they claim to be


def test_the_bytes_that_numpy_writes_are_read():
    data = npy(header_of(), PAYLOAD)
    assert data == WireArray(THREE).data
    assert decode_arrays(with_arrays(theta=array_of(data)), {THETA: Vector(3)})[THETA].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "data",
    [
        # not the format at all
        b"",
        b"\x93NUMPY",
        b"garbage" * 20,
        PAYLOAD,
        pickle.dumps(THREE),
        b"PK\x03\x04" + bytes(200),
        # cut off, or with something behind
        npy(header_of(), PAYLOAD)[:-1],
        npy(header_of(), PAYLOAD)[:-4],
        npy(header_of(), PAYLOAD)[:40],
        npy(header_of(), PAYLOAD)[:9],
        npy(header_of(), PAYLOAD + b"\0"),
        npy(header_of(), PAYLOAD * 2),
        # a header that says something else than the message
        npy(header_of(shape="(2,)"), PAYLOAD[:8]),
        npy(header_of(shape="(4,)"), PAYLOAD + bytes(4)),
        npy(header_of(shape="(3, 1)"), PAYLOAD),
        npy(header_of(shape="()"), PAYLOAD[:4]),
        npy(header_of(shape="(-1, -3)"), PAYLOAD),
        npy(header_of(descr="'<f8'"), bytes(24)),
        npy(header_of(descr="'<i4'"), PAYLOAD),
        npy(header_of(descr="'>f4'"), PAYLOAD),
        npy(header_of(descr="[('a', '<f4')]"), PAYLOAD),
        npy(header_of(descr="'|S0'"), b""),
        # a header that lies about the bytes that follow
        npy(header_of(shape="(3,)"), b""),
        npy(header_of(shape="(1000000000000,)"), PAYLOAD),
        npy(header_of(shape="(0, 1000000000000000000000000)"), b""),
        # Fortran order, objects
        npy(header_of(fortran_order="True"), PAYLOAD),
        npy(header_of(descr="'|O'"), pickle.dumps([1, 2, 3])),
        npy(header_of(descr="[('a', '|O')]"), PAYLOAD),
        # other versions of the format, a header that never ends
        npy(header_of(), PAYLOAD, version=(2, 0)),
        npy(header_of(), PAYLOAD, version=(9, 9)),
        npy(header_of() + " " * 5000, PAYLOAD),
    ],
)
@pytest.mark.parametrize("expected", [Vector(3), Array((3,)), Array((UpTo("n", 3),))], ids=str)
def test_bytes_that_are_not_the_array_that_the_message_claims_are_malformed(data, expected):
    error = error_of(decode_arrays, with_arrays(theta=array_of(data)), {THETA: expected})
    assert error.reason == "malformed"
    assert "'theta'" in error.detail


@pytest.mark.parametrize(
    "header",
    [
        "(",
        "'''",
        "{[]: 1}",
        "{1: 2, 'a': 3}",
        "\n  a\n b",
        "-" * 900 + "1",
        "[" * 900,
        "{'descr': '<f4'}",
        "[1, 2]",
        "\0",
        header_of(descr="()"),
        header_of(descr="('<f4',)"),
        header_of(descr="{}"),
        header_of(descr="[()]"),
        header_of(descr="'(3'"),
        header_of(shape="(True, 3)"),
        header_of(shape="3"),
        header_of(shape="(3.0,)"),
        header_of(fortran_order="0"),
    ],
    ids=lambda header: ascii(header)[:60],
)
@pytest.mark.parametrize("expected", [Vector(3), Array((3,))], ids=str)
def test_a_header_that_is_no_header_is_malformed(header, expected):
    error = error_of(decode_arrays, with_arrays(theta=array_of(npy(header, PAYLOAD))), {THETA: expected})
    assert error.reason == "malformed"


def test_a_header_that_claims_a_bool_for_a_length_does_not_get_through_as_an_error_of_another_kind():
    content = with_arrays(theta=array_of(npy(header_of(shape="(True,)"), PAYLOAD[:4]), shape=(1,)))
    for expected in (Vector(1), Array((1,)), Array((UpTo("n", 1),))):
        assert error_of(decode_arrays, content, {THETA: expected}).reason == "malformed"


def test_bytes_of_the_wrong_sort_under_a_right_claim_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    for data in (pickle.dumps(Trap()), npy(header_of(descr="'|O'"), pickle.dumps(Trap()))):
        for stype in ("numpy.ndarray", "pickle"):
            for expected in (Vector(3), Array((3,))):
                error_of(decode_arrays, with_arrays(theta=array_of(data, stype=stype)), {THETA: expected})
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        *[((size,), Vector(size)) for size in (10**9, 10**12, 10**18)],
        *[((size,), Array((size,))) for size in (10**9, 10**18)],
        *[((size,), Array((UpTo("n", size),), "int64", below=5)) for size in (10**9, 10**18)],
        ((10**9, 10**9), Array((UpTo("n", 10**9), 10**9))),
        ((2**40, 2**40, 2**40), Array((UpTo("n", 2**40), UpTo("n", 2**40), 2**40))),
    ],
)
def test_a_claim_of_a_huge_array_allocates_nothing(shape, expected):
    descr = repr(np.dtype(expected.dtype).str)
    for header in (header_of(shape=str(shape), descr=descr), header_of()):
        data = npy(header, PAYLOAD)
        content = with_arrays(theta=array_of(data, shape, expected.dtype))
        tracemalloc.start()
        try:
            error = error_of(decode_arrays, content, {THETA: expected})
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert error.reason == "malformed"
        assert peak < 1_000_000


def test_a_claim_beyond_the_bounds_is_refused_before_its_bytes_are_looked_at():
    content = with_arrays(rows=array_of(b"", (10**18, 4)))
    assert error_of(decode_arrays, content, {"rows": Array((N, 4))}).reason == "wrong-length"


# Arbitrary content


def assert_fits(arrays, schema):
    """Assert that arrays are what a schema says, by a calculation of its own."""
    assert set(arrays) == set(schema)
    sizes = {}
    for name, array in arrays.items():
        expected = schema[name]
        assert str(array.dtype) == f"torch.{expected.dtype}"
        assert array.dim() == len(expected.shape)
        for size, bound in zip(array.shape, expected.shape, strict=True):
            if isinstance(bound, UpTo):
                assert size <= bound.most
                assert sizes.setdefault(bound.name, size) == size
            else:
                assert size == bound
        assert torch.isfinite(array).all()
        if expected.below is not None:
            assert ((array >= 0) & (array < expected.below)).all()


SIZES = st.one_of(
    st.integers(0, 4), st.builds(UpTo, st.sampled_from("nm"), st.integers(0, 4)), st.just(UpTo("n", 2**62))
)
SHAPES = st.lists(SIZES, max_size=3).map(tuple)
PLAIN = st.one_of(
    st.builds(Array, SHAPES),
    st.builds(Array, SHAPES, st.just("int64"), st.none() | st.integers(1, 5)),
    st.builds(Vector, st.integers(1, 4)),
)
SCHEMAS = st.dictionaries(st.sampled_from(["theta", "rows", "labels"]), PLAIN, max_size=3)


@st.composite
def fitting(draw):
    """A schema, and arrays that fit it: shapes, types, ranges."""
    schema = draw(SCHEMAS)
    bounds = [size for expected in schema.values() for size in expected.shape if isinstance(size, UpTo)]
    sizes = {}
    for name in {bound.name for bound in bounds}:
        most = min(bound.most for bound in bounds if bound.name == name)
        sizes[name] = draw(st.integers(0, min(most, 4)))
    arrays = {}
    for name, expected in schema.items():
        shape = [sizes[size.name] if isinstance(size, UpTo) else size for size in expected.shape]
        below = 2**31 if expected.below is None else expected.below
        values = np.random.default_rng(draw(st.integers(0, 9))).integers(0, below, shape)
        arrays[name] = torch.from_numpy(np.asarray(values, expected.dtype))
    return schema, arrays


@FUZZ
@given(fitting())
def test_whatever_fits_a_schema_arrives_as_it_was_sent(sent):
    schema, arrays = sent
    received = decode_arrays(message(arrays), schema)
    assert_fits(received, schema)
    for name, array in arrays.items():
        assert torch.equal(received[name], array)


@st.composite
def damaged(draw):
    """A schema, and a message that fits it but for changes in up to four places."""
    schema, arrays = draw(fitting())
    packed = dict(encode_arrays(arrays))
    other = dict(encode_arrays(draw(fitting())[1]))
    for _ in range(draw(st.integers(0, 4))):
        if not packed:
            break
        name = draw(st.sampled_from(sorted(packed)))
        array = packed[name]
        match draw(st.sampled_from(["drop", "rename", "take", "byte", "cut", "dtype", "shape", "values", "values"])):
            case "drop":
                del packed[name]
            case "rename":
                names = ["theta", "rows", "labels", "rows/", "rows/values", "rows/scales", "/", ""]
                packed[draw(st.sampled_from(names))] = packed.pop(name)
            case "take":
                packed |= other
            case "byte":
                place = draw(st.integers(0, len(array.data) - 1))
                data = array.data[:place] + bytes([draw(st.integers(0, 255))]) + array.data[place + 1 :]
                packed[name] = array_of(data, array.shape, array.dtype)
            case "cut":
                packed[name] = array_of(array.data[: draw(st.integers(0, len(array.data)))], array.shape, array.dtype)
            case "dtype":
                dtypes = ["float32", "int64", "float16", "int8", "float64", "<f4", "object", "", "f"]
                packed[name] = array_of(array.data, array.shape, draw(st.sampled_from(dtypes)))
            case "shape":
                claims = st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, -1, 2**31, 2**62]), max_size=4).map(tuple)
                packed[name] = array_of(array.data, draw(claims | st.just(array.shape[::-1])), array.dtype)
            case "values":
                # Bytes and claim agree, so that shape, range and finiteness have to be looked at.
                shape = draw(st.lists(st.integers(0, 4), max_size=3))
                fill = draw(st.sampled_from([0, 1, -1, 4, 5, 2**40, math.nan, math.inf, -math.inf]))
                with np.errstate(all="ignore"):
                    values = np.full(shape, fill).astype(draw(st.sampled_from(["float32", "int64", "float64"])))
                packed[name] = WireArray(np.asarray(values))
    return schema, RecordDict({"arrays": ArrayRecord(packed)})


@settings(FUZZ, max_examples=600)
@given(damaged())
def test_whatever_is_changed_in_a_message_gives_arrays_that_fit_or_a_protocol_error(sent):
    schema, content = sent
    with only_protocol_errors():
        assert_fits(decode_arrays(content, schema), schema)


@FUZZ
@given(
    contents("arrays", ArrayRecord, with_arrays(theta=WireArray(THREE)), ARRAYS),
    st.sampled_from(
        [
            {},
            {THETA: Vector(3)},
            {THETA: Vector(3), DELTA: Vector(3)},
            {THETA: Vector(2**62)},
            {THETA: Array((UpTo("n", 2**62),)), DELTA: Array((UpTo("n", 2**62),))},
            {THETA: Array(()), DELTA: Array((1, 3))},
            {THETA: Array((3,), "int64", below=2)},
        ]
    ),
)
def test_whatever_arrives_as_arrays_fits_or_is_a_protocol_error(content, schema):
    with only_protocol_errors():
        assert_fits(decode_arrays(content, schema), schema)


@settings(FUZZ, max_examples=400)
@given(data=BYTES, expected=st.sampled_from([Vector(3), Array((3,)), Array((UpTo("n", 3),))]))
def test_whatever_bytes_an_array_has_it_is_three_finite_values_or_a_protocol_error(data, expected):
    with only_protocol_errors():
        array = decode_arrays(with_arrays(theta=array_of(data)), {THETA: expected})[THETA]
        assert array.shape == (3,)
        assert torch.isfinite(array).all()


@FUZZ
@given(st.data())
def test_whatever_arrives_is_never_more_than_a_multiple_of_the_message(data):
    schema, content = data.draw(damaged())
    sent = payload_bytes(content)
    tracemalloc.start()
    try:
        with only_protocol_errors():
            decode_arrays(content, schema, DENSE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000 + 20 * sent
