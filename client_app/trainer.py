"""The trainer: holds a site's model and data between messages and does what a message asks.

In simulation it lives in the worker process and plays every client whose messages come there.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from flwr.app import ConfigRecordValues, Context, RecordDict
from torch import nn

from client_app.methods import METHODS, distill
from client_app.methods.base import Task, Vectors
from client_app.site import Site, simulated_site
from client_app.store import ClientStore
from client_app.training import all_finite, evaluate
from common import protocol
from common.codec import decode, encode, lossless
from common.config import Config, load_config
from common.errors import ProtocolError, UserError
from common.protocol import Instructions, Registration, TrainingResult


class Trainer:
    """One site and the requests that it answers. All methods raise ProtocolError for a request that is not right."""

    def __init__(self, site: Site, config: Config) -> None:
        self._site = site
        self._config = config

    def register(self, content: RecordDict) -> RecordDict:
        """Answer with K and the client key, all that the server learns about this site."""
        global_model = protocol.decode_greeting(content)
        site = self._site
        global_num_params = 0
        if global_model and site.build_global:
            global_num_params = site.global_model(global_model).parameters.size
        return protocol.encode_registration(
            Registration(site.key, site.personal.parameters.size, global_num_params, site.group)
        )

    def train(self, content: RecordDict) -> RecordDict:
        """Load what came, test it when asked, train, and answer with counts, losses and the method's vectors."""
        instructions = self._instructions(content)
        if instructions.local_epochs == 0:
            raise ProtocolError("malformed", "local-epochs is 0, but must be at least 1 in a personal exchange")
        method = METHODS[instructions.method]
        task = self._task(content, instructions, method.incoming(self._site))
        method.load(task)
        evaluation = evaluate(self._model, self._site.test) if instructions.evaluate else None
        loss, vectors = method.train(task)
        return self._training_result(task, TrainingResult(len(self._site.train), loss, evaluation), vectors, "personal")

    def train_global(self, content: RecordDict) -> RecordDict:
        """Train the global model of MH-pFedHNG and MH-pFedHNGD, and answer with counts, loss and its delta."""
        instructions = self._instructions(content)
        if METHODS[instructions.method] is not distill:
            raise ProtocolError("malformed", f"method {instructions.method!r} has no global exchange")
        task = self._task(content, instructions, distill.incoming_global(self._site, instructions.global_model))
        loss, vectors = distill.train_global(task)
        return self._training_result(task, TrainingResult(len(self._site.train), loss, None), vectors, "global")

    def evaluate(self, content: RecordDict) -> RecordDict:
        """Load what came and answer with the result of testing it."""
        self._load_personal(content)
        return protocol.encode_evaluation(evaluate(self._model, self._site.test))

    def finish(self, content: RecordDict) -> RecordDict:
        """Keep the final personal model as a state_dict in the site's store, and answer with its test."""
        task = self._load_personal(content)
        task.store.save("personal-model", dict(self._model.state_dict()))
        return protocol.encode_evaluation(evaluate(self._model, self._site.test))

    @property
    def _model(self) -> nn.Module:
        return self._site.personal.model

    def _load_personal(self, content: RecordDict) -> Task:
        instructions = self._instructions(content)
        method = METHODS[instructions.method]
        task = self._task(content, instructions, method.incoming(self._site))
        method.load(task)
        return task

    def _instructions(self, content: RecordDict) -> Instructions:
        instructions = protocol.decode_instructions(content)
        if instructions.method not in METHODS:
            known = ", ".join(METHODS)
            raise ProtocolError("malformed", f"method is {instructions.method!r}, but this client knows {known}")
        return instructions

    def _task(self, content: RecordDict, instructions: Instructions, incoming: Mapping[str, int]) -> Task:
        vectors = protocol.decode_vectors(content, incoming, instructions.download)
        previous = self._folder(instructions.previous_run) if instructions.previous_run else None
        store = ClientStore(self._folder(instructions.run_name), previous)
        return Task(self._site, store, instructions, vectors)

    def _folder(self, run_name: str) -> Path:
        return self._config.results_path / run_name / "clients" / self._site.key

    def _training_result(self, task: Task, result: TrainingResult, vectors: Vectors, exchange: str) -> RecordDict:
        """The reply in the wire form that the server asked for, and with what earlier ones had to leave out."""
        told = task.instructions
        if told.error_feedback and not lossless(told.upload) and all_finite(vectors.values()):
            kept_as = f"{exchange}-residual"
            residual = task.store.load(kept_as)
            vectors = {name: vector.cpu() + residual.get(name, 0.0) for name, vector in vectors.items()}
            form = told.upload, told.topk_fraction
            arriving = {name: decode(encode(vector, *form), *form, len(vector)) for name, vector in vectors.items()}
            task.store.save(kept_as, {name: vector - arriving[name] for name, vector in vectors.items()})
        return protocol.encode_training_result(result, vectors, told.upload, told.topk_fraction)


def trainer_for(context: Context) -> Trainer:
    """The trainer of the site that this node plays; made once a process. Raises UserError when it is not set up."""
    node = dict(context.node_config)
    if "partition-id" not in node or "num-partitions" not in node:
        raise UserError(
            "This SuperNode does not say which client it plays: start it with "
            "--node-config 'partition-id=0 num-partitions=10', numbers starting at 0."
        )
    partition_id, num_partitions = int(node["partition-id"]), int(node["num-partitions"])
    if not 0 <= partition_id < num_partitions:
        raise UserError(
            f"partition-id is {partition_id}, but must be from 0 to {num_partitions - 1} (num-partitions - 1)."
        )
    return _trainer(tuple(sorted(context.run_config.items())), partition_id, num_partitions)


@cache
def _trainer(run_config: tuple[tuple[str, ConfigRecordValues], ...], partition_id: int, num_partitions: int) -> Trainer:
    config = load_config(dict(run_config), origin="the run config")
    return Trainer(simulated_site(config, partition_id, num_partitions), config)
