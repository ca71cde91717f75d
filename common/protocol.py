"""What travels between server and clients: names of records and keys, encoding, and the checks at the boundary.

Both sides import it, and neither trusts the other. Four kinds of messages: registration, an exchange of a round, an
exchange that deploys, and their replies. `arrays.py` packs and checks the arrays that they hold.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from common.arrays import DENSE, RECORD, Arrays, WireForm, encode_arrays
from common.errors import ProtocolError, UserError
from common.evaluation import EVALUATIONS, Evaluation
from common.instructions import Instructions, check_run_name
from common.options import options_of
from common.records import check_keys, kind_in_words, name_in
from common.schema import Fact, Facts, Label, Whole
from common.settings import Compressed, Settings
from common.text import shown, snake

VERSION = 5

# Message types: a category of Flower's, a dot, an action of ours. Which exchange it is, the message says.
REGISTER = "query.register"
TRAIN = "train.exchange"  # within a round
DEPLOY = "evaluate.deploy"  # to test weights or to hand them over

# Names of the records of a message, beside that of the arrays.
_REGISTRATION = "registration"
_INSTRUCTIONS = "instructions"
_SETTINGS = "settings"
_METRICS = "metrics"

_RUN_NAME = "run-name"  # in greetings and instructions

# Names of arrays that several methods send.
THETA = "theta"  # [K] float32, generated weights, server to client: theta_i, or w_g in a global exchange
DELTA = "delta"  # [K] float32, theta sent - theta trained, client to server

_KEY = Label(required=True)
_COUNT = Whole(1, 2**62, required=True)
_OWN = ("client-key", "num-params", "test-samples", "train-samples")  # what every registration holds

# Beyond this a loss or an epsilon is nobody's, and a mean over clients would overflow long before float64 does.
MOST = 1e12

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Greeting:
    """What the server says when it asks a client to register."""

    method: str
    run_name: str
    seed: int  # of the run
    settings: ConfigRecord  # of the method's client half, not yet checked
    facts: tuple[str, ...]  # what the method would like to know beyond K


@dataclass(frozen=True)
class Registration:
    """All that a client ever tells about itself; `facts` holds what the method asked for and the client gives."""

    client_key: str
    num_params: int  # K
    num_train: int  # samples that it trains on
    num_test: int  # samples that it tests on
    facts: Facts = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class PrivacySpent:
    """The guarantee (epsilon, delta) that covers all arrays that a client has sent so far."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class Result:
    """What a client tells about an exchange, beside its arrays."""

    num_examples: int | None = None  # m_i; None: nothing was trained or counted
    train_loss: float | None = None  # mean over all samples of all local epochs; None: nothing was trained
    evaluations: Mapping[str, Evaluation] = dataclasses.field(default_factory=dict)  # of the weights as received
    privacy: PrivacySpent | None = None  # by clients that send noised arrays


# Registration -----------------------------------------------------------------------------------------------------


def encode_greeting(method: str, run_name: str, seed: int, settings: Settings, facts: Iterable[str] = ()) -> RecordDict:
    """Pack the server's side of a registration."""
    told: dict[str, Any] = {"protocol-version": VERSION, "method": method, "run-name": run_name, "seed": seed}
    told["facts"] = list(facts)
    return RecordDict({_INSTRUCTIONS: ConfigRecord(told), _SETTINGS: _encode_settings(settings)})


def decode_greeting(content: RecordDict) -> Greeting:
    """Unpack and check it. Raises ProtocolError, also when the server speaks another version of the protocol."""
    record = content.config_records.get(_INSTRUCTIONS, ConfigRecord())
    check_version(record)
    check_keys(record, {"protocol-version", "method", _RUN_NAME, "seed", "facts"}, set(), _INSTRUCTIONS)
    facts, seed = record["facts"], record["seed"]
    if type(seed) is not int:
        raise ProtocolError("malformed", "seed must be a whole number")
    if not isinstance(facts, list) or not all(isinstance(fact, str) for fact in facts):
        raise ProtocolError("malformed", "facts must be a list of names")
    settings = content.config_records.get(_SETTINGS, ConfigRecord())
    check_run_name(record[_RUN_NAME])
    run_name = str(record[_RUN_NAME])
    return Greeting(name_in(record, "method"), run_name, seed, settings, tuple(map(str, facts)))


def encode_registration(registration: Registration) -> RecordDict:
    """Pack K, the client key, the numbers of samples, and the facts."""
    own: dict[str, Any] = {
        "client-key": registration.client_key,
        "num-params": registration.num_params,
        "train-samples": registration.num_train,
        "test-samples": registration.num_test,
    }
    return RecordDict({_REGISTRATION: ConfigRecord(own | dict(registration.facts))})


def decode_registration(content: RecordDict, facts: Mapping[str, Fact] | None = None) -> Registration:
    """Unpack and check a registration that may hold these facts and nothing more. Raises ProtocolError."""
    facts = facts or {}
    if reserved := facts.keys() & set(_OWN):
        raise ValueError(f"a method asks for {sorted(reserved)} as facts, which every registration holds already")
    record = content.config_records.get(_REGISTRATION)
    required = {*_OWN} | {key for key, fact in facts.items() if fact.required}
    allowed = required | facts.keys()
    if record is None or not required <= set(record) <= allowed:
        optional = f", perhaps {', '.join(sorted(allowed - required))}" if allowed - required else ""
        raise ProtocolError("malformed", f"a registration holds {' and '.join(sorted(required))}{optional}, no more")
    return Registration(
        _KEY.check("client-key", record["client-key"]),
        _COUNT.check("num-params", record["num-params"]),
        _COUNT.check("train-samples", record["train-samples"]),
        _COUNT.check("test-samples", record["test-samples"]),
        {name: fact.check(name, record[name]) for name, fact in facts.items() if name in record},
    )


# Requests ---------------------------------------------------------------------------------------------------------


def encode_request(instructions: Instructions, settings: Settings, arrays: Arrays) -> RecordDict:
    """Pack a request, its vectors in the wire form that the settings name as `download`."""
    record = ConfigRecord({"protocol-version": VERSION} | instructions.to_record())
    content = RecordDict({_INSTRUCTIONS: record, _SETTINGS: _encode_settings(settings)})
    if arrays:
        content[RECORD] = encode_arrays(arrays, download_form(settings))
    return content


def decode_instructions(content: RecordDict) -> Instructions:
    """Unpack and check what the server tells a client to do. Raises ProtocolError."""
    record = content.config_records.get(_INSTRUCTIONS)
    if record is None:
        raise ProtocolError("malformed", f"the message has no record {_INSTRUCTIONS!r}")
    check_version(record)
    return Instructions.from_record({key: value for key, value in record.items() if key != "protocol-version"})


def run_name_of(content: RecordDict) -> str:
    """The name of the run that a message of the server's belongs to, not yet checked; empty where it has none."""
    return str(content.config_records.get(_INSTRUCTIONS, ConfigRecord()).get(_RUN_NAME, ""))


def decode_settings(record: ConfigRecord | RecordDict, of: type[S]) -> S:
    """The settings of a client half, as a greeting or a request holds them: all of them, in their ranges.

    Raises ProtocolError.
    """
    if isinstance(record, RecordDict):
        record = record.config_records.get(_SETTINGS, ConfigRecord())
    options = options_of(of)
    check_keys(record, set(options), set(), _SETTINGS)
    values = {}
    for key, option in options.items():
        try:
            values[snake(key)] = option.checked(record[key], "the server's message")
        except UserError as error:
            raise ProtocolError("malformed", str(error)) from error
        right = type(values[snake(key)])
        if type(record[key]) is not right:
            raise ProtocolError("malformed", f"{key} is {repr(record[key])[:40]}, but must be {kind_in_words(right)}")
    return of(**values)


def download_form(settings: Settings) -> WireForm:
    """The wire form of vectors from the server."""
    return WireForm(settings.download) if isinstance(settings, Compressed) else DENSE


def upload_form(settings: Settings) -> WireForm:
    """The wire form of vectors from clients."""
    return WireForm(settings.upload, settings.topk_fraction) if isinstance(settings, Compressed) else DENSE


def check_version(record: ConfigRecord) -> None:
    """Raise ProtocolError unless the other side speaks this version."""
    version = record.get("protocol-version", "unknown")
    if type(version) is not int or version != VERSION:
        raise ProtocolError(
            "version",
            f"the other side speaks protocol version {shown(version)}, this one {VERSION}: install the same release",
        )


# Replies ----------------------------------------------------------------------------------------------------------


def encode_result(
    result: Result, arrays: Arrays | None = None, form: WireForm = DENSE, compress: Iterable[str] = ()
) -> RecordDict:
    """Pack a client's reply, the arrays named in `compress` in the wire form."""
    metrics: dict[str, Any] = {}
    if result.num_examples is not None:
        metrics["num-examples"] = result.num_examples
    if result.train_loss is not None:
        metrics["train-loss"] = result.train_loss
    for name, evaluation in result.evaluations.items():
        values = {"correct": evaluation.correct, "total": evaluation.total, "loss": evaluation.loss}
        metrics |= {f"{name}-{key}": value for key, value in values.items()}
    if result.privacy:
        metrics |= {"privacy-epsilon": result.privacy.epsilon, "privacy-delta": result.privacy.delta}
    content = RecordDict({_METRICS: MetricRecord(metrics)})
    if arrays:
        content[RECORD] = encode_arrays(arrays, form, compress)
    return content


def decode_result(content: RecordDict) -> Result:
    """Unpack and check the counts and losses of a reply. Raises ProtocolError."""
    metrics = content.metric_records.get(_METRICS)
    if metrics is None:
        raise ProtocolError("malformed", f"the message has no record {_METRICS!r}")
    return Result(
        _whole(metrics, "num-examples", minimum=1) if "num-examples" in metrics else None,
        _loss(metrics, "train-loss") if "train-loss" in metrics else None,
        {name: _evaluation(metrics, name) for name in EVALUATIONS if f"{name}-correct" in metrics},
        _privacy(metrics) if "privacy-epsilon" in metrics else None,
    )


# Inside -----------------------------------------------------------------------------------------------------------


def _encode_settings(settings: Settings) -> ConfigRecord:
    return ConfigRecord({key: getattr(settings, snake(key)) for key in options_of(type(settings))})


def _evaluation(metrics: MetricRecord, name: str) -> Evaluation:
    correct, total = _whole(metrics, f"{name}-correct", minimum=0), _whole(metrics, f"{name}-total", minimum=1)
    if correct > total:
        raise ProtocolError("malformed", f"{name}-correct is {correct}, more than the total of {total}")
    return Evaluation(correct, total, _loss(metrics, f"{name}-loss"))


def _privacy(metrics: MetricRecord) -> PrivacySpent:
    epsilon, delta = _finite(metrics, "privacy-epsilon"), _finite(metrics, "privacy-delta")
    if not 0 <= epsilon <= MOST or not 0 < delta < 1:
        raise ProtocolError("malformed", f"privacy-epsilon is {epsilon} and privacy-delta {delta}, which is no privacy")
    return PrivacySpent(epsilon, delta)


def _whole(metrics: MetricRecord, key: str, minimum: int) -> int:
    value = metrics.get(key)
    if type(value) is not int or value < minimum:
        raise ProtocolError("malformed", f"{key} is {shown(value)}, but must be a whole number of at least {minimum}")
    return value


def _loss(metrics: MetricRecord, key: str) -> float:
    value = _finite(metrics, key)
    if abs(value) > MOST:
        raise ProtocolError("huge-loss", f"{key} is {value:.3g}, but must be from -{MOST:g} to {MOST:g}")
    return value


def _finite(metrics: MetricRecord, key: str) -> float:
    value = metrics.get(key)
    if type(value) is not float:
        raise ProtocolError("malformed", f"{key} is {shown(value)}, but must be a number with a decimal point")
    if not math.isfinite(value):
        raise ProtocolError("not-finite", f"{key} is {value}")
    return value
