"""The trainer: has a site's model and data and does what a message asks.

In simulation one is made for every message, in a worker process that plays any number of clients; in deployment it
lives between messages, in a process of its own (`resident/`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from flwr.app import ConfigRecordValues, Context, RecordDict

from client_app.methods import METHODS, distill
from client_app.methods.base import Task, Vectors
from client_app.privacy import Ledger, secret_normal, seeded_normal
from client_app.site import Site
from client_app.site.simulated import simulated_site
from client_app.store import PERSONAL_MODEL, ClientStore
from client_app.training import all_finite, evaluate
from common import protocol
from common.codec import decode, encode, lossless
from common.config import Config, load_config
from common.errors import ProtocolError, UserError
from common.evaluation import Evaluation
from common.protocol import Instructions, PrivacySpent, Registration, TrainingResult


class Trainer:
    """One site and the requests that it answers. All methods raise ProtocolError for a request that is not right.

    Parameters
    ----------
    site_of: the site in a run of this seed, called for every request; without a seed, when only sizes matter.
    folder_of: where the site keeps its files of the run of this name.
    """

    def __init__(self, site_of: Callable[[int | None], Site], folder_of: Callable[[str], Path]) -> None:
        self._site_of = site_of
        self._folder_of = folder_of

    def answer(self, message_type: str, content: RecordDict) -> RecordDict:
        """Answer a message of one of the protocol's types."""
        if message_type not in _ANSWERS:
            raise ProtocolError("malformed", f"message type is {message_type!r}, but must be one of {list(_ANSWERS)}")
        return _ANSWERS[message_type](self, content)

    def register(self, content: RecordDict) -> RecordDict:
        """Answer with K and the client key, all that the server learns about this site."""
        global_model = protocol.decode_greeting(content)
        site = self._site_of(None)
        global_num_params = 0
        if global_model and site.deploys_global:
            global_num_params = site.global_model(global_model).parameters.size
        return protocol.encode_registration(Registration(site.key, site.num_params, global_num_params, site.group))

    def train(self, content: RecordDict) -> RecordDict:
        """Load what came, test it when asked, train, and answer with counts, losses and the method's vectors."""
        instructions = self._instructions(content)
        if instructions.local_epochs == 0:
            raise ProtocolError("malformed", "local-epochs is 0, but must be at least 1 in a personal exchange")
        method = METHODS[instructions.method]
        site = self._site_of(instructions.seed)
        incoming = method.incoming(site)
        task = self._task(site, content, instructions, incoming)
        if incoming:
            self._check_budget(task)  # for a method that gets vectors sends some back
        method.load(task)
        evaluation = _test(site) if instructions.evaluate else None
        loss, vectors = method.train(task)
        return self._training_result(task, TrainingResult(len(site.train), loss, evaluation), vectors, "personal")

    def train_global(self, content: RecordDict) -> RecordDict:
        """Train the global model of MH-pFedHNG and MH-pFedHNGD, and answer with counts, loss and its delta."""
        instructions = self._instructions(content)
        if METHODS[instructions.method] is not distill:
            raise ProtocolError("malformed", f"method {instructions.method!r} has no global exchange")
        site = self._site_of(instructions.seed)
        task = self._task(site, content, instructions, distill.incoming_global(site, instructions.global_model))
        if instructions.local_epochs > 0:
            self._check_budget(task)
        loss, vectors = distill.train_global(task)
        return self._training_result(task, TrainingResult(len(site.train), loss, None), vectors, "global")

    def evaluate(self, content: RecordDict) -> RecordDict:
        """Load what came and answer with the result of testing it."""
        return protocol.encode_evaluation(_test(self._load_personal(content).site))

    def finish(self, content: RecordDict) -> RecordDict:
        """Keep the final personal model as a state_dict in the site's store, and answer with its test."""
        task = self._load_personal(content)
        task.store.export(PERSONAL_MODEL, dict(task.site.personal.model.state_dict()))
        return protocol.encode_evaluation(_test(task.site))

    def _load_personal(self, content: RecordDict) -> Task:
        instructions = self._instructions(content)
        method = METHODS[instructions.method]
        site = self._site_of(instructions.seed)
        task = self._task(site, content, instructions, method.incoming(site))
        method.load(task)
        return task

    def _instructions(self, content: RecordDict) -> Instructions:
        instructions = protocol.decode_instructions(content)
        if instructions.method not in METHODS:
            known = ", ".join(METHODS)
            raise ProtocolError("malformed", f"method is {instructions.method!r}, but this client knows {known}")
        return instructions

    def _task(self, site: Site, content: RecordDict, instructions: Instructions, incoming: Mapping[str, int]) -> Task:
        vectors = protocol.decode_vectors(content, incoming, instructions.download)
        previous = self._folder_of(instructions.previous_run) if instructions.previous_run else None
        folder = self._folder_of(instructions.run_name)
        store = ClientStore(folder, instructions.server_round, instructions.checkpoint_round, previous)
        return Task(site, store, instructions, vectors)

    def _training_result(self, task: Task, result: TrainingResult, vectors: Vectors, exchange: str) -> RecordDict:
        """The reply: noised where the site protects its uploads, in the wire form that the server asked for."""
        if task.site.privacy and vectors:
            vectors, spent = self._protected(task, vectors, exchange)
            result = replace(result, privacy=spent)
        return _encode(task, result, vectors, exchange)

    def _protected(self, task: Task, vectors: Vectors, exchange: str) -> tuple[Vectors, PrivacySpent]:
        site, told = task.site, task.instructions
        assert site.privacy is not None
        generator = site.generator(told.seed, told.server_round, f"/noise/{exchange}")
        normal = secret_normal if site.privacy.is_secret else seeded_normal(generator)
        ledger = self._ledger(task)
        noised = {}
        for name, vector in vectors.items():
            noised[name] = site.privacy.protect(vector, normal)
            spent = ledger.add(site.privacy)
        return noised, spent

    def _check_budget(self, task: Task) -> None:
        if task.site.privacy:
            self._ledger(task).check(task.site.privacy)

    def _ledger(self, task: Task) -> Ledger:
        assert task.site.privacy is not None
        return Ledger(task.site.privacy.ledger or self._folder_of(task.instructions.run_name) / "privacy.json")


_ANSWERS: dict[str, Callable[[Trainer, RecordDict], RecordDict]] = {
    protocol.REGISTER: Trainer.register,
    protocol.PERSONAL: Trainer.train,
    protocol.GLOBAL: Trainer.train_global,
    protocol.FINISH: Trainer.finish,
    protocol.EVALUATE: Trainer.evaluate,
}


def _test(site: Site) -> Evaluation:
    """Test the personal model as it is."""
    return evaluate(site.personal.model, site.test, site.loss, site.correct)


def _encode(task: Task, result: TrainingResult, vectors: Vectors, exchange: str) -> RecordDict:
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
    """The trainer of the client that this node plays, for one message. Raises UserError when it is not set up."""
    node = dict(context.node_config)
    if "partition-id" not in node or "num-partitions" not in node:
        raise UserError(
            "This SuperNode does not say which client it plays: start it with "
            "--node-config 'partition-id=0 num-partitions=10', numbers starting at 0, or with trainer-socket and "
            "trainer-secret of a site's own trainer."
        )
    partition_id, num_partitions = int(node["partition-id"]), int(node["num-partitions"])
    if not 0 <= partition_id < num_partitions:
        raise UserError(
            f"partition-id is {partition_id}, but must be from 0 to {num_partitions - 1} (num-partitions - 1)."
        )
    config = _config(tuple(sorted(context.run_config.items())))
    site = simulated_site(config, partition_id, num_partitions)
    if not site.is_among(config.gd_fraction, config.seed, "gd-fraction"):
        site = replace(site, build_global=None)
    if config.heads != "by-architecture":
        site = replace(site, group="")
    return Trainer(lambda seed: site, lambda run_name: config.results_path / run_name / "clients" / site.key)


@lru_cache(maxsize=1)
def _config(run_config: tuple[tuple[str, ConfigRecordValues], ...]) -> Config:
    return load_config(dict(run_config), origin="the run config")
