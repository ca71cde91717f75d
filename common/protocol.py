"""What travels between server and clients: names of records and keys, encoding, and the checks at the boundary.

Both sides import it, and neither trusts the other: dtype, length and finiteness of every array are checked before use.
"""

import dataclasses
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from common.codec import decode, encode
from common.config import DOWNLOADS, RUN_NAME, UPLOADS
from common.errors import ProtocolError
from common.evaluation import Evaluation

VERSION = 2

# Message types (a category of Flower's, a dot, an action of ours).
REGISTER = "query.register"
PERSONAL = "train.personal"
GLOBAL = "train.global"
FINISH = "train.finish"
EVALUATE = "evaluate"

# Names of the records of a message.
_REGISTRATION = "registration"
_INSTRUCTIONS = "instructions"
_VECTORS = "vectors"
_METRICS = "metrics"

# Types of the arrays, by the names that Flower gives them.
_DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("float32", "float16", "int8", "uint8")}
_VALUES = "values"  # the codecs' part that travels under the vector's own name
NOT_TOPK = 1.0  # topk-fraction where the codec takes none

# Names of the vectors.
THETA = "theta"  # [K] float32, generated weights, server to client: theta_i, or w_g in a global exchange
DELTA = "delta"  # [K] float32, theta sent - theta trained, client to server

_LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}")


# What instructions may say, beyond their types.
_AT_LEAST = {"local-epochs": 0, "batch-size": 1, "server-round": 1, "teacher-round": 0, "checkpoint-round": 0}
_CHOICES = {"upload": UPLOADS, "download": DOWNLOADS}


@dataclass(frozen=True)
class Instructions:
    """What the server tells a client to do with the vectors of a message."""

    method: str
    run_name: str
    server_round: int
    seed: int
    evaluate: bool  # test the received weights before training
    anchor: bool  # the vector is added to the architecture's seeded initialisation
    local_epochs: int
    batch_size: int
    client_lr: float
    client_momentum: float
    client_weight_decay: float
    max_grad_norm: float
    # What follows travels only where it differs from the default.
    global_model: str = ""  # public name of the model of a global exchange
    teacher_round: int = 0  # distil from the w_g that came in this round's global exchange; 0: do not distil
    temperature: float = 1.0
    distillation_coefficient: float = 0.0
    upload: str = "dense"  # codec of the reply
    download: str = "dense"  # codec of this message
    topk_fraction: float = NOT_TOPK
    error_feedback: bool = False
    checkpoint_round: int = 0  # of the last checkpoint, to which the server goes back when it is resumed; 0: none
    previous_run: str = ""  # take over what was kept in this run, where this one has kept nothing yet
    protocol_version: int = VERSION


@dataclass(frozen=True)
class PrivacySpent:
    """The guarantee (epsilon, delta) that covers all vectors that a client has sent so far."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class TrainingResult:
    """What a client tells about a round of training, beside its vectors."""

    num_examples: int
    train_loss: float  # mean over all samples of all local epochs
    evaluation: Evaluation | None  # of the weights as received
    privacy: PrivacySpent | None = None  # by clients that send noised vectors


@dataclass(frozen=True)
class Registration:
    """All that a client ever tells about itself. The last two are sent only by those who choose to."""

    client_key: str
    num_params: int  # K
    global_num_params: int = 0  # K_g of the public global model, by clients that deploy it
    group: str = ""  # opaque label that clients of one architecture have in common


def encode_registration(registration: Registration) -> RecordDict:
    """Pack K, the client key, and what else the client chose to tell."""
    record = ConfigRecord({"client-key": registration.client_key, "num-params": registration.num_params})
    if registration.global_num_params:
        record["global-num-params"] = registration.global_num_params
    if registration.group:
        record["group"] = registration.group
    return RecordDict({_REGISTRATION: record})


def decode_registration(content: RecordDict) -> Registration:
    """Unpack and check a registration. Raises ProtocolError."""
    record = content.config_records.get(_REGISTRATION)
    required = {"client-key", "num-params"}
    if record is None or not required <= set(record) <= required | {"global-num-params", "group"}:
        raise ProtocolError(
            "malformed", "a registration holds client-key and num-params, perhaps global-num-params and group, no more"
        )
    for key in ("client-key", "group"):
        label = record.get(key, "-")
        if not isinstance(label, str) or not _LABEL.fullmatch(label):
            raise ProtocolError("malformed", f"a {key} is 1 to 64 letters, digits, dots, dashes and underscores")
    for key in ("num-params", "global-num-params"):
        number = record.get(key, 1)
        if type(number) is not int or number < 1:
            raise ProtocolError("malformed", f"{key} is {number!r}, but must be a whole number of at least 1")
    values: dict[str, Any] = {name.replace("-", "_"): value for name, value in record.items()}
    return Registration(**values)


def encode_request(instructions: Instructions, vectors: Mapping[str, Tensor]) -> RecordDict:
    """Pack a server's request, the vectors in the wire form that the instructions name as `download`."""
    fields = {field.name: field.default for field in dataclasses.fields(Instructions)}
    values = {
        name: value
        for name, value in dataclasses.asdict(instructions).items()
        if name == "protocol_version" or value != fields[name]
    }
    content = RecordDict({_INSTRUCTIONS: ConfigRecord(_kebab(values))})
    if vectors:
        content[_VECTORS] = _encode_vectors(vectors, instructions.download, NOT_TOPK)
    return content


def decode_instructions(content: RecordDict) -> Instructions:
    """Unpack and check what the server tells a client to do. Raises ProtocolError."""
    record = content.config_records.get(_INSTRUCTIONS)
    if record is None:
        raise ProtocolError("malformed", f"the message has no record {_INSTRUCTIONS!r}")
    check_version(record)
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(Instructions)}
    required = {key for key, field in fields.items() if field.default is dataclasses.MISSING}
    if not required <= set(record) <= set(fields):
        different = sorted((required - set(record)) | (set(record) - set(fields)))
        raise ProtocolError("malformed", f"the record {_INSTRUCTIONS!r} has missing or unknown keys: {different}")
    values = {}
    for key in record:
        field = fields[key]
        value: Any = record[key]
        if type(value) is not field.type:
            raise ProtocolError("malformed", f"{key} is {value!r}, but must be of type {field.type}")
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            raise ProtocolError("malformed", f"{key} is {value}, but must be a finite number of at least 0")
        if key in _AT_LEAST and value < _AT_LEAST[key]:
            raise ProtocolError("malformed", f"{key} is {value!r}, but must be at least {_AT_LEAST[key]}")
        if key in ("topk-fraction", "temperature") and value == 0:
            raise ProtocolError("malformed", f"{key} is 0, but must be above 0")
        if key in ("topk-fraction", "distillation-coefficient") and value > 1:
            raise ProtocolError("malformed", f"{key} is {value}, but must be at most 1")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise ProtocolError("malformed", f"{key} must be one of {', '.join(_CHOICES[key])}")
        if key in ("run-name", "previous-run") and not RUN_NAME.fullmatch(str(value)):
            raise ProtocolError("malformed", f"{key} is not the name of a folder")
        values[field.name] = value
    return Instructions(**values)  # type: ignore[arg-type]


def check_version(record: ConfigRecord) -> None:
    """Raise ProtocolError unless the other side speaks this version."""
    version = record.get("protocol-version")
    if type(version) is not int or version != VERSION:
        raise ProtocolError(
            "version",
            f"the other side speaks protocol version {version!r}, this one {VERSION}: install the same release",
        )


def encode_greeting(global_model: str = "") -> RecordDict:
    """Pack the server's side of a registration: the protocol version and the global model, for methods with one."""
    return RecordDict({_INSTRUCTIONS: ConfigRecord({"protocol-version": VERSION, "global-model": global_model})})


def decode_greeting(content: RecordDict) -> str:
    """Return the name of the public global model, empty for methods without one.

    Raises ProtocolError when the server speaks another version of the protocol.
    """
    greeting = content.config_records.get(_INSTRUCTIONS, ConfigRecord())
    check_version(greeting)
    name = greeting.get("global-model", "")
    if not isinstance(name, str):
        raise ProtocolError("malformed", "global-model must be text")
    return name


def encode_training_result(
    result: TrainingResult, vectors: Mapping[str, Tensor], upload: str = "dense", topk_fraction: float = NOT_TOPK
) -> RecordDict:
    """Pack a client's reply to a training request, the vectors in the wire form `upload`."""
    metrics = MetricRecord({"num-examples": result.num_examples, "train-loss": result.train_loss})
    if result.evaluation:
        metrics.update(_evaluation_metrics(result.evaluation))
    if result.privacy:
        metrics.update({"privacy-epsilon": result.privacy.epsilon, "privacy-delta": result.privacy.delta})
    content = RecordDict({_METRICS: metrics})
    if vectors:
        content[_VECTORS] = _encode_vectors(vectors, upload, topk_fraction)
    return content


def decode_training_result(content: RecordDict) -> TrainingResult:
    """Unpack and check the counts and losses of a reply to a training request. Raises ProtocolError."""
    metrics = _metrics(content)
    num_examples = _whole(metrics, "num-examples", minimum=1)
    evaluation = _decode_evaluation(metrics) if "correct" in metrics else None
    privacy = _decode_privacy(metrics) if "privacy-epsilon" in metrics else None
    return TrainingResult(num_examples, _finite(metrics, "train-loss"), evaluation, privacy)


def encode_evaluation(evaluation: Evaluation) -> RecordDict:
    """Pack a client's reply to an evaluation request."""
    return RecordDict({_METRICS: MetricRecord(_evaluation_metrics(evaluation))})


def decode_evaluation(content: RecordDict) -> Evaluation:
    """Unpack and check a reply to an evaluation request. Raises ProtocolError."""
    return _decode_evaluation(_metrics(content))


def decode_vectors(
    content: RecordDict, lengths: Mapping[str, int], codec: str = "dense", topk_fraction: float = NOT_TOPK
) -> dict[str, Tensor]:
    """Unpack the vectors of a message: exactly these names, of exactly these lengths, all values finite.

    Raises ProtocolError with reason `malformed`, `wrong-dtype`, `wrong-length` or `not-finite`.
    """
    record = content.array_records.get(_VECTORS, ArrayRecord())
    parts: dict[str, dict[str, np.ndarray]] = {name: {} for name in lengths}
    for label, array in record.items():
        name, _, part = label.partition("/")
        if name not in parts or label != _label(name, part or _VALUES):
            raise ProtocolError(
                "malformed", f"the message holds {label[:40]!r}, but must hold the vectors {sorted(lengths)}"
            )
        # No codec needs more values than the vector has.
        parts[name][part or _VALUES] = _decode_array(label, array, lengths[name])
    if missing := [name for name, found in parts.items() if not found]:
        raise ProtocolError("malformed", f"the message lacks the vectors {missing}")
    vectors = {}
    for name, length in lengths.items():
        try:
            vectors[name] = decode(parts[name], codec, topk_fraction, length)
        except ProtocolError as error:
            raise ProtocolError(error.reason, f"vector {name!r}: {error.detail}") from error
    return vectors


def payload_bytes(content: RecordDict) -> int:
    """Bytes of the arrays of a message as sent."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def _encode_vectors(vectors: Mapping[str, Tensor], codec: str, topk_fraction: float) -> ArrayRecord:
    """Each vector under its own name; where a codec makes several arrays of it, the others are `name/part`."""
    arrays = {}
    for name, vector in vectors.items():
        for part, values in encode(vector.detach().cpu(), codec, topk_fraction).items():
            arrays[_label(name, part)] = Array(values)
    return ArrayRecord(arrays)


def _label(vector: str, part: str) -> str:
    return vector if part == _VALUES else f"{vector}/{part}"


def _decode_array(name: str, array: Array, longest: int) -> np.ndarray:
    """The values of an array of a message, read-only. The bytes are a NumPy file of one dimension.

    Only one header is right for a type and a length, so it is compared and never parsed.
    """
    dtype = _DTYPES.get(array.dtype)
    if dtype is None:
        raise ProtocolError("wrong-dtype", f"{name!r} is {str(array.dtype)[:20]}, which no codec sends")
    shape = tuple(array.shape)
    if len(shape) != 1 or type(shape[0]) is not int or not 0 <= shape[0] <= longest:
        raise ProtocolError("wrong-length", f"{name!r} has shape {str(shape)[:60]}, for a vector of {longest} values")
    (length,) = shape
    header = _npy_header(dtype, length)
    if len(array.data) != len(header) + dtype.itemsize * length or not array.data.startswith(header):
        raise ProtocolError("malformed", f"the bytes of {name!r} are not the {length} {dtype} values they claim")
    return np.frombuffer(array.data, dtype, offset=len(header))


def _npy_header(dtype: np.dtype, length: int) -> bytes:
    """What NumPy writes before a vector of this type and length."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype.str, "fortran_order": False, "shape": (length,)})
    return stream.getvalue()


def _evaluation_metrics(evaluation: Evaluation) -> dict[str, Any]:
    return {"correct": evaluation.correct, "total": evaluation.total, "loss": evaluation.loss}


def _decode_evaluation(metrics: MetricRecord) -> Evaluation:
    correct, total = _whole(metrics, "correct", minimum=0), _whole(metrics, "total", minimum=1)
    if correct > total:
        raise ProtocolError("malformed", f"correct is {correct}, more than the total of {total}")
    return Evaluation(correct, total, _finite(metrics, "loss"))


def _decode_privacy(metrics: MetricRecord) -> PrivacySpent:
    epsilon, delta = _finite(metrics, "privacy-epsilon"), _finite(metrics, "privacy-delta")
    if epsilon < 0 or not 0 < delta < 1:
        raise ProtocolError("malformed", f"privacy-epsilon is {epsilon} and privacy-delta {delta}, which is no privacy")
    return PrivacySpent(epsilon, delta)


def _metrics(content: RecordDict) -> MetricRecord:
    metrics = content.metric_records.get(_METRICS)
    if metrics is None:
        raise ProtocolError("malformed", f"the message has no record {_METRICS!r}")
    return metrics


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


def _kebab(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in values.items()}
