"""Vectors in messages, in every wire form: what arrives, how many bytes it takes, and what is refused."""

import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from wires import FUZZ, HEADER_BYTES, THREE, array_of, error_of, only_protocol_errors, wired, with_arrays

from common.arrays import WireForm, decode_arrays, payload_bytes
from common.evaluation import TEST, Evaluation
from common.protocol import (
    DELTA,
    THETA,
    Instructions,
    Result,
    decode_result,
    decode_settings,
    download_form,
    encode_request,
    encode_result,
)
from common.schema import Vector
from common.settings import DOWNLOADS, Compressed

INSTRUCTIONS = Instructions(
    "mh-pfedhn", "personal", client_key="7", run_name="a-run", server_round=3, seed=5, line="a0"
)
RESULT = Result(240, 2.0, {TEST: Evaluation(correct=0, total=80, loss=0.0)})
LENET = 239_856  # K of the paper's LeNet on CIFAR-100 (Table 20)
CODECS = [("dense", 1.0), ("half", 1.0), ("int8", 1.0), ("topk", 0.3), ("topk", 0.001)]
# The array that each codec sends beside `theta`, by its place in `values`; fraction 0.001 makes topk send gaps.
LABELS = {
    ("dense", 1.0): {"theta": "float32"},
    ("half", 1.0): {"theta": "float16"},
    ("int8", 1.0): {"theta": "int8", "theta/scales": "float32"},
    ("topk", 0.3): {"theta": "float32", "theta/bitmap": "uint8"},
    ("topk", 0.001): {"theta": "float32", "theta/gaps": "uint8"},
}


def normal(length, seed=0):
    return torch.randn(length, generator=torch.Generator().manual_seed(seed))


def sent_as(codec, fraction, **vectors):
    """The vectors of a client's reply, as they go over the wire."""
    return wired(encode_result(RESULT, vectors, WireForm(codec, fraction), list(vectors)))


def expected_of(vector, codec, fraction):
    """What should arrive, by a calculation of its own where it is short and by its error where it is not."""
    if codec == "topk":
        count = math.ceil(fraction * len(vector))
        kept = vector.abs().argsort(descending=True, stable=True)[:count]
        return torch.zeros_like(vector).index_put((kept,), vector[kept]), 0.0
    if codec == "half":
        return vector.half().float(), 0.0
    return vector, {"dense": 0.0, "int8": float(vector.abs().max()) / 127 * 0.5001}[codec]


@pytest.mark.parametrize(("codec", "fraction"), CODECS)
def test_every_codec_carries_a_reply(codec, fraction):
    vectors = {DELTA: normal(5000), THETA: normal(3000, seed=1)}
    content = sent_as(codec, fraction, **vectors)
    labels = LABELS[codec, fraction]
    assert {name: array.dtype for name, array in content["arrays"].items()} == labels | {
        name.replace("theta", "delta"): dtype for name, dtype in labels.items()
    }
    arrived = decode_arrays(content, {DELTA: Vector(5000), THETA: Vector(3000)}, WireForm(codec, fraction))
    for name, vector in vectors.items():
        expected, error = expected_of(vector, codec, fraction)
        torch.testing.assert_close(arrived[name], expected, rtol=0, atol=error)
    assert decode_result(content) == RESULT


@pytest.mark.parametrize("download", DOWNLOADS)
def test_every_codec_of_the_download_carries_a_request(download):
    told = Compressed(download=download)
    content = wired(encode_request(INSTRUCTIONS, told, {THETA: normal(5000)}))
    assert {name: array.dtype for name, array in content["arrays"].items()} == LABELS[download, 1.0]
    expected, error = expected_of(normal(5000), download, 1.0)
    arrived = decode_arrays(content, {THETA: Vector(5000)}, download_form(decode_settings(content, Compressed)))[THETA]
    torch.testing.assert_close(arrived, expected, rtol=0, atol=error)
    assert (download == "dense") == torch.equal(arrived, normal(5000))


@pytest.mark.parametrize(
    ("codec", "data_bytes", "arrays"),
    [
        ("dense", 4 * LENET, 1),
        ("half", 2 * LENET, 1),
        ("int8", LENET + 4 * 235, 2),  # a scale for each of 235 blocks of 1024
        ("topk", 4 * 71_957 + LENET // 8, 2),  # three tenths of the values, and a bit for each
    ],
)
def test_bytes_of_a_lenet_of_the_paper_as_sent(codec, data_bytes, arrays):
    content = sent_as(codec, 0.3, delta=normal(LENET))
    assert payload_bytes(content) == data_bytes + arrays * HEADER_BYTES
    if codec != "topk":
        request = encode_request(INSTRUCTIONS, Compressed(download=codec), {THETA: normal(LENET)})
        assert payload_bytes(request) == payload_bytes(content)


@pytest.mark.parametrize(("codec", "fraction"), CODECS)
@pytest.mark.parametrize("other", CODECS)
def test_a_vector_in_another_wire_form_than_the_one_agreed_on_is_refused(codec, fraction, other):
    if other == (codec, fraction):
        return
    content = sent_as(*other, theta=normal(5000))
    assert error_of(decode_arrays, content, {THETA: Vector(5000)}, WireForm(codec, fraction)).reason in (
        "malformed",
        "wrong-dtype",
        "wrong-length",
    )


@pytest.mark.parametrize("label", ["theta/", "theta/values"])
def test_values_under_two_labels_are_malformed(label):
    content = with_arrays(theta=Array(THREE))
    content["arrays"][label] = Array(THREE + 1)
    assert error_of(decode_arrays, content, {THETA: Vector(3)}).reason == "malformed"


FORMS = [(form, label) for form, labels in LABELS.items() for label in labels]


@pytest.mark.parametrize(("form", "label"), FORMS)
def test_a_part_that_is_missing_is_malformed(form, label):
    content = sent_as(*form, theta=normal(5000))
    del content["arrays"][label]
    assert error_of(decode_arrays, content, {THETA: Vector(5000)}, WireForm(*form)).reason == "malformed"


@pytest.mark.parametrize("form", LABELS)
@pytest.mark.parametrize("label", ["theta/scales", "theta/bitmap", "theta/gaps", "theta/more", "delta", "delta/scales"])
def test_a_part_or_a_vector_too_many_is_malformed(form, label):
    content = sent_as(*form, theta=normal(5000))
    if label in LABELS[form]:
        return
    content["arrays"][label] = Array(np.zeros(5, np.float32))
    assert error_of(decode_arrays, content, {THETA: Vector(5000)}, WireForm(*form)).reason == "malformed"


@pytest.mark.parametrize(("form", "label"), FORMS)
def test_a_part_with_bytes_that_it_does_not_claim_is_malformed_and_named(form, label):
    content = sent_as(*form, theta=normal(5000))
    good = content["arrays"][label]
    for data in (
        good.data[:-1],
        good.data + b"\0",
        good.data[HEADER_BYTES:],
        good.data.replace(b"NUMPY", b"numpy", 1),
        good.data.replace(b"'descr': '", b"'descr': '>", 1)[:-1],
        good.data.replace(b"False", b"True ", 1),
    ):
        content["arrays"][label] = array_of(data, good.shape, good.dtype)
        error = error_of(decode_arrays, content, {THETA: Vector(5000)}, WireForm(*form))
        assert error.reason == "malformed"
        assert f"the bytes of {label!r} are not the" in error.detail


@pytest.mark.parametrize(("form", "label"), FORMS)
def test_a_part_that_claims_another_dtype_for_its_bytes_is_refused(form, label):
    content = sent_as(*form, theta=normal(5000))
    good = content["arrays"][label]
    for dtype in {"float32", "float16", "int8", "uint8"} - {good.dtype}:
        content["arrays"][label] = array_of(good.data, good.shape, dtype)
        assert error_of(decode_arrays, content, {THETA: Vector(5000)}, WireForm(*form)).reason == "malformed"


@pytest.mark.parametrize(("form", "label"), FORMS)
def test_a_part_that_claims_another_shape_for_its_bytes_is_refused(form, label):
    content = sent_as(*form, theta=normal(5000))
    good = content["arrays"][label]
    (length,) = good.shape
    for shape in [(), (length, 1), (1, length), (length - 1,), (length + 1,), (0,), (-1,), (5001,), (10**18,)]:
        content["arrays"][label] = array_of(good.data, shape, good.dtype)
        error = error_of(decode_arrays, content, {THETA: Vector(5000)}, WireForm(*form))
        # A length that the vector cannot have is refused before any byte is looked at.
        possible = len(shape) == 1 and 0 <= shape[0] <= 5000
        assert error.reason == ("malformed" if possible else "wrong-length")
        assert repr(label) in error.detail


def array_from(values):
    """An array whose bytes are what it claims."""
    return Array(np.array(values))


@st.composite
def tampered(draw):
    """A valid message in some wire form, then changed in up to four places."""
    form = draw(st.sampled_from(CODECS))
    length = draw(st.sampled_from([1, 2, 7, 9, 300, 1024, 1025, 2600]))
    arrays = dict(sent_as(*form, theta=normal(length, draw(st.integers(0, 3)))).array_records["arrays"])
    other = dict(sent_as(*draw(st.sampled_from(CODECS)), theta=normal(length, 9)).array_records["arrays"])
    for _ in range(draw(st.integers(0, 4))):
        if not arrays:
            break
        label = draw(st.sampled_from(sorted(arrays)))
        array = arrays[label]
        match draw(st.sampled_from(["drop", "rename", "take", "byte", "cut", "dtype", "shape", "values", "values"])):
            case "drop":
                del arrays[label]
            case "rename":
                names = [
                    "theta",
                    "theta/",
                    "theta/values",
                    "theta/scales",
                    "theta/gaps",
                    "theta/bitmap",
                    "delta",
                    "/",
                    "",
                ]
                arrays[draw(st.sampled_from(names))] = arrays.pop(label)
            case "take":
                arrays |= other
            case "byte":
                place = draw(st.integers(0, len(array.data) - 1))
                data = array.data[:place] + bytes([draw(st.integers(0, 255))]) + array.data[place + 1 :]
                arrays[label] = array_of(data, array.shape, array.dtype)
            case "cut":
                data = array.data[: draw(st.integers(1, len(array.data)))]
                arrays[label] = array_of(data, array.shape, array.dtype)
            case "dtype":
                dtypes = ["float32", "float16", "int8", "uint8", "float64", "<f4", "object", "", "f"]
                arrays[label] = array_of(array.data, array.shape, draw(st.sampled_from(dtypes)))
            case "shape":
                shapes = [(), (0,), (1,), (length,), (length + 1,), (length, 1), (-1,), (2**62,)]
                arrays[label] = array_of(array.data, draw(st.sampled_from(shapes)), array.dtype)
            case "values":
                # Bytes and claim agree, so that the codec has to look at what the values are.
                count = draw(st.sampled_from([0, 1, length, math.ceil(length / 8), math.ceil(0.3 * length)]))
                seed, fill = draw(st.integers(0, 9)), draw(st.sampled_from([0, 1, 254, 255, 128, -128, math.nan, 1e38]))
                with np.errstate(all="ignore"):
                    values = np.full(count, fill).astype(draw(st.sampled_from(["f4", "f2", "i1", "u1"])))
                values[: count // 2] = np.random.default_rng(seed).integers(0, 127, count // 2)
                arrays[label] = array_from(values)
    return RecordDict({"arrays": ArrayRecord(arrays)}), length, form


@settings(FUZZ, max_examples=400)
@given(tampered())
def test_whatever_is_changed_in_a_message_of_a_codec_gives_finite_values_or_a_protocol_error(message):
    content, length, form = message
    with only_protocol_errors():
        vectors = decode_arrays(content, {THETA: Vector(length)}, WireForm(*form))
        assert set(vectors) == {THETA}
        assert vectors[THETA].shape == (length,)
        assert vectors[THETA].dtype == torch.float32
        assert torch.isfinite(vectors[THETA]).all()
