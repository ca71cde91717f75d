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
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from common.config import RUN_NAME
from common.evaluation import Evaluation

VERSION = 1

# Message types (a category of Flower's, a dot, an action of ours).
REGISTER = "query.register"
PERSONAL = "train.personal"
FINISH = "train.finish"
EVALUATE = "evaluate"

# Names of the records of a message.
_REGISTRATION = "registration"
_INSTRUCTIONS = "instructions"
_VECTORS = "vectors"
_METRICS = "metrics"

# Names of the vectors.
THETA = "theta"  # [K_i] float32, generated weights, server to client
DELTA = "delta"  # [K_i] float32, theta sent - theta trained, client to server

_CLIENT_KEY = re.compile(r"[A-Za-z0-9._-]{1,64}")


class ProtocolError(Exception):
    """A message that is not what it should be; `reason` is a short name that is counted, `detail` one sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


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
    protocol_version: int = VERSION


@dataclass(frozen=True)
class TrainingResult:
    """What a client tells about a round of training, beside its vectors."""

    num_examples: int
    train_loss: float  # mean over all samples of all local epochs
    evaluation: Evaluation | None  # of the weights as received


@dataclass(frozen=True)
class Registration:
    """All that a client ever tells about itself."""

    client_key: str
    num_params: int  # K


def encode_registration(registration: Registration) -> RecordDict:
    """Pack K and the client key."""
    record = ConfigRecord({"client-key": registration.client_key, "num-params": registration.num_params})
    return RecordDict({_REGISTRATION: record})


def decode_registration(content: RecordDict) -> Registration:
    """Unpack and check a registration. Raises ProtocolError."""
    record = content.config_records.get(_REGISTRATION)
    if record is None or set(record) != {"client-key", "num-params"}:
        raise ProtocolError("malformed", "a registration holds client-key and num-params, no more and no less")
    key, num_params = record["client-key"], record["num-params"]
    if not isinstance(key, str) or not _CLIENT_KEY.fullmatch(key):
        raise ProtocolError("malformed", "a client-key is 1 to 64 letters, digits, dots, dashes and underscores")
    if type(num_params) is not int or num_params < 1:
        raise ProtocolError("malformed", f"num-params is {num_params!r}, but must be a whole number of at least 1")
    return Registration(key, num_params)


def encode_request(instructions: Instructions, vectors: Mapping[str, Tensor]) -> RecordDict:
    """Pack a server's request."""
    content = RecordDict({_INSTRUCTIONS: ConfigRecord(_kebab(dataclasses.asdict(instructions)))})
    if vectors:
        content[_VECTORS] = _encode_vectors(vectors)
    return content


def decode_instructions(content: RecordDict) -> Instructions:
    """Unpack and check what the server tells a client to do. Raises ProtocolError."""
    record = content.config_records.get(_INSTRUCTIONS)
    if record is None:
        raise ProtocolError("malformed", f"the message has no record {_INSTRUCTIONS!r}")
    check_version(record)
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(Instructions)}
    if set(record) != set(fields):
        different = sorted(set(record) ^ set(fields))
        raise ProtocolError("malformed", f"the record {_INSTRUCTIONS!r} has missing or unknown keys: {different}")
    values = {}
    for key, field in fields.items():
        value = record[key]
        if type(value) is not field.type:
            raise ProtocolError("malformed", f"{key} is {value!r}, but must be of type {field.type}")
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            raise ProtocolError("malformed", f"{key} is {value}, but must be a finite number of at least 0")
        if key in ("local-epochs", "batch-size", "server-round") and value < 1:  # type: ignore[operator]
            raise ProtocolError("malformed", f"{key} is {value!r}, but must be at least 1")
        if key == "run-name" and not RUN_NAME.fullmatch(str(value)):
            raise ProtocolError("malformed", "run-name is not the name of a folder")
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


def encode_greeting() -> RecordDict:
    """Pack the server's side of a registration: the protocol version."""
    return RecordDict({_INSTRUCTIONS: ConfigRecord({"protocol-version": VERSION})})


def check_greeting(content: RecordDict) -> None:
    """Raise ProtocolError unless the server speaks this version of the protocol."""
    check_version(content.config_records.get(_INSTRUCTIONS, ConfigRecord()))


def encode_training_result(result: TrainingResult, vectors: Mapping[str, Tensor]) -> RecordDict:
    """Pack a client's reply to a training request."""
    metrics = MetricRecord({"num-examples": result.num_examples, "train-loss": result.train_loss})
    if result.evaluation:
        metrics.update(_evaluation_metrics(result.evaluation))
    content = RecordDict({_METRICS: metrics})
    if vectors:
        content[_VECTORS] = _encode_vectors(vectors)
    return content


def decode_training_result(content: RecordDict) -> TrainingResult:
    """Unpack and check the counts and losses of a reply to a training request. Raises ProtocolError."""
    metrics = _metrics(content)
    num_examples = _whole(metrics, "num-examples", minimum=1)
    evaluation = _decode_evaluation(metrics) if "correct" in metrics else None
    return TrainingResult(num_examples, _finite(metrics, "train-loss"), evaluation)


def encode_evaluation(evaluation: Evaluation) -> RecordDict:
    """Pack a client's reply to an evaluation request."""
    return RecordDict({_METRICS: MetricRecord(_evaluation_metrics(evaluation))})


def decode_evaluation(content: RecordDict) -> Evaluation:
    """Unpack and check a reply to an evaluation request. Raises ProtocolError."""
    return _decode_evaluation(_metrics(content))


def decode_vectors(content: RecordDict, lengths: Mapping[str, int]) -> dict[str, Tensor]:
    """Unpack the float32 vectors of a message: exactly these names, of exactly these lengths, all values finite.

    Raises ProtocolError with reason `malformed`, `wrong-dtype`, `wrong-length` or `not-finite`.
    """
    record = content.array_records.get(_VECTORS, ArrayRecord())
    if set(record) != set(lengths):
        raise ProtocolError("malformed", f"the message holds vectors {sorted(record)}, but must hold {sorted(lengths)}")
    return {name: _decode_vector(name, record[name], length) for name, length in lengths.items()}


def payload_bytes(content: RecordDict) -> int:
    """Bytes of the arrays of a message as sent."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def _encode_vectors(vectors: Mapping[str, Tensor]) -> ArrayRecord:
    return ArrayRecord({name: Array(vector.detach().cpu().numpy()) for name, vector in vectors.items()})


def _decode_vector(name: str, array: Array, length: int) -> Tensor:
    if array.dtype != "float32":
        raise ProtocolError("wrong-dtype", f"vector {name!r} is {str(array.dtype)[:20]}, but must be float32")
    if tuple(array.shape) != (length,):
        raise ProtocolError(
            "wrong-length", f"vector {name!r} has shape {str(tuple(array.shape))[:60]}, not ({length},)"
        )
    # The bytes are a NumPy file. Only one header is right, so it is compared and never parsed.
    header = _npy_header(length)
    if len(array.data) != len(header) + 4 * length or not array.data.startswith(header):
        raise ProtocolError("malformed", f"the bytes of vector {name!r} are not the {length} float32 values they claim")
    # A copy: the bytes of a message are read-only, and PyTorch has no read-only tensors.
    vector = torch.from_numpy(np.frombuffer(array.data, "<f4", offset=len(header)).copy())
    if not bool(torch.isfinite(vector).all()):
        raise ProtocolError("not-finite", f"vector {name!r} holds NaN or infinity")
    return vector


def _npy_header(length: int) -> bytes:
    """What NumPy writes before a float32 vector of this length."""
    stream = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()


def _evaluation_metrics(evaluation: Evaluation) -> dict[str, Any]:
    return {"correct": evaluation.correct, "total": evaluation.total, "loss": evaluation.loss}


def _decode_evaluation(metrics: MetricRecord) -> Evaluation:
    correct, total = _whole(metrics, "correct", minimum=0), _whole(metrics, "total", minimum=1)
    if correct > total:
        raise ProtocolError("malformed", f"correct is {correct}, more than the total of {total}")
    return Evaluation(correct, total, _finite(metrics, "loss"))


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
