"""The trainer: holds a site's model and data between messages and does what a message asks.

In simulation it lives in the worker process and plays every client whose messages come there; in deployment it lives
in a process of its own (`client_app/resident`). What a method does in an exchange is its client half's; everything
around it is here: the checks, the tests, protection and wire form of what is sent.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context, RecordDict

from client_app.methods.base import DEPLOY, ClientMethod, Outcome, Task
from client_app.personal import about
from client_app.privacy import Ledger, secret_normal, seeded_normal
from client_app.site import Site
from client_app.site.simulated import simulated_site
from client_app.store import PERSONAL_MODEL, ClientStore
from client_app.training import all_finite
from common import protocol
from common.arrays import Arrays, decode_arrays, is_vector
from common.codec import decode, encode, lossless
from common.config import Config, load_run_config
from common.config.batch import is_batch, run_configs
from common.errors import ProtocolError, UserError
from common.evaluation import AFTER_TRAINING, TEST, VALIDATION, Evaluation
from common.instructions import Instructions
from common.methods import built_in, find_client
from common.protocol import PrivacySpent, Registration, Result
from common.refusal import ANOTHER_CLIENT
from common.settings import Compressed


class Trainer:
    """One site and the requests that it answers. All methods raise ProtocolError for a request that is not right.

    Parameters
    ----------
    site_of: the site in a run of this seed, called for every request.
    folder_of: where the site keeps its files of the run of this name.
    """

    def __init__(self, site_of: Callable[[int], Site], folder_of: Callable[[str], Path]) -> None:
        self._site_of = site_of
        self._folder_of = folder_of

    def answer(self, message_type: str, content: RecordDict) -> RecordDict:
        """Answer a message of one of the protocol's types."""
        if message_type == protocol.REGISTER:
            return self.register(content)
        if message_type in (protocol.TRAIN, protocol.DEPLOY):
            return self.exchange(content)
        known = [protocol.REGISTER, protocol.TRAIN, protocol.DEPLOY]
        raise ProtocolError("malformed", f"message type is {message_type[:40]!r}, but must be one of {known}")

    def register(self, content: RecordDict) -> RecordDict:
        """Answer with K, client key, numbers of samples, and what this client gives of the facts that are asked for."""
        greeting = protocol.decode_greeting(content)
        site = self._site_of(greeting.seed)
        half = _half(greeting.method, site)
        told = half(protocol.decode_settings(greeting.settings, half.Settings)).facts(site)
        facts = {name: value for name, value in told.items() if name in greeting.facts}
        return protocol.encode_registration(
            Registration(site.key, site.num_params, len(site.train), len(site.test), facts)
        )

    def exchange(self, content: RecordDict) -> RecordDict:
        """Load and test what is deployed, do what the method does in this exchange, and answer with what it brings."""
        instructions = protocol.decode_instructions(content)
        site = self._site_of(instructions.seed)
        if instructions.client_key != site.key:
            raise ProtocolError(ANOTHER_CLIENT, "the exchange is for a client with another key than this one has now")
        half = _half(instructions.method, site)
        method = half(protocol.decode_settings(content, half.Settings))
        functions = half.exchanges()
        if instructions.exchange != DEPLOY and instructions.exchange not in functions:
            raise ProtocolError(
                "malformed",
                f"method {instructions.method!r} has no exchange {instructions.exchange!r} here, only "
                f"{', '.join([DEPLOY, *functions])}",
            )
        schema = method.receives(instructions.exchange, site)
        arrays = decode_arrays(content, schema, protocol.download_form(method.settings))
        task = Task(site, self._store(instructions), instructions, arrays)
        function = functions.get(instructions.exchange)
        if function and instructions.compress:
            self._check_budget(task)  # what the server waits for could not be sent: do not even train
        evaluations = self._deploy(method, task) if instructions.deploys else {}
        outcome = function(method, task) if function else Outcome()
        if not isinstance(outcome, Outcome):
            kind = type(outcome).__name__
            raise UserError(f"{half.__name__}.{instructions.exchange} returned a {kind}, but must return an Outcome.")
        counted = len(site.train) if function else None
        reply = self._reply(method, task, Result(counted, outcome.loss, evaluations), outcome.arrays)
        if function:
            task.store.commit()
        return reply

    def _deploy(self, method: ClientMethod, task: Task) -> dict[str, Evaluation]:
        """Have the model loaded; keep it where the run is over, make those of the tests asked for that can be made."""
        method.load(task)
        site, asked = task.site, task.instructions.tests
        if task.instructions.final:
            task.store.export(PERSONAL_MODEL, dict(site.personal.model.state_dict()))
        found: dict[str, Evaluation | None] = {}
        if TEST in asked:
            found[TEST] = method.test(task)
        if VALIDATION in asked and site.validation is not None:
            found[VALIDATION] = method.test(replace(task, site=replace(site, test=site.validation)))
        # Where what is sent is noised, nobody is told how a model does that was trained without noise.
        if AFTER_TRAINING in asked and site.privacy is None:
            found[AFTER_TRAINING] = _test_after_training(method, task)
        if task.instructions.final:
            task.store.describe(PERSONAL_MODEL, about(site, task.instructions, found.get(TEST)))
        return {name: evaluation for name, evaluation in found.items() if evaluation}

    def _store(self, instructions: Instructions) -> ClientStore:
        store = ClientStore(self._folder_of, instructions)
        store.check()
        return store

    def _reply(self, method: ClientMethod, task: Task, result: Result, arrays: Arrays) -> RecordDict:
        """Noised where the site protects what it sends, in the wire form that the server asked for."""
        if task.site.privacy and arrays:
            arrays, spent = self._protected(task, arrays)
            result = replace(result, privacy=spent)
        vectors = {name for name, array in arrays.items() if is_vector(array)}  # all that a codec can take
        compress = [name for name in task.instructions.compress if name in vectors]
        arrays = _with_feedback(method, task, arrays, compress)
        return protocol.encode_result(result, arrays, protocol.upload_form(method.settings), compress)

    def _protected(self, task: Task, arrays: Arrays) -> tuple[Arrays, PrivacySpent]:
        privacy = task.site.privacy
        assert privacy is not None
        if whole := [name for name, array in arrays.items() if not array.is_floating_point()]:
            raise ProtocolError(
                "not-private",
                f"this client adds noise to what it sends, which it cannot do with the whole numbers {whole}",
            )
        generator = task.generator(f"/noise/{task.instructions.exchange}")
        normal = secret_normal if privacy.is_secret else seeded_normal(generator)
        spent = self._ledger(task).charge(privacy, len(arrays))
        return {
            name: privacy.protect(array.flatten(), normal).view(array.shape) for name, array in arrays.items()
        }, spent

    def _check_budget(self, task: Task) -> None:
        if task.site.privacy:
            self._ledger(task).check(task.site.privacy)

    def _ledger(self, task: Task) -> Ledger:
        assert task.site.privacy is not None
        return Ledger(task.site.privacy.ledger or self._folder_of(task.instructions.run_name) / "privacy.json")


def _test_after_training(method: ClientMethod, task: Task) -> Evaluation | None:
    """Test what one local epoch makes of the weights that are loaded, and load them again; None where it diverged."""
    model = task.site.personal.model
    try:
        method.fine_tune(task)
        evaluation = method.test(task)
    except Exception:
        if all_finite(model.state_dict().values()):
            raise
        return None  # a site's own code may raise where it meets NaN
    finally:
        method.load(task)
    return evaluation if abs(evaluation.loss) <= protocol.MOST else None  # not with a loss of NaN either


def _half(name: str, site: Site) -> type[ClientMethod]:
    """The client half that the server names. Raises ProtocolError for one that this site does not know or allow."""
    if ":" in name and name not in site.foreign_methods:
        raise ProtocolError(
            "unknown-method", f"method is {name!r}, which is from outside, and this site does not list it under methods"
        )
    if ":" not in name and name not in built_in():
        raise ProtocolError("unknown-method", f"method is {name!r}, but this client knows {', '.join(built_in())}")
    half: type[ClientMethod] = find_client(name)
    return half


def _with_feedback(method: ClientMethod, task: Task, arrays: Arrays, compress: list[str]) -> Arrays:
    """With `error-feedback`, the arrays and what earlier replies had to leave out of them; the rest is kept here."""
    settings = method.settings
    if not isinstance(settings, Compressed) or not settings.error_feedback or lossless(settings.upload):
        return arrays
    chosen = {name: arrays[name].cpu() for name in compress}
    if not chosen or not all_finite(arrays.values()):  # the server will refuse all of them
        return arrays
    kept_as = f"{task.instructions.exchange}-residual"
    residual = task.store.load(kept_as)
    chosen = {name: vector + residual.get(name, torch.zeros(())) for name, vector in chosen.items()}
    form = settings.upload, settings.topk_fraction
    arriving = {name: decode(encode(vector, *form), *form, len(vector)) for name, vector in chosen.items()}
    task.store.save(kept_as, {name: vector - arriving[name] for name, vector in chosen.items()})
    return {**arrays, **chosen}


def trainer_for(context: Context, run_name: str = "") -> Trainer:
    """The trainer of the client that this node plays, for one message of the run of this name.

    Raises UserError when it is not set up.
    """
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
    config = _config(tuple(sorted(_run_config(context, run_name).items())))
    site = simulated_site(config, partition_id, num_partitions)
    return Trainer(lambda seed: site, lambda run_name: config.results_path / run_name / "clients" / site.key)


def _run_config(context: Context, run_name: str) -> Mapping[str, object]:
    """The settings of the run that a message belongs to, where one simulation plays several."""
    if not is_batch(context.run_config):
        return context.run_config
    runs = run_configs(context.run_config)
    if run_name not in runs:
        raise ProtocolError("malformed", f"the message is of run {run_name[:100]!r}, which this simulation has not")
    return runs[run_name]


@lru_cache(maxsize=1)
def _config(run_config: tuple[tuple[str, object], ...]) -> Config:
    return load_run_config(dict(run_config))
