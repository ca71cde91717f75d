"""What travels between server and clients: names of records and keys, encoding, and the checks at the boundary.

Both sides import it, and neither trusts the other. Four kinds of messages: registration, an exchange of a round, an
exchange that deploys, and their replies. `arrays.py` packs and checks the arrays that they hold.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from common.arrays import DENSE, RECORD, Arrays, WireForm, encode_arrays
from common.config import RUN_NAME
from common.errors import ProtocolError, UserError
from common.evaluation import Evaluation
from common.options import options_of
from common.schema import Fact, Facts, Label, Whole
from common.settings import Compressed, Settings
from common.text import kebab, snake

VERSION = 4

# Message types: a category of Flower's, a dot, an action of ours. Which exchange it is, the message says.
REGISTER = "query.register"
TRAIN = "train.exchange"  # within a round
DEPLOY = "evaluate.deploy"  # to test weights or to hand them over

# Names of the records of a message, beside that of the arrays.
_REGISTRATION = "registration"
_INSTRUCTIONS = "instructions"
_SETTINGS = "settings"
_METRICS = "metrics"

# Names of arrays that several methods send.
THETA = "theta"  # [K] float32, generated weights, server to client: theta_i, or w_g in a global exchange
DELTA = "delta"  # [K] float32, theta sent - theta trained, client to server

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # of a method or an exchange
_KEY = Label(required=True)
_SIZE = Whole(1, 2**62, required=True)

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Instructions:
    """What the server tells a client about a request, whatever the method."""

    method: str  # a built-in name, or module:Class of a client half from outside
    exchange: str  # name of the method's exchange
    client_key: str  # whom the server believes to speak to
    run_name: str
    server_round: int
    seed: int
    deploys: bool = False  # what comes are the weights that the client is to use
    test: bool = False  # test them before anything else
    final: bool = False  # keep them: the run is over
    compress: tuple[str, ...] = ()  # names of the arrays of the reply that take the wire form `upload`
    checkpoint_round: int = 0  # of the last checkpoint, to which the server goes back when it is resumed; 0: none
    previous_run: str = ""  # take over what was kept in this run, where this one has kept nothing yet


@dataclass(frozen=True)
class Greeting:
    """What the server says when it asks a client to register."""

    method: str
    seed: int  # of the run
    settings: ConfigRecord  # of the method's client half, not yet checked
    facts: tuple[str, ...]  # what the method would like to know beyond K


@dataclass(frozen=True)
class Registration:
    """All that a client ever tells about itself; `facts` holds what the method asked for and the client gives."""

    client_key: str
    num_params: int  # K
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
    evaluation: Evaluation | None = None  # of the weights as received
    privacy: PrivacySpent | None = None  # by clients that send noised arrays


# Registration -----------------------------------------------------------------------------------------------------


def encode_greeting(method: str, seed: int, settings: Settings, facts: Iterable[str] = ()) -> RecordDict:
    """Pack the server's side of a registration."""
    told: dict[str, Any] = {"protocol-version": VERSION, "method": method, "seed": seed, "facts": list(facts)}
    return RecordDict({_INSTRUCTIONS: ConfigRecord(told), _SETTINGS: _encode_settings(settings)})


def decode_greeting(content: RecordDict) -> Greeting:
    """Unpack and check it. Raises ProtocolError, also when the server speaks another version of the protocol."""
    record = content.config_records.get(_INSTRUCTIONS, ConfigRecord())
    check_version(record)
    _check_keys(record, {"protocol-version", "method", "seed", "facts"}, set(), _INSTRUCTIONS)
    facts, seed = record["facts"], record["seed"]
    if type(seed) is not int:
        raise ProtocolError("malformed", "seed must be a whole number")
    if not isinstance(facts, list) or not all(isinstance(fact, str) for fact in facts):
        raise ProtocolError("malformed", "facts must be a list of names")
    settings = content.config_records.get(_SETTINGS, ConfigRecord())
    return Greeting(_name(record, "method"), seed, settings, tuple(map(str, facts)))


def encode_registration(registration: Registration) -> RecordDict:
    """Pack K, the client key, and the facts."""
    own: dict[str, Any] = {"client-key": registration.client_key, "num-params": registration.num_params}
    return RecordDict({_REGISTRATION: ConfigRecord(own | dict(registration.facts))})


def decode_registration(content: RecordDict, facts: Mapping[str, Fact] | None = None) -> Registration:
    """Unpack and check a registration that may hold these facts and nothing more. Raises ProtocolError."""
    facts = facts or {}
    if reserved := facts.keys() & {"client-key", "num-params"}:
        raise ValueError(f"a method asks for {sorted(reserved)} as facts, which every registration holds already")
    record = content.config_records.get(_REGISTRATION)
    required = {"client-key", "num-params"} | {key for key, fact in facts.items() if fact.required}
    allowed = required | facts.keys()
    if record is None or not required <= set(record) <= allowed:
        optional = f", perhaps {', '.join(sorted(allowed - required))}" if allowed - required else ""
        raise ProtocolError("malformed", f"a registration holds {' and '.join(sorted(required))}{optional}, no more")
    key = _KEY.check("client-key", record["client-key"])
    size = _SIZE.check("num-params", record["num-params"])
    return Registration(
        key, size, {name: fact.check(name, record[name]) for name, fact in facts.items() if name in record}
    )


# Requests ---------------------------------------------------------------------------------------------------------


def encode_request(instructions: Instructions, settings: Settings, arrays: Arrays) -> RecordDict:
    """Pack a request, its vectors in the wire form that the settings name as `download`."""
    defaults = {field.name: field.default for field in dataclasses.fields(Instructions)}
    told = {kebab(name): value for name, value in vars(instructions).items() if value != defaults[name]}
    if instructions.compress:
        told["compress"] = list(instructions.compress)
    record = ConfigRecord({"protocol-version": VERSION} | told)
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
    fields = {kebab(field.name): field for field in dataclasses.fields(Instructions)}
    required = {key for key, field in fields.items() if field.default is dataclasses.MISSING}
    _check_keys(record, required | {"protocol-version"}, set(fields), _INSTRUCTIONS)
    values: dict[str, Any] = {}
    for key, value in record.items():
        if key == "protocol-version":
            continue
        if key == "compress":
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise ProtocolError("malformed", "compress must be a list of names")
        elif type(value) is not (right := fields[key].type):
            raise ProtocolError("malformed", f"{key} is {repr(value)[:40]}, but must be {_name_of(right)}")
        values[snake(key)] = tuple(value) if isinstance(value, list) else value
    instructions = Instructions(**values)
    _name(record, "method")
    _name(record, "exchange")
    _KEY.check("client-key", record["client-key"])
    for key, least in (("server-round", 1), ("checkpoint-round", 0)):
        if getattr(instructions, snake(key)) < least:
            raise ProtocolError("malformed", f"{key} is {record[key]!r}, but must be at least {least}")
    for key in ("run-name", "previous-run"):
        if key in record and not RUN_NAME.fullmatch(str(record[key])):
            raise ProtocolError("malformed", f"{key} is not the name of a folder")
    return instructions


def decode_settings(record: ConfigRecord | RecordDict, of: type[S]) -> S:
    """The settings of a client half, as a greeting or a request holds them: all of them, in their ranges.

    Raises ProtocolError.
    """
    if isinstance(record, RecordDict):
        record = record.config_records.get(_SETTINGS, ConfigRecord())
    options = options_of(of)
    _check_keys(record, set(options), set(), _SETTINGS)
    values = {}
    for key, option in options.items():
        try:
            values[snake(key)] = option.checked(record[key], "the server's message")
        except UserError as error:
            raise ProtocolError("malformed", str(error)) from error
        right = type(values[snake(key)])
        if type(record[key]) is not right:
            raise ProtocolError("malformed", f"{key} is {repr(record[key])[:40]}, but must be {_name_of(right)}")
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
            f"the other side speaks protocol version {version!r}, this one {VERSION}: install the same release",
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
    if result.evaluation:
        evaluation = result.evaluation
        metrics |= {"correct": evaluation.correct, "total": evaluation.total, "loss": evaluation.loss}
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
        _finite(metrics, "train-loss") if "train-loss" in metrics else None,
        _evaluation(metrics) if "correct" in metrics else None,
        _privacy(metrics) if "privacy-epsilon" in metrics else None,
    )


# Inside -----------------------------------------------------------------------------------------------------------


def _encode_settings(settings: Settings) -> ConfigRecord:
    return ConfigRecord({key: getattr(settings, snake(key)) for key in options_of(type(settings))})


def _name_of(kind: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number with a decimal point", str: "text"}[kind]


def _check_keys(record: ConfigRecord, required: set[str], optional: set[str], name: str) -> None:
    if not required <= set(record) <= required | optional:
        different = sorted((required - set(record)) | (set(record) - required - optional))
        raise ProtocolError("malformed", f"the record {name!r} has missing or unknown keys: {str(different)[:200]}")


def _name(record: ConfigRecord, key: str) -> str:
    name = record[key]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ProtocolError("malformed", f"{key} is {repr(name)[:40]}, but must be a name")
    return name


def _evaluation(metrics: MetricRecord) -> Evaluation:
    correct, total = _whole(metrics, "correct", minimum=0), _whole(metrics, "total", minimum=1)
    if correct > total:
        raise ProtocolError("malformed", f"correct is {correct}, more than the total of {total}")
    return Evaluation(correct, total, _finite(metrics, "loss"))


def _privacy(metrics: MetricRecord) -> PrivacySpent:
    epsilon, delta = _finite(metrics, "privacy-epsilon"), _finite(metrics, "privacy-delta")
    if epsilon < 0 or not 0 < delta < 1:
        raise ProtocolError("malformed", f"privacy-epsilon is {epsilon} and privacy-delta {delta}, which is no privacy")
    return PrivacySpent(epsilon, delta)


def _whole(metrics: MetricRecord, key: str, minimum: int) -> int:
    value = metrics.get(key)
    if type(value) is not int or value < minimum:
        raise ProtocolError("malformed", f"{key} is {value!r}, but must be a whole number of at least {minimum}")
    return value


def _finite(metrics: MetricRecord, key: str) -> float:
    value = metrics.get(key)
    if type(value) is not float:
        raise ProtocolError("malformed", f"{key} is {value!r}, but must be a number with a decimal point")
    if not math.isfinite(value):
        raise ProtocolError("not-finite", f"{key} is {value}")
    return value
