"""Requests to trainers as the server makes them, those of a small simulation above all, and what comes back."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, RecordDict
from torch import Tensor

from client_app.history import History
from client_app.site import Site, simulated
from client_app.site.simulated import simulated_site
from client_app.trainer import Trainer, trainer_for
from common import protocol
from common.arrays import decode_arrays
from common.config import load_config
from common.errors import ProtocolError
from common.evaluation import Evaluation
from common.instructions import Instructions
from common.lineage import Point
from common.methods import find_client
from common.protocol import Result
from common.schema import Vector
from common.settings import LocalTraining, Settings

NUM_CLIENTS = 4
SHAPE, CLASSES = (3, 8, 8), 4  # of the images that `run_config` names

GD = "mh-pfedhn-gd"
WHOEVER = "whoever"  # a client key in requests that `answered` hands to a trainer as meant for its client
TOLD = {"method": "mh-pfedhn", "exchange": "personal", "client_key": WHOEVER, "run_name": "run"}
TOLD |= {"server_round": 1, "seed": 0, "line": "first"}
TRAINING = LocalTraining(local_epochs=1, batch_size=8, client_lr=0.02)  # what the requests below ask for
# Of all methods; what a method does not have is left out.
SETTINGS = vars(TRAINING) | {"temperature": 3.0, "distillation_coefficient": 0.5}

# What is sent to test weights, and at the end of a run. The round is one after those in which tests train, as a client
# loads what it kept in earlier ones.
TEST = {"exchange": "deploy", "server_round": 10, "tests": ("test",)}
FINISH = TEST | {"final": True}


def context_of(run_config, **node_config):
    return Context(run_id=1, node_id=5, node_config=node_config, state=RecordDict(), run_config=run_config)


def trainer(run_config, client=0, num_clients=NUM_CLIENTS) -> Trainer:
    return trainer_for(context_of(run_config, **{"partition-id": client, "num-partitions": num_clients}))


def site(run_config, client=0) -> Site:
    """The client's site as nobody has touched it yet, with a model of its own."""
    simulated._shared_model.cache_clear()
    return simulated_site(load_config(run_config), client, NUM_CLIENTS)


def theta_for(site, seed=1, scale=0.02):
    return random_theta(site.num_params, seed, scale)


def random_theta(size, seed=1, scale=0.02):
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


# Requests


def settings_of(method: str, changes: Mapping[str, object], defaults: Mapping[str, object] = SETTINGS) -> Settings:
    """The settings of a method's client half: `changes`, which it must have, over those of `defaults` that it has."""
    own = find_client(method).Settings
    has = {field.name for field in fields(own)}
    return own(**({name: value for name, value in defaults.items() if name in has} | changes))


def told(**changes) -> Instructions:
    """What the server says in an exchange. Of what comes back it takes delta in the wire form `upload`, if any."""
    values = TOLD | changes
    values.setdefault("deploys", values["exchange"] in ("personal", "deploy"))
    trains = values["exchange"] in ("personal", "global_step") and values["method"] != "local"
    values.setdefault("compress", ("delta",) if trains else ())
    return Instructions(**values)


def request(theta: Tensor | None, teacher_round: int = 0, defaults=SETTINGS, **changes) -> RecordDict:
    """A request; `changes` are fields of its instructions, or settings of the method."""
    names = {field.name for field in fields(Instructions)}
    instructions = told(**{name: value for name, value in changes.items() if name in names})
    rest = {name: value for name, value in changes.items() if name not in names}
    arrays = {} if theta is None else {"theta": theta}
    if (instructions.method, instructions.exchange) == (GD, "personal"):
        arrays["teacher-round"] = torch.tensor([teacher_round])
    return protocol.encode_request(instructions, settings_of(instructions.method, rest, defaults), arrays)


def message_type_of(content: RecordDict) -> str:
    return protocol.DEPLOY if content["instructions"]["exchange"] == "deploy" else protocol.TRAIN


def handled(trainer: Trainer, content: RecordDict) -> RecordDict:
    """The reply to a request."""
    return answered(trainer, message_type_of(content), content)


def answered(trainer: Trainer, message_type: str, content: RecordDict) -> RecordDict:
    """The reply to a message, which is for the trainer's own client unless it names another.

    The server has taken what the client brought before, unless the message says how far.
    """
    told = dict(content.config_records.get("instructions", {}))
    if told.get("client-key") == WHOEVER:
        told["client-key"] = trainer._site_of(told["seed"]).key
        here = Point(told["run-name"], told["line"], told["server-round"])
        if "seen" not in told and (seen := taken(trainer._folder_of, here, map(Point.parse, told.get("lineage", [])))):
            told["seen"] = str(seen)
        content = RecordDict({**content, "instructions": ConfigRecord(told)})
    return trainer.answer(message_type, content)


def taken(folder_of: Callable[[str], Path], here: Point, lineage: Iterable[Point] = ()) -> Point | None:
    """The last round before this one in which a client took part, where the server has taken all that it brought."""
    for end in reversed([*lineage, replace(here, round=here.round - 1)]):
        try:
            rounds = History(folder_of(end.run_name))._lines.get(end.line, {})
        except ProtocolError:  # a test has damaged it
            return None
        if found := max((number for number in rounds if number <= end.round), default=0):
            return replace(end, round=found)
    return None


def opened(content: RecordDict, reply: RecordDict, size: int | None) -> tuple[Result, Tensor | None]:
    """What is in the reply to a request: the result, and delta [size]; None without arrays."""
    result = protocol.decode_result(reply)
    if "arrays" not in reply:
        return result, None
    assert size is not None
    method = content["instructions"]["method"]
    form = protocol.upload_form(protocol.decode_settings(content, find_client(method).Settings))
    return result, decode_arrays(reply, {"delta": Vector(size)}, form)["delta"]


def ask_trainer(trainer: Trainer, theta: Tensor | None = None, **changes) -> tuple[Result, Tensor | None]:
    content = request(theta, **changes)
    return opened(content, handled(trainer, content), None if theta is None else len(theta))


def ask(run_config, client=0, theta=None, **changes):
    """One personal exchange: the result and delta, which is None for local."""
    return ask_trainer(trainer(run_config, client), theta, **changes)


def ask_globally(run_config, client=0, theta=None, **changes):
    """One global exchange."""
    return ask(run_config, client, theta, **({"method": GD, "exchange": "global_step"} | changes))


def ask_to_keep_teacher(run_config, client=0, theta=None, **changes):
    """The exchange that only hands out a teacher; the reply as it is."""
    content = request(theta, method=GD, exchange="keep_teacher", **changes)
    return handled(trainer(run_config, client), content)


def ask_to_evaluate(run_config, client=0, theta=None, **changes) -> Evaluation:
    return _evaluation(run_config, client, theta, TEST | changes)


def ask_to_finish(run_config, client=0, theta=None, **changes) -> Evaluation:
    return _evaluation(run_config, client, theta, FINISH | changes)


def _evaluation(run_config, client, theta, changes) -> Evaluation:
    content = request(theta, **changes)
    reply = handled(trainer(run_config, client), content)
    assert set(reply) == {"metrics"}
    assert set(reply["metrics"]) == {"test-correct", "test-total", "test-loss"}
    return protocol.decode_result(reply).evaluations["test"]


# Registration


def greeting(*facts: str, method="mh-pfedhn", seed=0, **settings) -> RecordDict:
    """The server's question, which asks for these facts beyond K."""
    return protocol.encode_greeting(method, "run", seed, settings_of(method, settings), facts)


ALWAYS_TOLD = {"client-key", "num-params", "train-samples", "test-samples"}


def registered(trainer: Trainer, *facts: str, **changes) -> dict[str, int | str]:
    """All that a client answers."""
    reply = trainer.answer(protocol.REGISTER, greeting(*facts, **changes))
    assert set(reply) == {"registration"}
    return dict(reply["registration"])


# What a client keeps


def stored(run_config, client=0, run="run"):
    return load_config(run_config).results_path / run / "clients" / str(client)


def kept(run_config, client=0, name="kept", run="run"):
    """The tensors that the client has kept last under this name."""
    return torch.load(newest(stored(run_config, client, run), name), weights_only=True)["state"]


def newest(folder: Path, name="kept") -> Path:
    """The file of what was kept last under this name."""
    return max(folder.glob(f"{name}.[0-9]*.pt"))
