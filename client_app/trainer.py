"""The trainer: holds a site's model and data between messages and does what a message asks.

In simulation it lives in the worker process and plays every client whose messages come there.
"""

from functools import cache

from flwr.app import ConfigRecordValues, Context, RecordDict

from client_app.methods import METHODS
from client_app.methods.base import Task
from client_app.site import Site, simulated_site
from client_app.store import ClientStore
from client_app.training import evaluate
from common import protocol
from common.config import Config, load_config
from common.errors import UserError
from common.protocol import ProtocolError, Registration, TrainingResult


class Trainer:
    """One site and the requests that it answers. All methods raise ProtocolError for a request that is not right."""

    def __init__(self, site: Site, config: Config) -> None:
        self._site = site
        self._config = config

    def register(self, content: RecordDict) -> RecordDict:
        """Answer with K and the client key, all that the server learns about this site."""
        protocol.check_greeting(content)
        return protocol.encode_registration(Registration(self._site.key, self._site.parameters.size))

    def train(self, content: RecordDict) -> RecordDict:
        """Load what came, test it when asked, train, and answer with counts, losses and the method's vectors."""
        task = self._task(content)
        method = METHODS[task.instructions.method]
        method.load(task)
        evaluation = evaluate(self._site.model, self._site.test) if task.instructions.evaluate else None
        loss, vectors = method.train(task)
        return protocol.encode_training_result(TrainingResult(len(self._site.train), loss, evaluation), vectors)

    def evaluate(self, content: RecordDict) -> RecordDict:
        """Load what came and answer with the result of testing it."""
        task = self._task(content)
        METHODS[task.instructions.method].load(task)
        return protocol.encode_evaluation(evaluate(self._site.model, self._site.test))

    def finish(self, content: RecordDict) -> RecordDict:
        """Keep the final personal model as a state_dict in the site's store, and answer with its test."""
        task = self._task(content)
        METHODS[task.instructions.method].load(task)
        task.store.save("personal-model", dict(self._site.model.state_dict()))
        return protocol.encode_evaluation(evaluate(self._site.model, self._site.test))

    def _task(self, content: RecordDict) -> Task:
        instructions = protocol.decode_instructions(content)
        if instructions.method not in METHODS:
            known = ", ".join(METHODS)
            raise ProtocolError("malformed", f"method is {instructions.method!r}, but this client knows {known}")
        vectors = protocol.decode_vectors(content, METHODS[instructions.method].incoming(self._site))
        store = ClientStore(self._config.results_path / instructions.run_name / "clients" / self._site.key)
        return Task(self._site, store, instructions, vectors)


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
