"""Runs of a few rounds in one process: scripted clients, ways to misbehave, and the same hypernetwork moved by hand."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Result
from in_process import InProcessGrid

from client_app.app import app as honest
from client_app.site.simulated import simulated_site
from client_app.training import evaluate
from common import methods, protocol
from common.arrays import encode_arrays
from common.config import RUN_OPTIONS, Config, load_config
from common.evaluation import AFTER_TRAINING, TEST, VALIDATION, Evaluation
from common.protocol import DELTA, Registration
from server_app.hypernetwork import HyperNetwork
from server_app.methods.base import Method
from server_app.methods.mh_pfedhn import HyperNetworkSettings, MHpFedHN
from server_app.optim import HyperNetworkOptimizer
from server_app.results import tracking
from server_app.rounds.round_trip import RoundTrip
from server_app.strategy import FederationStrategy

NUM_CLIENTS = 4
SIZES = {"0": 50, "1": 90, "2": 50, "3": 20}  # K of the scripted clients
NUM_TEST = 100  # their test samples
HEADER_BYTES = 128  # of NumPy's file format, for a vector

# Kinds of requests: registration, exchanges of a round by their names, and the two occasions of the exchange "deploy".
REGISTER, PERSONAL, GLOBAL, KEEP_TEACHER = "register", "personal", "global_step", "keep_teacher"
EVALUATE, FINISH = "evaluate", "finish"


def kind_of(request):
    """What a message of the server's asks for."""
    if request.metadata.message_type == protocol.REGISTER:
        return REGISTER
    instructions = told(request)
    if instructions.exchange == "deploy":
        return FINISH if instructions.final else EVALUATE
    return instructions.exchange


def told(request):
    """The instructions in a message of the server's."""
    return protocol.decode_instructions(request.content)


def settings_in(request):
    """The method's settings in a message of the server's, by their keys."""
    return dict(request.content["settings"])


def key_of(node):
    return str(node - 100)


def round_of(message):
    return int(message.metadata.group_id or 0)


def array_of(message, name):
    return torch.from_numpy(message.content["arrays"][name].numpy().copy())


def answered_by(grid, reply):
    """The request that a reply answers."""
    (request,) = [each for each in grid.sent if each.metadata.message_id == reply.metadata.reply_to_message_id]
    return request


# Runs -------------------------------------------------------------------------------------------------------------


@dataclass
class Played:
    """A run that is over."""

    config: Config
    grid: InProcessGrid
    strategy: FederationStrategy
    result: Result
    folder: Path

    @property
    def method(self):
        return self.strategy.method

    @property
    def clients(self):
        return self.strategy.membership.registry.clients

    @property
    def lines(self):
        return lines_of(self.folder)

    def sent(self, kind=PERSONAL, server_round=None):
        """(client, message) in the order of sending."""
        return [
            (key_of(message.metadata.dst_node_id), message)
            for message in self.grid.sent
            if kind_of(message) == kind and server_round in (None, round_of(message))
        ]

    def received(self, kind=PERSONAL, server_round=None):
        """(client, message) in the order of arrival, errors as well."""
        requests = {message.metadata.message_id: message for message in self.grid.sent}
        pairs = [(requests[reply.metadata.reply_to_message_id], reply) for reply in self.grid.received]
        return [
            (key_of(request.metadata.dst_node_id), reply)
            for request, reply in pairs
            if kind_of(request) == kind and server_round in (None, round_of(request))
        ]

    def trained(self, server_round):
        """Keys of the clients that were asked to train, in order."""
        return [key for key, _ in self.sent(server_round=server_round)]

    def deltas(self, server_round):
        """What the clients brought back, in the order of arrival."""
        return {
            key: array_of(message, DELTA)
            for key, message in self.received(server_round=server_round)
            if message.has_content()
        }


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(lines):
    return [{key: value for key, value in line.items() if "seconds" not in key} for line in lines]


def settings_for(settings, **overrides):
    """Settings with these overrides (keys with underscores), less those that another method than theirs has."""
    given = {key.replace("_", "-"): value for key, value in overrides.items()}
    together = settings | given
    having = RUN_OPTIONS.keys() | methods.find(together["method"]).options.keys()
    return {key: value for key, value in together.items() if key in having or key in given}


def play(run_config, answer=honest, hold=None, grid=None, num_clients=NUM_CLIENTS, **overrides) -> Played:
    """Run a federation to its end; overrides are config keys with underscores. Scripted clients bring their number."""
    settings = settings_for(run_config, **overrides)
    num_clients = len(answer.sizes) if isinstance(answer, Scripted) else num_clients
    return start(load_config(settings), grid or InProcessGrid(answer, num_clients, settings, hold))


def strategy_for(
    config, method: Method | None = None, nodes_may_come=False, start=None, bindings=None
) -> FederationStrategy:
    """The strategy of a run, with a method of the test's own where one is given, and the checkpoint it goes on from."""
    folder = config.results_path / config.run_name
    resume_after = start.server_round - 1 if start else None
    tracker = tracking.RunTracker(folder, config.to_dict(), num_rounds=config.num_rounds, resume_after=resume_after)
    return FederationStrategy(
        config,
        method or config.halves.server(config),
        tracker,
        lambda client: f"K = {client.num_params}",
        nodes_may_come=nodes_may_come,
        start=start,
        bindings=bindings,
    )


def start(config, grid, strategy=None) -> Played:
    strategy = strategy or strategy_for(config)
    result = strategy.start(grid, ArrayRecord(), config.num_rounds, timeout=config.deadline)
    return Played(config, grid, strategy, result, config.results_path / config.run_name)


def cohorts(played):
    return [sorted(played.trained(line["round"])) for line in played.lines]


def failures(played):
    return [line["failures"] for line in played.lines]


def losses(played):
    return [line["client-train-loss"] for line in played.lines]


def sizes_of(played):
    return {client.key: client.num_params for client in played.clients}


class ChangingGrid(InProcessGrid):
    """Other nodes are connected in each round; those of the last one stay."""

    def __init__(self, answer, connected) -> None:
        super().__init__(answer, NUM_CLIENTS)
        self.rounds = list(connected)

    def get_node_ids(self):
        begun = {round_of(each) for each in self.sent if kind_of(each) == PERSONAL}
        self.connected = self.rounds[min(len(begun), len(self.rounds) - 1)]
        return super().get_node_ids()


class Arriving(InProcessGrid):
    """Node 100 + i is connected while `connects[i]`, a function of the time, says so."""

    def __init__(self, answer, clock, connects):
        super().__init__(answer, NUM_CLIENTS)
        self.clock, self.connects = clock, connects

    def get_node_ids(self):
        self.connected = {100 + i for i, connects in enumerate(self.connects) if connects(self.clock.now - 1000)}
        return super().get_node_ids()


def at(*seconds):
    return [lambda now, second=second: now >= second for second in seconds]


# Clients ----------------------------------------------------------------------------------------------------------


class Scripted:
    """Clients without models: client i has SIZES[i] parameters and 10 (i + 1) samples, its deltas are random numbers.

    A test's result tells the round of the request that asked for it: so many of 100 answers are right, 50 more after
    training, and on validation samples as many fewer than 90. `tests` names those that the clients make where they are
    asked. `facts` holds what clients tell at registration where the server asks for it. `special` holds functions that
    spoil replies, by client and kind of request, or by these and the round.
    """

    def __init__(self, special=None, sizes=None, delta=None, facts=None, tests=(TEST,)):
        self.tests = tests
        self.special = special or {}
        self.sizes = sizes or SIZES
        self.delta = delta or self.random_delta
        self.facts = facts or {}

    def random_delta(self, key, server_round):
        generator = torch.Generator().manual_seed(1000 * server_round + int(key))
        return torch.randn(self.sizes[key], generator=generator)

    def __call__(self, message, context):
        key, kind = str(context.node_config["partition-id"]), kind_of(message)
        spoil = self.special.get((key, kind, round_of(message))) or self.special.get((key, kind))
        reply = self.usual(key, message)
        return spoil(message, reply) if spoil else reply

    def usual(self, key, message):
        if message.metadata.message_type == protocol.REGISTER:
            asked = protocol.decode_greeting(message.content).facts
            facts = {name: value for name, value in self.facts.get(key, {}).items() if name in asked}
            registration = Registration(key, self.sizes[key], num_examples(key), NUM_TEST, facts)
            content = protocol.encode_registration(registration)
            return Message(content, reply_to=message)
        instructions = told(message)
        made = [name for name in instructions.tests if name in self.tests]
        tests = {name: Evaluation(scripted_correct(name, round_of(message)), NUM_TEST, 0.5) for name in made}
        return self.exchange(key, message, instructions, tests)

    def exchange(self, key, message, instructions, tests):
        """The reply to any request but that to register."""
        if instructions.exchange == "deploy":
            return reply_to(message, protocol.Result(evaluations=tests))
        # A delta, unless the method does without.
        arrays = {DELTA: self.delta(key, round_of(message))} if DELTA in instructions.compress else {}
        return reply_to(message, protocol.Result(num_examples(key), 1.0 + int(key), tests), arrays)


class ScriptedGD(Scripted):
    """Clients without models that deploy a global one of `global_sizes[key]` parameters, where they do.

    Client i has 10 (i + 1) samples, the global deltas are random numbers of another draw than the personal ones.
    `groups` holds the labels that clients have. `before(message)` is called before each reply is made.
    """

    def __init__(self, special=None, sizes=None, global_sizes=50, groups=None, before=None):
        sizes = sizes or {"0": 50, "1": 90, "2": 50}  # of two architectures
        if isinstance(global_sizes, int):
            global_sizes = dict.fromkeys(sizes, global_sizes)
        facts = {key: {"global-num-params": size} for key, size in global_sizes.items()}
        for key, group in (groups or {}).items():
            facts.setdefault(key, {})["group"] = group
        super().__init__(special, sizes, facts=facts)
        self.global_sizes = global_sizes
        self.before = before or (lambda message: None)

    def global_delta(self, key, server_round):
        generator = torch.Generator().manual_seed(5000 + 1000 * server_round + int(key))
        return torch.randn(self.global_sizes[key], generator=generator)

    def usual(self, key, message):
        self.before(message)
        return super().usual(key, message)

    def exchange(self, key, message, instructions, tests):
        if instructions.exchange != GLOBAL:
            return super().exchange(key, message, instructions, tests)
        arrays = {DELTA: self.global_delta(key, round_of(message))}
        return reply_to(message, protocol.Result(num_examples(key), 5.0 + int(key)), arrays)


def scripted_correct(test, server_round):
    return {TEST: server_round, AFTER_TRAINING: 50 + server_round, VALIDATION: 90 - server_round}[test]


def num_examples(key):
    return 10 * (int(key) + 1)


def reply_to(message, result, arrays=None):
    return Message(protocol.encode_result(result, arrays), reply_to=message)


# Ways to spoil a reply --------------------------------------------------------------------------------------------


def with_arrays(arrays):
    """Other arrays than the reply has, NumPy's or tensors."""

    def special(message, reply):
        reply.content["arrays"] = encode_arrays(arrays)
        return reply

    return special


def replaced_delta(change):
    def special(message, reply):
        reply.content["arrays"] = ArrayRecord({DELTA: Array(change(array_of(reply, DELTA)).numpy())})
        return reply

    return special


def raises(message, reply):
    raise RuntimeError("out of memory")


def without_arrays(message, reply):
    del reply.content["arrays"]
    return reply


def with_metric(key, value):
    return with_metrics({key: value})


def with_metrics(values):
    def special(message, reply):
        reply.content["metrics"] = MetricRecord(dict(reply.content["metrics"]) | values)
        return reply

    return special


def without_metric(key):
    def special(message, reply):
        metrics = {name: value for name, value in reply.content["metrics"].items() if name != key}
        reply.content["metrics"] = MetricRecord(metrics)
        return reply

    return special


def with_another_array(message, reply):
    reply.content["arrays"]["more"] = reply.content["arrays"][DELTA]
    return reply


MISBEHAVIOUR = {
    "raises": ("client-raised", raises),
    "crashes": ("client-crashed", lambda message, reply: Message(Error(8, "killed"), reply_to=message)),
    "goes away": ("node-unavailable", lambda message, reply: Message(Error(5, "gone"), reply_to=message)),
    "too short": ("wrong-length", replaced_delta(lambda delta: delta[:-1])),
    "too long": ("wrong-length", replaced_delta(lambda delta: torch.cat([delta, delta]))),
    "a matrix": ("wrong-length", replaced_delta(lambda delta: delta.view(1, -1))),
    "float64": ("wrong-dtype", replaced_delta(lambda delta: delta.double())),
    "int64": ("wrong-dtype", replaced_delta(lambda delta: delta.long())),
    "NaN": ("not-finite", replaced_delta(lambda delta: delta.index_fill(0, torch.tensor([3]), float("nan")))),
    "infinity": ("not-finite", replaced_delta(lambda delta: delta.index_fill(0, torch.tensor([0]), -float("inf")))),
    "no array": ("malformed", without_arrays),
    "two arrays": ("malformed", with_another_array),
    "no samples": ("malformed", with_metric("num-examples", 0)),
    "no loss": ("malformed", without_metric("train-loss")),
    "no count": ("malformed", without_metric("num-examples")),
    "diverged": ("not-finite", with_metric("train-loss", float("nan"))),
}


class Meddling(InProcessGrid):
    """A grid whose replies pass through `meddle(messages)` before the server gets them."""

    def __init__(self, answer, meddle, nodes=NUM_CLIENTS, hold=None):
        super().__init__(answer, nodes, hold=hold)
        self.meddle = meddle

    def pull_messages(self, message_ids):
        return self.meddle(super().pull_messages(message_ids))


# By hand ----------------------------------------------------------------------------------------------------------


@dataclass
class ByHand:
    """The hypernetwork of a run, moved by hand."""

    hn: HyperNetwork
    optimizer: HyperNetworkOptimizer

    @classmethod
    def of(cls, config, sizes):
        settings = config.settings(HyperNetworkSettings)
        hn = HyperNetwork(
            chunk_size=settings.chunk_size,
            embedding_dim=settings.embedding_dim,
            hidden_dim=settings.hidden_dim,
            hidden_layers=settings.hidden_layers,
            head_init_scale=settings.resolved_head_init_scale,
            embedding_init_std=settings.embedding_init_std,
            seed=config.seed,
        )
        for key, size in sizes.items():
            hn.register(key, size)
        return cls(hn, HyperNetworkOptimizer(hn, settings.hn_lr, settings.schedule, settings.reduction))

    def theta(self, *keys):
        with torch.no_grad():
            return dict(zip(keys, self.hn.generate(keys), strict=True))

    def apply(self, deltas):
        self.optimizer.apply({key: deltas[key] for key in sorted(deltas)})


def assert_same_network(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def learned(played):
    """All tensors of the method's state, by name."""
    tensors = {}

    def walk(value, name):
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            for key, each in value.items():
                walk(each, (*name, key))

    walk(played.method.state(), ())
    return tensors


def assert_same_state(one, other):
    one, other = learned(one), learned(other)
    assert one.keys() == other.keys()
    assert len(one) > 0
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def evaluated_by_hand(played, key, theta, anchor=True):
    """A real client's test of its model with these weights."""
    site = simulated_site(played.config, int(key), NUM_CLIENTS)
    site.personal.parameters.write(site.personal.anchor + theta if anchor else theta)
    return evaluate(site.personal.model, site.test)


# Checkpoints ----------------------------------------------------------------------------------------------------------


def method_of(hn=None, optimizer=None):
    """A method that has learned nothing, or this network."""
    method = MHpFedHN(load_config({"method": "mh-pfedhn", "dataset": "npz", "device": "cpu"}))
    if hn:
        method.hn, method.optimizer = hn, optimizer or HyperNetworkOptimizer(hn)
    return method


def network_of(found):
    """The network that a run would go on with."""
    method = method_of()
    method.load_state(found.method)
    return method.hn


def changed(path, change):
    """Alter what a checkpoint file holds."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def files(run_dir):
    """Names of the checkpoints of a run."""
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


# One round trip ---------------------------------------------------------------------------------------------------


def echo(message, context):
    return Message(RecordDict(), reply_to=message)


class Talk:
    """A round trip to nodes 100, 101, ...; their clients' keys are a, b, ..."""

    def __init__(self, answer=echo, clients=3, deadline=60.0, quorum=1.0, hold=None):
        by_node = None if hold is None else lambda message: hold[chr(message.metadata.dst_node_id - 3)]
        self.grid = InProcessGrid(answer, clients, hold=by_node)
        self.requests = {
            chr(97 + i): Message(RecordDict(), 100 + i, "train.exchange", ttl=100.0) for i in range(clients)
        }
        self.failures = []
        self.waits = []  # what was told of a long wait
        self.trip = RoundTrip(self.grid, self.requests.items(), clients, deadline, quorum, self.fail, self.wait)

    def fail(self, client, reason, detail):
        self.failures.append((client, reason))

    def wait(self, answered, missing):
        self.waits.append((answered, missing))

    def run(self):
        return [client for client, _ in self.trip.replies()]
