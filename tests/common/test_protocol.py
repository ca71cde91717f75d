"""What travels between server and clients, and what each side refuses of the other (DESIGN, section 4)."""

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from wires import CONFIG_VALUES, FUZZ, METRIC_VALUES, contents, error_of, only_protocol_errors, wired

from client_app.methods.mh_pfedhn_gd import Distillation
from common import protocol
from common.arrays import DENSE, WireForm, decode_arrays, payload_bytes
from common.evaluation import AFTER_TRAINING, EVALUATIONS, TEST, VALIDATION, Evaluation
from common.instructions import Instructions
from common.lineage import Point
from common.methods import built_in, find
from common.options import AUTO, option, options_of
from common.protocol import (
    DELTA,
    THETA,
    VERSION,
    Greeting,
    PrivacySpent,
    Registration,
    Result,
    decode_greeting,
    decode_instructions,
    decode_registration,
    decode_result,
    decode_settings,
    download_form,
    encode_greeting,
    encode_registration,
    encode_request,
    encode_result,
    run_name_of,
    upload_form,
)
from common.schema import Label, Vector, Whole
from common.settings import DOWNLOADS, Compressed, LocalTraining, Settings

INSTRUCTIONS = Instructions(
    method="mh-pfedhn",
    exchange="personal",
    client_key="7f3a",
    run_name="a-run",
    server_round=3,
    seed=5,
    deploys=True,
    tests=EVALUATIONS,
    final=True,
    compress=("delta", "other"),
    line="0f",
    lineage=(Point("run-before", "a", 7), Point("a-run", "b", 9)),
    returns_to=(2, 9),
    seen=Point("a-run", "b", 8),
)
SETTINGS = Distillation(upload="topk", temperature=3.0, error_feedback=True, global_model="mlp")
TESTED = {name: Evaluation(correct=0, total=80, loss=0.0) for name in EVALUATIONS}
RESULT = Result(240, 2.0, TESTED, PrivacySpent(1.5, 1e-5))


def request(instructions=INSTRUCTIONS, told=SETTINGS, arrays=()):
    return encode_request(instructions, told, dict(arrays))


# Registration

FACTS = {"global-num-params": Whole(1, 2**40), "group": Label()}
COUNTS = {"train-samples": 30, "test-samples": 10}
OWN = {"client-key": "a", "num-params": 5} | COUNTS


def test_a_registration_arrives_as_it_was_sent():
    registration = Registration("0b5b1a04-7c5b-4f0e-9f0a-3f2f3f1f0e1d", 239_856, 300, 100)
    assert decode_registration(wired(encode_registration(registration))) == registration


def test_a_registration_tells_key_k_and_numbers_of_samples_and_nothing_else():
    content = encode_registration(Registration("client-7", 12, 30, 10))
    assert {name: dict(record) for name, record in content.items()} == {
        "registration": {"client-key": "client-7", "num-params": 12, "train-samples": 30, "test-samples": 10}
    }
    assert payload_bytes(content) == 0


@pytest.mark.parametrize(
    "facts", [{"global-num-params": 3}, {"group": "b"}, {"global-num-params": 3, "group": "b"}, {}]
)
def test_facts_that_the_method_asks_for_travel_where_a_client_gives_them(facts):
    registration = Registration("a", 5, 30, 10, facts)
    content = encode_registration(registration)
    assert dict(content["registration"]) == OWN | facts
    assert decode_registration(wired(content), FACTS) == registration


@pytest.mark.parametrize(
    "record",
    [
        {},
        *({key: value for key, value in OWN.items() if key != left_out} for left_out in OWN),
        {"client-key": "a", "num-params": 5},
        {"client_key": "a", "num_params": 5} | COUNTS,
        OWN | {"model": "lenet"},
        {"client-key": "a", "global-num-params": 5} | COUNTS,
        {"num-params": 5, "group": "b"} | COUNTS,
        OWN | {"global-num-params": 3, "group": "b", "model": "lenet"},
        OWN | {"": 5},
    ],
)
@pytest.mark.parametrize("facts", [None, FACTS])
def test_a_registration_with_other_keys_is_malformed(record, facts):
    error = error_of(decode_registration, RecordDict({"registration": ConfigRecord(record)}), facts)
    assert error.reason == "malformed"
    assert "client-key and num-params and test-samples and train-samples" in error.detail
    assert ("perhaps global-num-params, group" in error.detail) == bool(facts)


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_that_nobody_asked_for_is_malformed(fact):
    content = encode_registration(Registration("a", 5, 30, 10, {fact: "b"}))
    assert error_of(decode_registration, content).reason == "malformed"
    rest = {key: each for key, each in FACTS.items() if key != fact}
    assert error_of(decode_registration, content, rest).reason == "malformed"


def test_a_fact_that_the_method_needs_must_be_given():
    facts = {"group": Label(required=True)}
    error = error_of(decode_registration, encode_registration(Registration("a", 5, 30, 10)), facts)
    expected = "client-key and group and num-params and test-samples and train-samples"
    assert error.detail == f"a registration holds {expected}, no more"
    given_it = Registration("a", 5, 30, 10, {"group": "b"})
    assert decode_registration(encode_registration(given_it), facts) == given_it


@pytest.mark.parametrize("key", ["num-params", "global-num-params", *COUNTS])
@pytest.mark.parametrize("number", [0, -1, True, False, 5.0, math.nan, "5", b"5", [5], [], 2**62 + 1])
def test_a_registration_whose_number_of_something_is_no_positive_whole_number_is_malformed(key, number):
    content = RecordDict({"registration": ConfigRecord(OWN | {key: number})})
    error = error_of(decode_registration, content, FACTS)
    assert error.reason == "malformed"
    assert f"{key} is {number!r}" in error.detail


@pytest.mark.parametrize("key", ["client-key", "group"])
@pytest.mark.parametrize("label", ["", "a" * 65, "a b", "a/b", "a\n", "ü", "../../etc/x", 5, True, b"a", ["a"]])
def test_a_label_that_is_not_a_short_plain_word_is_malformed(key, label):
    content = RecordDict({"registration": ConfigRecord(OWN | {key: label})})
    error = error_of(decode_registration, content, FACTS)
    assert error.reason == "malformed"
    assert error.detail.startswith(f"a {key} is ")


@pytest.mark.parametrize("key", ["7", "a" * 64, "A.b_c-d"])
def test_a_short_plain_word_is_a_client_key_and_a_group(key):
    for registration in (Registration(key, 1, 1, 1), Registration("a", 1, 1, 1, {"group": key})):
        assert decode_registration(encode_registration(registration), FACTS) == registration


@pytest.mark.parametrize("record", [MetricRecord({"num-params": 5}), ArrayRecord()])
def test_a_registration_in_another_kind_of_record_is_malformed(record):
    assert error_of(decode_registration, RecordDict({"registration": record})).reason == "malformed"


# The server's greeting


def test_the_servers_greeting_arrives_as_it_was_sent():
    greeting = decode_greeting(wired(encode_greeting("mh-pfedhn-gd", "run", 7, SETTINGS, FACTS)))
    assert (greeting.method, greeting.run_name, greeting.seed) == ("mh-pfedhn-gd", "run", 7)
    assert greeting.facts == ("global-num-params", "group")
    assert decode_settings(greeting.settings, Distillation) == SETTINGS


def test_a_greeting_tells_version_method_run_seed_the_facts_asked_and_the_clients_settings_and_nothing_else():
    content = encode_greeting("local", "run", 7, LocalTraining(batch_size=8))
    of_run = {"method": "local", "run-name": "run", "seed": 7}
    assert dict(content["instructions"]) == {"protocol-version": VERSION, **of_run, "facts": []}
    assert set(content["settings"]) == set(options_of(LocalTraining))
    assert set(content) == {"instructions", "settings"}
    assert decode_greeting(wired(content)).facts == ()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        *[("seed", value, "seed must be a whole number") for value in (7.0, True, "7", [7])],
        *[("facts", value, "facts must be a list of names") for value in ("group", 7, [7], True)],
        *[("method", value, "method is ") for value in (7, "", "a b", "a/b", "a\n", "a" * 129, ["local"], True)],
        *[("run-name", value, "run-name is not the name") for value in (7, "", "../run", "a" * 101, ["run"], True)],
    ],
)
def test_a_greeting_that_is_not_right_is_refused_by_key(key, value, words):
    content = encode_greeting("local", "run", 7, LocalTraining())
    content["instructions"][key] = value
    error = error_of(decode_greeting, content)
    assert error.reason == "malformed"
    assert error.detail.startswith(words)


@pytest.mark.parametrize("key", ["method", "run-name", "seed", "facts"])
def test_a_greeting_with_a_key_missing_or_too_many_is_malformed(key):
    content = encode_greeting("local", "run", 7, LocalTraining())
    del content["instructions"][key]
    error = error_of(decode_greeting, content)
    assert (error.reason, key in error.detail) == ("malformed", True)
    content = encode_greeting("local", "run", 7, LocalTraining())
    content["instructions"][f"{key}-of-tomorrow"] = 1
    assert f"{key}-of-tomorrow" in error_of(decode_greeting, content).detail


@pytest.mark.parametrize("theirs", [VERSION + 1, VERSION - 1, 0, -1, "1", [VERSION]])
def test_another_protocol_version_is_refused_with_both_versions(theirs):
    for function, content in (
        (decode_instructions, request()),
        (decode_greeting, encode_greeting("local", "run", 7, LocalTraining())),
    ):
        content["instructions"]["protocol-version"] = theirs
        error = error_of(function, content)
        assert error.reason == "version"
        assert f"version {theirs!r}" in error.detail
        assert f"this one {VERSION}" in error.detail


@pytest.mark.parametrize("function", [decode_instructions, decode_greeting])
def test_another_version_is_named_even_when_its_instructions_differ(function):
    content = RecordDict({"instructions": ConfigRecord({"protocol-version": VERSION + 1, "new-key": 1})})
    assert error_of(function, content).reason == "version"


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({"instructions": ConfigRecord()})])
def test_a_greeting_without_a_version_is_refused(content):
    assert error_of(decode_greeting, content).reason == "version"


@pytest.mark.parametrize("version", [True, 1.0])
def test_a_version_of_another_type_is_refused(monkeypatch, version):
    monkeypatch.setattr(protocol, "VERSION", 1)
    assert version == protocol.VERSION  # in Python's eyes
    content = RecordDict({"instructions": ConfigRecord({"protocol-version": version})})
    assert error_of(decode_greeting, content).reason == "version"


def test_the_run_that_a_message_belongs_to_can_be_told_before_it_is_checked():
    assert run_name_of(wired(encode_greeting("local", "first", 7, LocalTraining()))) == "first"
    assert run_name_of(request()) == "a-run"
    assert run_name_of(RecordDict()) == ""


# Requests: instructions


def test_a_request_arrives_as_it_was_sent():
    theta = torch.tensor([0.0, -1.5, 3e38, -1e-45])
    content = wired(request(arrays={THETA: theta}))
    assert decode_instructions(content) == INSTRUCTIONS
    assert decode_settings(content, Distillation) == SETTINGS
    assert torch.equal(decode_arrays(content, {THETA: Vector(4)})[THETA], theta)


def test_a_request_without_arrays_holds_none():
    content = wired(request())
    assert decode_instructions(content) == INSTRUCTIONS
    assert decode_arrays(content, {}) == {}
    assert payload_bytes(content) == 0
    assert set(content) == {"instructions", "settings"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field.name} {value!r}")
        for field in dataclasses.fields(Instructions)
        if field.type in (str, int, bool)
        for value in (7, 7.0, True, "7", b"7", [7], [])
        if type(value) is not field.type
    ],
)
def test_an_instruction_of_another_type_is_refused_by_name(field, value):
    key = field.name.replace("_", "-")
    content = request()
    content["instructions"][key] = value
    error = error_of(decode_instructions, content)
    assert error.reason == "malformed"
    right = {str: "text", int: "a whole number", bool: "true or false"}[field.type]
    assert error.detail == f"{key} is {value!r}, but must be {right}"


@pytest.mark.parametrize("key", ["compress", "lineage", "tests"])
@pytest.mark.parametrize("value", ["delta", 7, True, [7], [b"delta"]])
def test_what_must_be_a_list_of_names_and_is_not_is_malformed(key, value):
    content = request()
    content["instructions"][key] = value
    error = error_of(decode_instructions, content)
    assert (error.reason, error.detail) == ("malformed", f"{key} must be a list of names")


OPTIONAL = {
    field.name.replace("_", "-"): field.default
    for field in dataclasses.fields(Instructions)
    if field.default is not dataclasses.MISSING
}
REQUIRED = sorted(
    {"protocol-version"} | {field.name.replace("_", "-") for field in dataclasses.fields(Instructions)} - set(OPTIONAL)
)


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_instruction_is_refused_by_name(key):
    content = request()
    del content["instructions"][key]
    error = error_of(decode_instructions, content)
    assert error.reason == ("version" if key == "protocol-version" else "malformed")
    assert key.replace("-", " ") in error.detail.replace("-", " ")


def test_what_an_exchange_does_not_need_travels_only_where_it_differs_from_the_default():
    assert OPTIONAL == {
        "deploys": False,
        "tests": (),
        "final": False,
        "compress": (),
        "lineage": (),
        "returns-to": (),
        "seen": None,
    }
    defaults = {key.replace("-", "_"): value for key, value in OPTIONAL.items()}
    plain = dataclasses.replace(INSTRUCTIONS, **defaults)
    content = wired(request(plain))
    assert sorted(content["instructions"]) == REQUIRED
    assert decode_instructions(content) == plain
    for key in OPTIONAL:
        name = key.replace("-", "_")
        other = dataclasses.replace(plain, **{name: getattr(INSTRUCTIONS, name)})
        assert other != plain
        content = wired(request(other))
        assert sorted(content["instructions"]) == sorted([*REQUIRED, key])
        assert decode_instructions(content) == other


@pytest.mark.parametrize("key", sorted(set(OPTIONAL) - {"seen"}))
def test_a_default_that_is_sent_all_the_same_is_taken(key):
    content = request()
    content["instructions"][key] = list(OPTIONAL[key]) if OPTIONAL[key] == () else OPTIONAL[key]
    expected = dataclasses.replace(INSTRUCTIONS, **{key.replace("-", "_"): OPTIONAL[key]})
    assert decode_instructions(wired(content)) == expected


def test_an_unknown_instruction_is_refused_by_name():
    content = request()
    content["instructions"]["send-images"] = True
    error = error_of(decode_instructions, content)
    assert error.reason == "malformed"
    assert "send-images" in error.detail
    content["instructions"]["x" * 5000] = True
    assert len(error_of(decode_instructions, content).detail) < 300


def test_a_message_without_instructions_is_malformed():
    assert error_of(decode_instructions, RecordDict()).reason == "malformed"
    assert error_of(decode_instructions, RecordDict({"instructions": MetricRecord()})).reason == "malformed"


# The fields of instructions that have a range, with values just outside of it and what is said of them.
OUT_OF_RANGE = [
    ("server_round", 0, "server-round is 0, but must be at least 1"),
    ("server_round", -1, "server-round is -1, but must be at least 1"),
    *[
        ("line", value, f"line is {value!r}, but must be lower-case letters and digits")
        for value in ("", "A", "a/b", "a b", "a" * 33)
    ],
    *[
        ("returns_to", value, "returns-to must be a list of rounds, whole numbers of at least 1")
        for value in ([0], [1, -1], [1.0], ["1"])
    ],
    *[
        ("lineage", [value], f"lineage: {value!r} is not RUN/LINE/ROUND")
        for value in ("", "run/line", "run/line/0", "run/line/x", "../line/1", "run/LINE/1", "run/line/1/2", "a/b/1\n")
    ],
    ("seen", "run", "seen: 'run' is not RUN/LINE/ROUND"),
    *[
        ("tests", value, f"tests holds {value[-1]!r}, but may hold test, validation, after-training")
        for value in (["exam"], ["test", ""], ["test", "Validation"])
    ],
    *[
        (field, value, f"{field} is {value!r}, but must be a name")
        for field in ("method", "exchange")
        for value in ("", "a b", "a/b", "a\n", "ü")
    ],
    *[
        ("run_name", value, "run-name is not the name of a folder")
        for value in ("", "..", "a/b", "-a", "a" * 101, "a\n")
    ],
]


@pytest.mark.parametrize(("field", "value", "words"), OUT_OF_RANGE)
def test_an_instruction_out_of_range_is_refused_with_its_range(field, value, words):
    content = request()
    content["instructions"][field.replace("_", "-")] = value
    error = error_of(decode_instructions, content)
    assert error.reason == "malformed"
    assert error.detail == words


IN_RANGE = [
    ("server_round", 1),
    *[("line", value) for value in ("7", "a" * 32)],
    *[("lineage", value) for value in ((), (Point("a" * 100, "b" * 32, 10**9 - 1),))],
    *[("returns_to", value) for value in ((), (1,), (1, 10**9))],
    *[("seen", value) for value in (None, Point("7", "7", 7))],
    *[("run_name", value) for value in ("7", "a" * 100, "a.b_c-d")],
    *[("method", value) for value in ("local", "package.module:Class", "a" * 128)],  # clients know which they take
    *[("exchange", value) for value in ("deploy", "global_step", "another")],
    *[("seed", value) for value in (0, -1, 2**62)],
    *[("compress", value) for value in ((), ("delta",), ("a", "b", "c"))],
    *[("tests", value) for value in ((), (TEST,), (AFTER_TRAINING, VALIDATION))],
]


@pytest.mark.parametrize(("field", "value"), IN_RANGE)
def test_an_instruction_at_the_end_of_its_range_arrives_as_it_was_sent(field, value):
    instructions = dataclasses.replace(INSTRUCTIONS, **{field: value})
    assert decode_instructions(wired(request(instructions))) == instructions


# Requests: the settings of the method


@dataclass(frozen=True, kw_only=True)
class Sample(Settings):
    """One setting of each kind."""

    flag: bool = option(False, "a switch")
    count: int = option(3, "a count", minimum=1, maximum=9)
    share: float = option(0.5, "a share", above=0, maximum=1)
    size: int | str = option(AUTO, "a size", minimum=1, words=(AUTO,))
    rate: float | str = option(0.5, "a rate", above=0, words=(AUTO,))
    choice: str = option("one", "a choice", choices=("one", "two"))
    text: str = option("", "a text")


@pytest.mark.parametrize("method", built_in())
def test_the_default_settings_of_every_client_half_arrive_as_they_were_sent(method):
    told = find(method).client.Settings()
    assert decode_settings(wired(request(told=told)), type(told)) == told


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"flag": True, "count": 9, "share": 1.0, "size": 1, "rate": AUTO, "choice": "two", "text": "Ü /"},
        {"count": 1, "share": 1e-300, "size": 10**12},
    ],
)
def test_settings_arrive_as_they_were_sent(changed):
    told = Sample(**changed)
    received = decode_settings(wired(request(told=told)), Sample)
    assert received == told
    assert [type(value) for value in vars(received).values()] == [type(value) for value in vars(told).values()]


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        *[("flag", value, "true or false") for value in (0, 1, "true", 1.0, [True])],
        *[("count", value, "a whole number") for value in (0, 10, "x", True, [3], 2.5, 3.0, "3")],
        *[("share", value, "a number") for value in (0.0, 1.1, math.nan, math.inf, True, "x", 1, "0.5")],
        *[("size", value, "a whole number") for value in (0, 1.5, "large", True)],
        *[("rate", value, "a number") for value in (0.0, math.nan, "fast", True, 1)],
        *[("choice", value, "one of one, two") for value in ("", "three", 1, True, b"one", ["one"])],
        *[("text", value, "text") for value in (7, True, b"a", ["a"], 1.5)],
    ],
)
def test_a_setting_of_another_type_or_out_of_its_range_is_refused_by_name(key, value, right):
    content = request(told=Sample())
    content["settings"][key] = value
    error = error_of(decode_settings, content, Sample)
    assert error.reason == "malformed"
    assert error.detail.startswith(f"{key} is {'empty' if value == '' else repr(value)}")
    assert f", but must be {right}" in error.detail


@pytest.mark.parametrize("key", sorted(options_of(Sample)))
def test_all_settings_must_be_there(key):
    content = request(told=Sample())
    del content["settings"][key]
    error = error_of(decode_settings, content, Sample)
    assert error.reason == "malformed"
    assert error.detail == f"the record 'settings' has missing or unknown keys: ['{key}']"


def test_settings_of_another_half_are_refused_with_the_keys_that_differ():
    content = request(told=Sample())
    content["settings"]["hn-lr"] = 0.1
    assert "['hn-lr']" in error_of(decode_settings, content, Sample).detail
    error = error_of(decode_settings, request(told=LocalTraining()), Compressed)
    assert "batch-size" in error.detail
    assert "topk-fraction" in error.detail


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({"settings": MetricRecord()}), ConfigRecord()])
def test_settings_that_are_not_there_are_those_of_a_half_without_any(content):
    assert decode_settings(content, Settings) == Settings()
    assert error_of(decode_settings, content, Sample).reason == "malformed"


@pytest.mark.parametrize("download", DOWNLOADS)
def test_the_wire_forms_are_those_of_the_settings(download):
    settings = Compressed(upload="topk", topk_fraction=0.25, download=download)
    assert upload_form(settings) == WireForm("topk", 0.25)
    assert download_form(settings) == WireForm(download)
    assert upload_form(LocalTraining()) == download_form(LocalTraining()) == DENSE


# Replies


@pytest.mark.parametrize(
    "evaluations",
    [
        {},
        {TEST: Evaluation(80, 80, 1.0)},
        {AFTER_TRAINING: Evaluation(0, 1, 0.0)},
        {TEST: Evaluation(80, 80, 1.0), VALIDATION: Evaluation(1, 3, -2.0), AFTER_TRAINING: Evaluation(0, 80, 9.0)},
    ],
)
@pytest.mark.parametrize("privacy", [None, PrivacySpent(0.0, 0.5), PrivacySpent(1e6, 1e-9)])
@pytest.mark.parametrize(("num_examples", "train_loss"), [(1, 2.0), (None, None), (7, None)])
def test_a_result_arrives_as_it_was_sent(num_examples, train_loss, evaluations, privacy):
    result = Result(num_examples, train_loss, evaluations, privacy)
    content = wired(encode_result(result, {DELTA: torch.tensor([1.0])}))
    assert decode_result(content) == result
    assert decode_arrays(content, {DELTA: Vector(1)})[DELTA].tolist() == [1.0]


def test_a_result_tells_counts_losses_and_privacy_and_nothing_else():
    content = encode_result(RESULT, {DELTA: torch.zeros(2)})
    assert set(content) == {"metrics", "arrays"}
    assert set(content["metrics"]) == {
        *("num-examples", "train-loss"),
        *("test-correct", "test-total", "test-loss"),
        *("validation-correct", "validation-total", "validation-loss"),
        *("after-training-correct", "after-training-total", "after-training-loss"),
        *("privacy-epsilon", "privacy-delta"),
    }
    assert set(content["arrays"]) == {"delta"}


def test_a_result_says_nothing_of_what_was_not_done():
    assert {name: dict(record) for name, record in encode_result(Result()).items()} == {"metrics": {}}
    tested = encode_result(Result(evaluations={TEST: Evaluation(3, 7, 0.5)}))
    assert {name: dict(record) for name, record in tested.items()} == {
        "metrics": {"test-correct": 3, "test-total": 7, "test-loss": 0.5}
    }


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        *[("num-examples", value, "malformed") for value in (0, -1, 5.0, [5], [])],
        *[(f"{name}-correct", value, "malformed") for name in EVALUATIONS for value in (-1, 81, 3.0, [3])],
        *[(f"{name}-total", value, "malformed") for name in EVALUATIONS for value in (0, -80, 80.0, [80])],
        *[("train-loss", value, "malformed") for value in (2, [2.0])],
        *[("train-loss", value, "not-finite") for value in (math.nan, math.inf, -math.inf)],
        *[(f"{name}-loss", value, "malformed") for name in EVALUATIONS for value in (2, [2.0])],
        *[(f"{name}-loss", value, "not-finite") for name in EVALUATIONS for value in (math.nan, math.inf, -math.inf)],
        *[
            (f"{name}-loss", value, "huge-loss")
            for name in ("train", *EVALUATIONS)
            for value in (1.01e12, -1.01e12, 1.7e308)
        ],
        *[("privacy-epsilon", value, "malformed") for value in (2, [2.0], -0.5, 1.01e12, 1e300)],
        *[("privacy-epsilon", value, "not-finite") for value in (math.nan, math.inf)],
        *[("privacy-delta", value, "malformed") for value in (2, [2.0], 0.0, 1.0, -0.5)],
        *[("privacy-delta", value, "not-finite") for value in (math.nan, math.inf)],
    ],
)
def test_a_wrong_count_or_loss_is_refused_by_name(key, value, reason):
    content = encode_result(RESULT)
    content["metrics"][key] = value
    error = error_of(decode_result, content)
    assert error.reason == reason
    assert f"{key} " in error.detail


@pytest.mark.parametrize("loss", [1e12, -1e12])
def test_a_loss_and_an_epsilon_may_be_large(loss):
    result = Result(5, loss, {TEST: Evaluation(1, 2, loss)}, PrivacySpent(1e12, 0.5))
    assert decode_result(encode_result(result)) == result


@pytest.mark.parametrize("key", ["test-total", "validation-loss", "after-training-total", "privacy-delta"])
def test_a_part_that_is_missing_beside_another_is_refused_by_name(key):
    content = encode_result(RESULT)
    del content["metrics"][key]
    assert f"{key} is None" in error_of(decode_result, content).detail


@pytest.mark.parametrize("key", ["num-examples", "test-correct", "validation-total"])
def test_a_bool_is_not_a_count(key):
    content = encode_result(RESULT)
    # Flower's own record refuses it, but not what an altered client puts past that check.
    content["metrics"].__dict__["_data"][key] = True
    assert error_of(decode_result, content).reason == "malformed"


def test_more_correct_answers_than_questions_are_refused_with_both_numbers():
    error = error_of(decode_result, encode_result(Result(evaluations={VALIDATION: Evaluation(81, 80, 0.1)})))
    assert error.reason == "malformed"
    assert error.detail == "validation-correct is 81, more than the total of 80"


def test_a_result_of_a_test_that_nobody_knows_is_not_taken():
    content = encode_result(Result(evaluations={TEST: Evaluation(3, 7, 0.5), "aftertaste": Evaluation(9, 9, 0.0)}))
    assert decode_result(content).evaluations == {TEST: Evaluation(3, 7, 0.5)}


@pytest.mark.parametrize(
    "content",
    [RecordDict(), RecordDict({"metrics": ConfigRecord({"num-examples": 5})}), RecordDict({"metrics": ArrayRecord()})],
)
def test_a_message_without_metrics_is_malformed(content):
    assert error_of(decode_result, content).reason == "malformed"


# Arbitrary content


@FUZZ
@given(
    contents(
        "registration",
        ConfigRecord,
        encode_registration(Registration("a", 5, 30, 10, {"global-num-params": 3, "group": "b"})),
        CONFIG_VALUES,
    ),
    st.sampled_from([None, FACTS, {"group": Label(required=True)}]),
)
def test_whatever_arrives_as_a_registration_is_one_or_a_protocol_error(content, facts):
    with only_protocol_errors():
        registration = decode_registration(content, facts)
        assert min(registration.num_params, registration.num_train, registration.num_test) >= 1
        assert 1 <= len(registration.client_key) <= 64
        assert set(registration.facts) <= set(facts or {})
        assert registration.facts.get("global-num-params", 1) >= 1
        assert len(registration.facts.get("group", "")) <= 64


KINDS = dict.fromkeys(("compress", "tests", "lineage", "returns_to"), (tuple,)) | {"seen": (Point, type(None))}


@FUZZ
@given(contents("instructions", ConfigRecord, request(), CONFIG_VALUES))
def test_whatever_arrives_as_instructions_is_a_set_of_them_or_a_protocol_error(content):
    with only_protocol_errors():
        instructions = decode_instructions(content)
        for field in dataclasses.fields(Instructions):
            assert type(getattr(instructions, field.name)) in KINDS.get(field.name, (field.type,))
        assert content["instructions"]["protocol-version"] == VERSION
        assert instructions.server_round >= 1


@FUZZ
@given(contents("settings", ConfigRecord, request(told=Sample()), CONFIG_VALUES))
def test_whatever_arrives_as_settings_is_a_set_of_them_or_a_protocol_error(content):
    with only_protocol_errors():
        settings = decode_settings(content, Sample)
        for key, each in options_of(Sample).items():
            value = getattr(settings, key.replace("-", "_"))
            assert type(value) in each.kinds
            assert each.checked(value, "a test") == value


@FUZZ
@given(contents("instructions", ConfigRecord, encode_greeting("local", "run", 7, Sample(), FACTS), CONFIG_VALUES))
def test_whatever_arrives_as_a_greeting_is_one_or_a_protocol_error(content):
    with only_protocol_errors():
        greeting = decode_greeting(content)
        assert isinstance(greeting, Greeting)
        assert type(greeting.seed) is int
        assert all(isinstance(fact, str) for fact in greeting.facts)
        assert content["instructions"]["protocol-version"] == VERSION


@FUZZ
@given(contents("metrics", MetricRecord, encode_result(RESULT), METRIC_VALUES))
def test_whatever_arrives_as_a_result_is_one_or_a_protocol_error(content):
    with only_protocol_errors():
        result = decode_result(content)
        assert result.num_examples is None or result.num_examples >= 1
        assert result.train_loss is None or abs(result.train_loss) <= 1e12
        assert result.evaluations.keys() <= set(EVALUATIONS)
        for evaluation in result.evaluations.values():
            assert 0 <= evaluation.accuracy <= 1
            assert abs(evaluation.loss) <= 1e12
        if result.privacy:
            assert 0 <= result.privacy.epsilon <= 1e12
            assert 0 < result.privacy.delta < 1


def test_message_types_are_of_flowers_categories():
    # Flower dispatches by what stands before the dot.
    types = (protocol.REGISTER, protocol.TRAIN, protocol.DEPLOY)
    assert [name.split(".")[0] for name in types] == ["query", "train", "evaluate"]
