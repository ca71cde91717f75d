"""What travels between server and clients, and what each side refuses of the other (DESIGN, section 3)."""

import contextlib
import dataclasses
import math
import pickle
import struct
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st

from common import protocol
from common.config import DOWNLOADS, UPLOADS
from common.evaluation import Evaluation
from common.protocol import (
    DELTA,
    THETA,
    VERSION,
    Instructions,
    ProtocolError,
    Registration,
    TrainingResult,
    decode_evaluation,
    decode_greeting,
    decode_instructions,
    decode_registration,
    decode_training_result,
    decode_vectors,
    encode_evaluation,
    encode_greeting,
    encode_registration,
    encode_request,
    encode_training_result,
    payload_bytes,
)

INSTRUCTIONS = Instructions(
    method="mh-pfedhn",
    run_name="a-run",
    server_round=3,
    seed=5,
    evaluate=True,
    anchor=False,
    local_epochs=2,
    batch_size=64,
    client_lr=1e-3,
    client_momentum=0.0,
    client_weight_decay=5e-4,
    max_grad_norm=50.0,
    global_model="lenet",
    teacher_round=3,
    temperature=15.0,
    distillation_coefficient=0.01,
    upload="topk",
    download="dense",
    topk_fraction=0.3,
    error_feedback=True,
    checkpoint_round=2,
    previous_run="run-before",
)
RESULT = TrainingResult(num_examples=240, train_loss=2.0, evaluation=Evaluation(correct=0, total=80, loss=0.0))
REASONS = {"malformed", "wrong-dtype", "wrong-length", "not-finite", "version"}
HEADER_BYTES = 128  # of NumPy's file format, for a vector


def wired(content):
    """The content after Flower's own serialisation, as the other side gets it."""
    proto = recorddict_to_proto(content)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


def with_arrays(**arrays):
    return RecordDict({"vectors": ArrayRecord(arrays)})


def array_of(data, shape=(3,), dtype="float32", stype="numpy.ndarray"):
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


def npy(header, payload=b"", version=(1, 0)):
    """NumPy's file format with a header of our own making, filled up as NumPy does."""
    text = (header.ljust(HEADER_BYTES - 11) + "\n").encode("latin1")
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text + payload


def header_of(shape="(3,)", descr="'<f4'", fortran_order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {fortran_order}, 'shape': {shape}, }}"


def error_of(function, *arguments):
    with pytest.raises(ProtocolError) as caught:
        function(*arguments)
    error = caught.value
    assert error.reason in REASONS
    assert str(error) == error.detail
    assert "\n" not in error.detail
    return error


THREE = np.array([1, 2, 3], np.float32)
PAYLOAD = THREE.tobytes()

# Registration


def test_a_registration_arrives_as_it_was_sent():
    registration = Registration("0b5b1a04-7c5b-4f0e-9f0a-3f2f3f1f0e1d", 239_856)
    assert decode_registration(wired(encode_registration(registration))) == registration


def test_a_registration_tells_k_and_the_client_key_and_nothing_else():
    content = encode_registration(Registration("client-7", 12))
    assert {name: dict(record) for name, record in content.items()} == {
        "registration": {"client-key": "client-7", "num-params": 12}
    }
    assert payload_bytes(content) == 0


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"client-key": "a"},
        {"num-params": 5},
        {"client-key": "a", "num-params": 5, "model": "lenet"},
        {"client_key": "a", "num_params": 5},
        {"client-key": "a", "global-num-params": 5},
        {"num-params": 5, "group": "b"},
        {"client-key": "a", "num-params": 5, "global-num-params": 3, "group": "b", "model": "lenet"},
        {"client-key": "a", "num-params": 5, "": 5},
    ],
)
def test_a_registration_with_other_keys_is_malformed(record):
    error = error_of(decode_registration, RecordDict({"registration": ConfigRecord(record)}))
    assert error.reason == "malformed"
    assert "client-key and num-params" in error.detail


@pytest.mark.parametrize("key", ["num-params", "global-num-params"])
@pytest.mark.parametrize("number", [0, -1, True, False, 5.0, math.nan, "5", b"5", [5], []])
def test_a_registration_whose_k_is_no_positive_whole_number_is_malformed(key, number):
    content = RecordDict({"registration": ConfigRecord({"client-key": "a", "num-params": 5, key: number})})
    error = error_of(decode_registration, content)
    assert error.reason == "malformed"
    assert f"{key} is {number!r}" in error.detail


@pytest.mark.parametrize("key", ["client-key", "group"])
@pytest.mark.parametrize("label", ["", "a" * 65, "a b", "a/b", "a\n", "ü", "../../etc/x", 5, True, b"a", ["a"]])
def test_a_label_that_is_not_a_short_plain_word_is_malformed(key, label):
    content = RecordDict({"registration": ConfigRecord({"client-key": "a", "num-params": 5, key: label})})
    error = error_of(decode_registration, content)
    assert error.reason == "malformed"
    assert error.detail.startswith(f"a {key} is ")


@pytest.mark.parametrize("key", ["7", "a" * 64, "A.b_c-d"])
def test_a_short_plain_word_is_a_client_key_and_a_group(key):
    assert decode_registration(encode_registration(Registration(key, 1))) == Registration(key, 1)
    assert decode_registration(encode_registration(Registration("a", 1, 0, key))) == Registration("a", 1, 0, key)


@pytest.mark.parametrize(
    ("registration", "sent"),
    [
        (Registration("a", 5, 3), {"global-num-params": 3}),
        (Registration("a", 5, 0, "b"), {"group": "b"}),
        (Registration("a", 5, 3, "b"), {"global-num-params": 3, "group": "b"}),
    ],
)
def test_what_a_client_may_tell_is_sent_only_where_it_tells_it(registration, sent):
    content = encode_registration(registration)
    assert dict(content["registration"]) == {"client-key": "a", "num-params": 5} | sent
    assert decode_registration(wired(content)) == registration


@pytest.mark.parametrize("record", [MetricRecord({"num-params": 5}), ArrayRecord()])
def test_a_registration_in_another_kind_of_record_is_malformed(record):
    assert error_of(decode_registration, RecordDict({"registration": record})).reason == "malformed"


# Requests


def test_a_request_arrives_as_it_was_sent():
    theta = torch.tensor([0.0, -1.5, 3e38, -1e-45])
    content = wired(encode_request(INSTRUCTIONS, {THETA: theta}))
    assert decode_instructions(content) == INSTRUCTIONS
    assert torch.equal(decode_vectors(content, {THETA: 4})[THETA], theta)


def test_a_request_without_vectors_holds_none():
    content = wired(encode_request(INSTRUCTIONS, {}))
    assert decode_instructions(content) == INSTRUCTIONS
    assert decode_vectors(content, {}) == {}
    assert payload_bytes(content) == 0


def test_a_vector_with_a_history_is_sent_by_its_values():
    theta = torch.tensor([1.0, 2.0], requires_grad=True) * 2
    received = decode_vectors(encode_request(INSTRUCTIONS, {THETA: theta}), {THETA: 2})[THETA]
    assert torch.equal(received, theta)
    assert not received.requires_grad


def test_a_received_vector_may_be_written_to():
    content = encode_request(INSTRUCTIONS, {THETA: torch.zeros(3)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_vectors(content, {THETA: 3})[THETA].add_(1)
    assert decode_vectors(content, {THETA: 3})[THETA].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field.name} {value!r}")
        for field in dataclasses.fields(Instructions)
        for value in (7, 7.0, True, "7", b"7", [7], [])
        if type(value) is not field.type and field.name != "protocol_version"
    ],
)
def test_an_instruction_of_another_type_is_refused_by_name(field, value):
    key = field.name.replace("_", "-")
    content = encode_request(INSTRUCTIONS, {})
    content["instructions"][key] = value
    error = error_of(decode_instructions, content)
    assert error.reason == "malformed"
    assert f"{key} is {value!r}" in error.detail


OPTIONAL = {
    field.name.replace("_", "-"): field.default
    for field in dataclasses.fields(Instructions)
    if field.default is not dataclasses.MISSING and field.name != "protocol_version"
}
REQUIRED = sorted({field.name.replace("_", "-") for field in dataclasses.fields(Instructions)} - set(OPTIONAL))


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_instruction_is_refused_by_name(key):
    content = encode_request(INSTRUCTIONS, {})
    del content["instructions"][key]
    error = error_of(decode_instructions, content)
    assert error.reason == ("version" if key == "protocol-version" else "malformed")
    assert key.replace("-", " ") in error.detail.replace("-", " ")


def test_what_a_method_does_not_need_travels_only_where_it_differs_from_the_default():
    assert OPTIONAL == {
        "global-model": "",
        "teacher-round": 0,
        "temperature": 1.0,
        "distillation-coefficient": 0.0,
        "upload": "dense",
        "download": "dense",
        "topk-fraction": 1.0,
        "error-feedback": False,
        "checkpoint-round": 0,
        "previous-run": "",
    }
    defaults = {key.replace("-", "_"): value for key, value in OPTIONAL.items()}
    plain = dataclasses.replace(INSTRUCTIONS, **defaults)
    content = wired(encode_request(plain, {}))
    assert sorted(content["instructions"]) == REQUIRED
    assert decode_instructions(content) == plain
    for key, value in OPTIONAL.items():
        name = key.replace("-", "_")
        other = "half" if key == "download" else getattr(INSTRUCTIONS, name)
        assert other != value
        content = wired(encode_request(dataclasses.replace(plain, **{name: other}), {}))
        assert sorted(content["instructions"]) == sorted([*REQUIRED, key])
        assert decode_instructions(content) == dataclasses.replace(plain, **{name: other})


@pytest.mark.parametrize("key", sorted(set(OPTIONAL) - {"previous-run"}))
def test_a_default_that_is_sent_all_the_same_is_taken(key):
    content = encode_request(INSTRUCTIONS, {})
    content["instructions"][key] = OPTIONAL[key]
    expected = dataclasses.replace(INSTRUCTIONS, **{key.replace("-", "_"): OPTIONAL[key]})
    assert decode_instructions(content) == expected


def test_an_unknown_instruction_is_refused_by_name():
    content = encode_request(INSTRUCTIONS, {})
    content["instructions"]["send-images"] = True
    error = error_of(decode_instructions, content)
    assert error.reason == "malformed"
    assert "send-images" in error.detail


def test_a_message_without_instructions_is_malformed():
    assert error_of(decode_instructions, RecordDict()).reason == "malformed"
    assert error_of(decode_instructions, RecordDict({"instructions": MetricRecord()})).reason == "malformed"


# The fields of instructions that have a range, with values just outside of it and what is said of them.
OUT_OF_RANGE = [
    ("local_epochs", -1, "local-epochs is -1, but must be at least 0"),
    ("batch_size", 0, "batch-size is 0, but must be at least 1"),
    ("server_round", 0, "server-round is 0, but must be at least 1"),
    ("teacher_round", -1, "teacher-round is -1, but must be at least 0"),
    ("temperature", 0.0, "temperature is 0, but must be above 0"),
    ("temperature", -15.0, "temperature is -15.0, but must be a finite number of at least 0"),
    ("distillation_coefficient", -0.01, "distillation-coefficient is -0.01, but must be a finite number of at least 0"),
    ("distillation_coefficient", 1.01, "distillation-coefficient is 1.01, but must be at most 1"),
    ("topk_fraction", 0.0, "topk-fraction is 0, but must be above 0"),
    ("topk_fraction", -0.3, "topk-fraction is -0.3, but must be a finite number of at least 0"),
    ("topk_fraction", 1.5, "topk-fraction is 1.5, but must be at most 1"),
    ("client_lr", -1e-9, "client-lr is -1e-09, but must be a finite number of at least 0"),
    *[
        (field.name, value, f"{field.name.replace('_', '-')} is {value}, but must be a finite number of at least 0")
        for field in dataclasses.fields(Instructions)
        for value in (math.nan, math.inf, -math.inf)
        if field.type is float
    ],
    *[("upload", value, "upload must be one of dense, half, int8, topk") for value in ("", "zip", "Dense", "dense ")],
    *[("download", value, "download must be one of dense, half, int8") for value in ("", "zip", "topk")],
    *[
        ("run_name", value, "run-name is not the name of a folder")
        for value in ("", "..", "a/b", "-a", "a" * 101, "a\n")
    ],
    *[
        ("previous_run", value, "previous-run is not the name of a folder")
        for value in ("", "..", "a/b", " ", "a" * 101)
    ],
]


@pytest.mark.parametrize(("field", "value", "words"), OUT_OF_RANGE)
def test_an_instruction_out_of_range_is_refused_with_its_range(field, value, words):
    content = encode_request(INSTRUCTIONS, {})
    content["instructions"][field.replace("_", "-")] = value
    error = error_of(decode_instructions, content)
    assert error.reason == "malformed"
    assert error.detail == words


IN_RANGE = [
    *[("local_epochs", value) for value in (0, 1, 100)],
    ("batch_size", 1),
    ("server_round", 1),
    *[("teacher_round", value) for value in (0, 1)],
    *[("temperature", value) for value in (1e-6, 1.0, 1e6)],
    *[("distillation_coefficient", value) for value in (0.0, 1.0)],
    *[("topk_fraction", value) for value in (1e-9, 1.0)],
    *[("upload", value) for value in UPLOADS],
    *[("download", value) for value in DOWNLOADS],
    *[("previous_run", value) for value in ("", "7", "a" * 100, "a.b_c-d")],
    *[("global_model", value) for value in ("", "no such model")],  # whoever builds it knows which there are
    *[("error_feedback", value) for value in (True, False)],
    *[("seed", value) for value in (0, -1, 2**62)],
]


@pytest.mark.parametrize(("field", "value"), IN_RANGE)
def test_an_instruction_at_the_end_of_its_range_arrives_as_it_was_sent(field, value):
    instructions = dataclasses.replace(INSTRUCTIONS, **{field: value})
    assert decode_instructions(wired(encode_request(instructions, {}))) == instructions


@pytest.mark.parametrize("theirs", [VERSION + 1, 0, -1, "1", [VERSION]])
def test_another_protocol_version_is_refused_with_both_versions(theirs):
    request = encode_request(INSTRUCTIONS, {})
    request["instructions"]["protocol-version"] = theirs
    greeting = encode_greeting()
    greeting["instructions"]["protocol-version"] = theirs
    for function, content in ((decode_instructions, request), (decode_greeting, greeting)):
        error = error_of(function, content)
        assert error.reason == "version"
        assert f"version {theirs!r}" in error.detail
        assert f"this one {VERSION}" in error.detail


def test_another_version_is_named_even_when_its_instructions_differ():
    content = RecordDict({"instructions": ConfigRecord({"protocol-version": VERSION + 1, "new-key": 1})})
    assert error_of(decode_instructions, content).reason == "version"


@pytest.mark.parametrize("global_model", ["", "lenet"])
def test_the_servers_greeting_is_its_version_and_its_global_model(global_model):
    content = encode_greeting(global_model)
    assert {name: dict(record) for name, record in content.items()} == {
        "instructions": {"protocol-version": VERSION, "global-model": global_model}
    }
    assert decode_greeting(wired(content)) == global_model


def test_a_greeting_of_the_version_alone_names_no_global_model():
    assert decode_greeting(RecordDict({"instructions": ConfigRecord({"protocol-version": VERSION})})) == ""


@pytest.mark.parametrize("name", [7, 7.0, True, b"lenet", ["lenet"], []])
def test_a_global_model_that_is_no_text_is_malformed(name):
    content = encode_greeting()
    content["instructions"]["global-model"] = name
    error = error_of(decode_greeting, content)
    assert error.reason == "malformed"
    assert "global-model" in error.detail


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({"instructions": ConfigRecord()})])
def test_a_greeting_without_a_version_is_refused(content):
    assert error_of(decode_greeting, content).reason == "version"


@pytest.mark.parametrize("version", [True, 1.0])
def test_a_version_of_another_type_is_refused(monkeypatch, version):
    monkeypatch.setattr(protocol, "VERSION", 1)
    assert version == protocol.VERSION  # in Python's eyes
    content = RecordDict({"instructions": ConfigRecord({"protocol-version": version})})
    assert error_of(decode_greeting, content).reason == "version"


# Training results and evaluations


@pytest.mark.parametrize("evaluation", [None, Evaluation(80, 80, 1.0), Evaluation(0, 1, 0.0)])
def test_a_training_result_arrives_as_it_was_sent(evaluation):
    result = TrainingResult(1, 2.0, evaluation)
    content = wired(encode_training_result(result, {DELTA: torch.tensor([1.0])}))
    assert decode_training_result(content) == result
    assert decode_vectors(content, {DELTA: 1})[DELTA].tolist() == [1.0]


def test_a_training_result_tells_counts_and_losses_and_nothing_else():
    content = encode_training_result(RESULT, {DELTA: torch.zeros(2)})
    assert set(content) == {"metrics", "vectors"}
    assert set(content["metrics"]) == {"num-examples", "train-loss", "correct", "total", "loss"}
    assert set(content["vectors"]) == {"delta"}
    assert set(encode_training_result(dataclasses.replace(RESULT, evaluation=None), {})) == {"metrics"}


@pytest.mark.parametrize("evaluation", [Evaluation(3, 7, 0.5), Evaluation(7, 7, 0.0), Evaluation(0, 1, 100.0)])
def test_an_evaluation_arrives_as_it_was_sent(evaluation):
    assert decode_evaluation(wired(encode_evaluation(evaluation))) == evaluation


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        *[("num-examples", value, "malformed") for value in (0, -1, 5.0, [5], [])],
        *[("correct", value, "malformed") for value in (-1, 81, 3.0, [3])],
        *[("total", value, "malformed") for value in (0, -80, 80.0, [80])],
        *[("train-loss", value, "malformed") for value in (2, [2.0])],
        *[("train-loss", value, "not-finite") for value in (math.nan, math.inf, -math.inf)],
        *[("loss", value, "malformed") for value in (2, [2.0])],
        *[("loss", value, "not-finite") for value in (math.nan, math.inf, -math.inf)],
    ],
)
def test_a_wrong_count_or_loss_is_refused_by_name(key, value, reason):
    content = encode_training_result(RESULT, {})
    content["metrics"][key] = value
    error = error_of(decode_training_result, content)
    assert error.reason == reason
    assert f"{key} is " in error.detail


@pytest.mark.parametrize("key", ["num-examples", "train-loss", "total", "loss"])
def test_a_missing_count_or_loss_is_refused_by_name(key):
    content = encode_training_result(RESULT, {})
    del content["metrics"][key]
    assert f"{key} is None" in error_of(decode_training_result, content).detail


@pytest.mark.parametrize("key", ["num-examples", "correct", "total"])
def test_a_bool_is_not_a_count(key):
    content = encode_training_result(RESULT, {})
    # Flower's own record refuses it, but not what an altered client puts past that check.
    content["metrics"].__dict__["_data"][key] = True
    assert error_of(decode_training_result, content).reason == "malformed"


def test_more_correct_answers_than_questions_are_refused_with_both_numbers():
    error = error_of(decode_evaluation, encode_evaluation(Evaluation(81, 80, 0.1)))
    assert error.reason == "malformed"
    assert "81" in error.detail
    assert "80" in error.detail


@pytest.mark.parametrize("decode", [decode_training_result, decode_evaluation])
@pytest.mark.parametrize(
    "content",
    [RecordDict(), RecordDict({"metrics": ConfigRecord({"num-examples": 5})}), RecordDict({"metrics": ArrayRecord()})],
)
def test_a_message_without_metrics_is_malformed(decode, content):
    assert error_of(decode, content).reason == "malformed"


# Vectors


def test_payload_bytes_are_four_a_value_and_one_header_a_vector():
    for length in (1, 3, 3072, 239_856):
        assert payload_bytes(encode_request(INSTRUCTIONS, {THETA: torch.zeros(length)})) == 4 * length + HEADER_BYTES
    two = encode_training_result(RESULT, {DELTA: torch.zeros(5), THETA: torch.zeros(7)})
    assert payload_bytes(two) == 4 * 12 + 2 * HEADER_BYTES
    assert payload_bytes(wired(two)) == payload_bytes(two)
    assert payload_bytes(RecordDict()) == 0


def test_vectors_are_given_by_name_whatever_their_order():
    content = with_arrays(delta=Array(THREE), theta=Array(THREE[:2]))
    vectors = decode_vectors(content, {THETA: 2, DELTA: 3})
    assert (vectors[THETA].tolist(), vectors[DELTA].tolist()) == ([1.0, 2.0], [1.0, 2.0, 3.0])
    assert {vector.dtype for vector in vectors.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.int64, np.uint16, np.bool_, np.complex64, "S4", "U1"])
def test_a_vector_of_a_dtype_that_no_codec_sends_is_refused_by_its_dtype(dtype):
    error = error_of(decode_vectors, with_arrays(theta=Array(np.zeros(3, dtype))), {THETA: 3})
    assert error.reason == "wrong-dtype"
    assert "'theta'" in error.detail
    assert str(np.dtype(dtype)) in error.detail


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.uint8])
def test_a_dense_vector_of_another_codecs_dtype_is_refused_by_its_dtype(dtype):
    error = error_of(decode_vectors, with_arrays(theta=Array(np.zeros(3, dtype))), {THETA: 3})
    assert error.reason == "wrong-dtype"
    assert np.dtype(dtype).str in error.detail
    assert "<f4" in error.detail


@pytest.mark.parametrize("shape", [(4,), (), (3, 1), (1, 3), (1, 1, 3)])
def test_a_vector_of_another_shape_is_refused_with_its_shape_and_the_right_length(shape):
    error = error_of(decode_vectors, with_arrays(theta=Array(np.zeros(shape, np.float32))), {THETA: 3})
    assert error.reason == "wrong-length"
    assert f"'theta' has shape {shape}" in error.detail
    assert "3 values" in error.detail


@pytest.mark.parametrize("length", [0, 1, 2])
def test_a_vector_that_is_too_short_is_refused_with_both_lengths(length):
    error = error_of(decode_vectors, with_arrays(theta=Array(THREE[:length])), {THETA: 3})
    assert error.reason == "wrong-length"
    assert f"length {length}, but must have 3" in error.detail


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_vector_with_a_value_that_is_not_finite_is_refused(value, position):
    values = THREE.copy()
    values[position] = value
    error = error_of(decode_vectors, with_arrays(theta=Array(values)), {THETA: 3})
    assert error.reason == "not-finite"
    assert "NaN or infinity" in error.detail


@pytest.mark.parametrize(
    ("names", "expected", "words"),
    [
        ([], ["theta"], "lacks the vectors ['theta']"),
        (["delta"], ["theta"], "holds 'delta', but must hold the vectors ['theta']"),
        (["theta", "delta"], ["theta"], "holds 'delta', but must hold the vectors ['theta']"),
        (["theta"], [], "holds 'theta', but must hold the vectors []"),
        (["theta"], ["theta", "delta"], "lacks the vectors ['delta']"),
        ([], ["theta", "delta"], "lacks the vectors ['theta', 'delta']"),
    ],
)
def test_a_missing_or_extra_vector_is_refused_by_name(names, expected, words):
    content = with_arrays(**{name: Array(THREE) for name in names})
    error = error_of(decode_vectors, content, dict.fromkeys(expected, 3))
    assert error.reason == "malformed"
    assert words in error.detail


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({"vectors": ConfigRecord({"theta": [1.0, 2.0, 3.0]})})])
def test_a_message_without_a_record_of_arrays_has_no_vectors(content):
    assert error_of(decode_vectors, content, {THETA: 3}).reason == "malformed"


def test_one_bad_vector_among_good_ones_is_the_one_that_is_named():
    content = with_arrays(theta=Array(THREE), delta=Array(THREE[:2]))
    assert "'delta'" in error_of(decode_vectors, content, {THETA: 3, DELTA: 3}).detail


def test_the_bytes_that_numpy_writes_are_read():
    data = npy(header_of(), PAYLOAD)
    assert data == Array(THREE).data
    assert decode_vectors(with_arrays(theta=array_of(data)), {THETA: 3})[THETA].tolist() == [1.0, 2.0, 3.0]


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
def test_bytes_that_are_not_the_vector_that_the_message_claims_are_malformed(data):
    error = error_of(decode_vectors, with_arrays(theta=array_of(data)), {THETA: 3})
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
def test_a_header_that_is_no_header_is_malformed(header):
    error = error_of(decode_vectors, with_arrays(theta=array_of(npy(header, PAYLOAD))), {THETA: 3})
    assert error.reason == "malformed"


def test_a_header_that_claims_a_bool_for_a_length_does_not_get_through_as_an_error_of_another_kind():
    content = with_arrays(theta=array_of(npy(header_of(shape="(True,)"), PAYLOAD[:4]), shape=(1,)))
    assert error_of(decode_vectors, content, {THETA: 1}).reason == "malformed"


def test_bytes_of_the_wrong_sort_under_a_right_claim_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    for data in (pickle.dumps(Trap()), npy(header_of(descr="'|O'"), pickle.dumps(Trap()))):
        for stype in ("numpy.ndarray", "pickle"):
            error_of(decode_vectors, with_arrays(theta=array_of(data, stype=stype)), {THETA: 3})
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("length", [10**9, 10**12, 10**18])
def test_a_claim_of_a_huge_vector_allocates_nothing(length):
    data = npy(header_of(shape=f"({length},)"), PAYLOAD)
    content = with_arrays(theta=array_of(data, shape=(length,)))
    tracemalloc.start()
    try:
        error = error_of(decode_vectors, content, {THETA: length})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.reason == "malformed"
    assert peak < 1_000_000


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


def altered(valid, values):
    """A good record's values, some left out, replaced or added."""
    changes = st.dictionaries(st.sampled_from([*valid, "other", ""]), st.none() | values, max_size=3)
    return changes.map(lambda changed: {key: value for key, value in {**valid, **changed}.items() if value is not None})


def contents(name, record_type, valid, values):
    """Messages of which many are almost right: the record altered, of another kind, or not there."""
    right = altered(dict(valid[name]), values).map(record_type)
    anything = st.dictionaries(st.sampled_from([name, "vectors", "other"]), RECORDS, max_size=3)
    return st.one_of(right.map(lambda record: {name: record}), anything).map(RecordDict)


@contextlib.contextmanager
def only_protocol_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason = "malformed"
        try:
            yield
        except ProtocolError as error:
            reason = error.reason
        assert reason in REASONS


@FUZZ
@given(
    content=contents("vectors", ArrayRecord, with_arrays(theta=Array(THREE)), ARRAYS),
    lengths=st.sampled_from([{}, {THETA: 3}, {THETA: 3, DELTA: 3}, {THETA: 2**62}]),
)
def test_whatever_arrives_as_vectors_is_three_finite_values_or_a_protocol_error(content, lengths):
    with only_protocol_errors():
        for name, vector in decode_vectors(content, lengths).items():
            assert vector.shape == (lengths[name],)
            assert vector.dtype == torch.float32
            assert torch.isfinite(vector).all()


@settings(FUZZ, max_examples=400)
@given(data=BYTES)
def test_whatever_bytes_a_vector_has_it_is_three_finite_values_or_a_protocol_error(data):
    with only_protocol_errors():
        vector = decode_vectors(with_arrays(theta=array_of(data)), {THETA: 3})[THETA]
        assert vector.shape == (3,)
        assert torch.isfinite(vector).all()


# Vectors in the wire forms

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
    return wired(encode_training_result(RESULT, vectors, codec, fraction))


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
    assert {name: array.dtype for name, array in content["vectors"].items()} == labels | {
        name.replace("theta", "delta"): dtype for name, dtype in labels.items()
    }
    arrived = decode_vectors(content, {DELTA: 5000, THETA: 3000}, codec, fraction)
    for name, vector in vectors.items():
        expected, error = expected_of(vector, codec, fraction)
        torch.testing.assert_close(arrived[name], expected, rtol=0, atol=error)
    assert decode_training_result(content) == RESULT


@pytest.mark.parametrize("download", DOWNLOADS)
def test_every_codec_of_the_download_carries_a_request(download):
    instructions = dataclasses.replace(INSTRUCTIONS, download=download)
    content = wired(encode_request(instructions, {THETA: normal(5000)}))
    assert {name: array.dtype for name, array in content["vectors"].items()} == LABELS[download, 1.0]
    expected, error = expected_of(normal(5000), download, 1.0)
    arrived = decode_vectors(content, {THETA: 5000}, decode_instructions(content).download)[THETA]
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
        request = encode_request(dataclasses.replace(INSTRUCTIONS, download=codec), {THETA: normal(LENET)})
        assert payload_bytes(request) == payload_bytes(content)


@pytest.mark.parametrize(("codec", "fraction"), CODECS)
@pytest.mark.parametrize("other", CODECS)
def test_a_vector_in_another_wire_form_than_the_one_agreed_on_is_refused(codec, fraction, other):
    if other == (codec, fraction):
        return
    content = sent_as(*other, theta=normal(5000))
    assert error_of(decode_vectors, content, {THETA: 5000}, codec, fraction).reason in (
        "malformed",
        "wrong-dtype",
        "wrong-length",
    )


@pytest.mark.parametrize("label", ["theta/", "theta/values"])
def test_values_under_two_labels_are_malformed(label):
    content = with_arrays(theta=Array(THREE))
    content["vectors"][label] = Array(THREE + 1)
    assert error_of(decode_vectors, content, {THETA: 3}).reason == "malformed"


FORMS = [(form, label) for form, labels in LABELS.items() for label in labels]


@pytest.mark.parametrize(("form", "label"), FORMS)
def test_a_part_that_is_missing_is_malformed(form, label):
    content = sent_as(*form, theta=normal(5000))
    del content["vectors"][label]
    assert error_of(decode_vectors, content, {THETA: 5000}, *form).reason == "malformed"


@pytest.mark.parametrize("form", LABELS)
@pytest.mark.parametrize("label", ["theta/scales", "theta/bitmap", "theta/gaps", "theta/more", "delta", "delta/scales"])
def test_a_part_or_a_vector_too_many_is_malformed(form, label):
    content = sent_as(*form, theta=normal(5000))
    if label in LABELS[form]:
        return
    content["vectors"][label] = Array(np.zeros(5, np.float32))
    assert error_of(decode_vectors, content, {THETA: 5000}, *form).reason == "malformed"


@pytest.mark.parametrize(("form", "label"), FORMS)
def test_a_part_with_bytes_that_it_does_not_claim_is_malformed_and_named(form, label):
    content = sent_as(*form, theta=normal(5000))
    good = content["vectors"][label]
    for data in (
        good.data[:-1],
        good.data + b"\0",
        good.data[HEADER_BYTES:],
        good.data.replace(b"NUMPY", b"numpy", 1),
        good.data.replace(b"'descr': '", b"'descr': '>", 1)[:-1],
        good.data.replace(b"False", b"True ", 1),
    ):
        content["vectors"][label] = array_of(data, good.shape, good.dtype)
        error = error_of(decode_vectors, content, {THETA: 5000}, *form)
        assert error.reason == "malformed"
        assert f"the bytes of {label!r} are not the" in error.detail


@pytest.mark.parametrize(("form", "label"), FORMS)
def test_a_part_that_claims_another_dtype_for_its_bytes_is_refused(form, label):
    content = sent_as(*form, theta=normal(5000))
    good = content["vectors"][label]
    for dtype in {"float32", "float16", "int8", "uint8"} - {good.dtype}:
        content["vectors"][label] = array_of(good.data, good.shape, dtype)
        assert error_of(decode_vectors, content, {THETA: 5000}, *form).reason == "malformed"


@pytest.mark.parametrize(("form", "label"), FORMS)
def test_a_part_that_claims_another_shape_for_its_bytes_is_refused(form, label):
    content = sent_as(*form, theta=normal(5000))
    good = content["vectors"][label]
    (length,) = good.shape
    for shape in [(), (length, 1), (1, length), (length - 1,), (length + 1,), (0,), (-1,), (5001,), (10**18,)]:
        content["vectors"][label] = array_of(good.data, shape, good.dtype)
        error = error_of(decode_vectors, content, {THETA: 5000}, *form)
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
    arrays = dict(sent_as(*form, theta=normal(length, draw(st.integers(0, 3)))).array_records["vectors"])
    other = dict(sent_as(*draw(st.sampled_from(CODECS)), theta=normal(length, 9)).array_records["vectors"])
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
    return RecordDict({"vectors": ArrayRecord(arrays)}), length, form


@settings(FUZZ, max_examples=400)
@given(tampered())
def test_whatever_is_changed_in_a_message_of_a_codec_gives_finite_values_or_a_protocol_error(message):
    content, length, form = message
    with only_protocol_errors():
        vectors = decode_vectors(content, {THETA: length}, *form)
        assert set(vectors) == {THETA}
        assert vectors[THETA].shape == (length,)
        assert vectors[THETA].dtype == torch.float32
        assert torch.isfinite(vectors[THETA]).all()


@FUZZ
@given(contents("registration", ConfigRecord, encode_registration(Registration("a", 5, 3, "b")), CONFIG_VALUES))
def test_whatever_arrives_as_a_registration_is_one_or_a_protocol_error(content):
    with only_protocol_errors():
        registration = decode_registration(content)
        assert registration.num_params >= 1
        assert 1 <= len(registration.client_key) <= 64
        assert registration.global_num_params >= 0
        assert len(registration.group) <= 64


@FUZZ
@given(contents("instructions", ConfigRecord, encode_request(INSTRUCTIONS, {}), CONFIG_VALUES))
def test_whatever_arrives_as_instructions_is_a_set_of_them_or_a_protocol_error(content):
    with only_protocol_errors():
        instructions = decode_instructions(content)
        for field in dataclasses.fields(Instructions):
            assert type(getattr(instructions, field.name)) is field.type
        assert instructions.protocol_version == VERSION


@FUZZ
@given(contents("instructions", ConfigRecord, encode_greeting(), CONFIG_VALUES))
def test_whatever_arrives_as_a_greeting_is_one_or_a_protocol_error(content):
    with only_protocol_errors():
        assert isinstance(decode_greeting(content), str)
        assert content["instructions"]["protocol-version"] == VERSION


@FUZZ
@given(contents("metrics", MetricRecord, encode_training_result(RESULT, {}), METRIC_VALUES))
def test_whatever_arrives_as_a_training_result_is_one_or_a_protocol_error(content):
    with only_protocol_errors():
        result = decode_training_result(content)
        assert result.num_examples >= 1
        assert math.isfinite(result.train_loss)
        if result.evaluation:
            assert 0 <= result.evaluation.accuracy <= 1
            assert math.isfinite(result.evaluation.loss)


@FUZZ
@given(contents("metrics", MetricRecord, encode_evaluation(Evaluation(1, 2, 0.5)), METRIC_VALUES))
def test_whatever_arrives_as_an_evaluation_is_one_or_a_protocol_error(content):
    with only_protocol_errors():
        evaluation = decode_evaluation(content)
        assert 0 <= evaluation.accuracy <= 1
        assert math.isfinite(evaluation.loss)


@FUZZ
@given(st.dictionaries(st.sampled_from(["vectors", "other", ""]), RECORDS, max_size=3).map(RecordDict))
def test_the_bytes_of_any_message_can_be_counted(content):
    assert payload_bytes(content) == sum(
        len(array.data) for record in content.array_records.values() for array in record.values()
    )


def test_message_types_are_of_flowers_categories():
    # Flower dispatches by what stands before the dot.
    assert {
        name.split(".")[0] for name in (protocol.REGISTER, protocol.PERSONAL, protocol.GLOBAL, protocol.FINISH)
    } == {
        "query",
        "train",
    }
    assert protocol.EVALUATE == "evaluate"
