"""How long a comparison will take, and how much memory, before anything starts: derived from what is measured here.

Measured, in about a second each: a training step and a test of each architecture on its clients' own samples, in one
thread as in a worker, and the server half's work in a round (`server_app/rehearsal.py`). Counted: steps, tests,
exchanges, bytes. Assumed: what a message and a process cost. Left out: checkpoints, drawings, and what else the machine
does.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass

import torch

from client_app.site.simulated import SAMPLE_BYTES, simulated_site
from client_app.site.site import Place, Site
from client_app.training import TEST_BATCH, sgd, tested_batches, train
from common.config import Config
from common.data.simulation import Division, divide
from common.device import free_memory
from common.options import options_of
from common.settings import LocalTraining
from mh_pfedhn.comparing.plan import Plan, PlannedRun
from mh_pfedhn.simulation import federation, workers
from server_app import checkpoint
from server_app.client import Client
from server_app.rehearsal import PlayedExchange, Rehearsal, facts_asked, memory_for, rehearse
from server_app.results.formatting import format_bytes, format_duration

# Of a simulation on two cores: 5 ms a message that holds nothing, 24 ms with 4 MB each way.
_SECONDS_A_MESSAGE = 0.005
_SECONDS_A_BYTE = 0.019 / 8e6
_SECONDS_TO_START = 20.0  # a SuperLink, Ray and its workers
# Of a ServerApp or a worker, with PyTorch, Flower and Ray in it; of the SuperLink, the command and Ray's own processes.
_BYTES_A_PROCESS = 450e6
_BYTES_BESIDE = 700e6
# A worker keeps of each architecture a model, its initialisation, its anchor and a gradient.
_BYTES_A_PARAMETER = 4 * 4

_TRIES = 3  # of which the quickest counts: others were disturbed


@dataclass(frozen=True)
class Estimate:
    """Of one run, without what a simulation needs to start."""

    seconds: float
    num_bytes: float  # at its peak, of all processes
    fits: bool = True  # whether the server has room for all clients


@dataclass(frozen=True)
class _Speed:
    """Of an architecture, on one CPU."""

    train: float  # seconds a sample and epoch
    test: float  # seconds a sample


def described(plan: Plan, finished: Collection[str] = ()) -> str:
    """A table of the runs with time and memory of each, and of the whole. `finished` names those that are done."""
    estimator = Estimator()
    rows: list[tuple[str, ...]] = [("run", "rounds", "time", "memory", "")]
    seconds, peak, simulations = 0.0, 0.0, set[str]()
    free = free_memory(torch.device("cpu"))
    for run in plan.runs:
        rounds = str(run.config.num_rounds)
        if run.name in finished:
            rows.append((run.name, rounds, "", "", "finished"))
            continue
        estimate = estimator.of(run)
        done = max(checkpoint.rounds(run.config.run_dir), default=0)
        left = estimate.seconds * (1 - done / run.config.num_rounds)
        states = ["the server has no room for all clients"] if not estimate.fits else []
        states += ["does not fit into memory"] if estimate.num_bytes > free else []
        states += [f"goes on after round {done}"] if done else []
        rows.append((run.name, rounds, format_duration(left), format_bytes(estimate.num_bytes), "; ".join(states)))
        seconds, peak = seconds + left, max(peak, estimate.num_bytes)
        simulations.add(" ".join(federation(run.config)))
    number = len([run for run in plan.runs if run.name in finished])
    lines = [*plan.notes, *_table(rows), f"{len(plan.runs)} runs, {number} of them finished, in {plan.folder}"]
    if simulations:
        seconds += _SECONDS_TO_START * len(simulations)
        lines += [
            f"about {format_duration(seconds)} for the rest (simulations to start: {len(simulations)})",
            f"about {format_bytes(peak)} of memory at most, and {format_bytes(free)} are free now",
        ]
    return "\n".join(lines)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *numbers, state in rows:
        cells = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True))]
        lines.append("  ".join([*cells, state]).rstrip())
    return lines


class Estimator:
    """Measures each architecture once, and each method's server half with the same clients and settings of its own."""

    def __init__(self) -> None:
        self._speeds: dict[Hashable, _Speed] = {}
        self._rehearsals: dict[Hashable, Rehearsal] = {}
        self._estimates: dict[Hashable, Estimate] = {}

    def of(self, run: PlannedRun) -> Estimate:
        """The estimate for a run; seeds make no difference."""
        kind = run.method, run.setting, *run.grid.items()
        if kind not in self._estimates:
            self._estimates[kind] = self._measured(run.config)
        return self._estimates[kind]

    def _measured(self, config: Config) -> Estimate:
        division = divide(config, config.num_parts(config.num_nodes))
        clients = _clients(config, division)
        rehearsal = self._rehearsal(config, clients)
        a_round = rehearsal.seconds + sum(self._seconds(config, exchange) for exchange in rehearsal.exchanges)
        tests = sum(self._tests(config, client, division) for client in clients)
        a_round += tests / workers(config) / config.evaluate_every
        return Estimate(config.num_rounds * a_round, _BYTES_BESIDE + _bytes(config, clients, division), rehearsal.fits)

    def _tests(self, config: Config, client: Client, division: Division) -> float:
        """Seconds of all tests of a client's weights, and of what is trained for one of them."""
        speed = self._speed(config, int(client.key))
        seconds = speed.test * (client.num_test + len(division.parts[int(client.key)].validation))
        if config.evaluate_after_training:
            seconds += speed.train * client.num_train + speed.test * client.num_test
        return seconds

    def _rehearsal(self, config: Config, clients: list[Client]) -> Rehearsal:
        """The same for runs that differ in nothing but what their clients do, such as the points of most grids."""
        own = options_of(config.halves.server.Settings)
        settings = {key: value for key, value in config.method_settings.items() if key in own}
        key = (
            dataclasses.replace(config, method_settings=settings, seed=0, run_name="", profile=""),
            tuple((client.num_params, client.num_train, *client.facts.items()) for client in clients),
        )
        if key not in self._rehearsals:
            self._rehearsals[key] = rehearse(config, clients)
        return self._rehearsals[key]

    def _seconds(self, config: Config, exchange: PlayedExchange) -> float:
        """Of an exchange: its messages, and the clients' work, divided among the workers."""
        epochs, seconds = config.settings(LocalTraining).local_epochs, [0.0]
        if exchange.losses:
            # Whatever is not the client's own model is the public one of the methods that have that.
            name = "" if exchange.losses == "train" else str(config.method_settings.get("global-model", ""))
            for client in exchange.clients:
                seconds.append(epochs * client.num_train * self._speed(config, int(client.key), name).train)
        working = max(max(seconds), sum(seconds) / workers(config))
        return working + _SECONDS_A_MESSAGE * len(exchange.clients) + _SECONDS_A_BYTE * exchange.num_bytes

    def _speed(self, config: Config, number: int, instead: str = "") -> _Speed:
        """Of the architecture of a client, or of another one `instead`."""
        batch_size = config.settings(LocalTraining).batch_size
        architecture = instead or _architecture(config, number)
        data = config.dataset, config.data_dir, config.max_samples_per_class
        key = architecture, config.keep_local, config.freeze, config.device, batch_size, *data
        if key not in self._speeds:
            if instead:
                config = dataclasses.replace(config, models=instead, held_out_models="")
            self._speeds[key] = _timed(_site(config, number), batch_size)
        return self._speeds[key]


def _clients(config: Config, division: Division) -> list[Client]:
    """The clients of a simulation, as the server will know them; only one of each architecture is built."""
    half = config.halves.client
    method, asked = half(config.settings(half.Settings)), set(facts_asked(config))
    clients, alike = [], dict[str, Site]()
    for number in range(config.num_nodes):
        name = _architecture(config, number)
        if name not in alike:
            alike[name] = _site(config, number)
        place = Place(number, config.num_nodes, config.seed)
        site = dataclasses.replace(alike[name], key=str(number), place=place)
        facts = {fact: value for fact, value in method.facts(site).items() if fact in asked}
        part = division.parts[number]
        clients.append(Client(site.key, site.num_params, 1, facts, num_train=len(part.train), num_test=len(part.test)))
    return clients


def _bytes(config: Config, clients: list[Client], division: Division) -> float:
    """Of the ServerApp and the workers, each of which opens the data set for itself."""
    models = {_architecture(config, int(client.key)): client.num_params for client in clients}
    first, parts = _site(config, 0), division.parts[: len(clients)]
    num_samples = sum(len(part.train) + len(part.validation) + len(part.test) for part in parts)
    samples = min(first.train.num_bytes / len(first.train) * num_samples, SAMPLE_BYTES)
    files = division.dataset.source.num_bytes
    a_worker = _BYTES_A_PROCESS + files + _BYTES_A_PARAMETER * sum(models.values()) + samples
    return _BYTES_A_PROCESS + files + memory_for(config, clients) + workers(config) * a_worker


def _architecture(config: Config, number: int) -> str:
    return config.model_of(number, config.num_parts(config.num_nodes))


def _site(config: Config, number: int) -> Site:
    return simulated_site(config, number, config.num_nodes)


def _timed(site: Site, batch_size: int) -> _Speed:
    """Time steps and tests of a site's model on its own samples, in one thread, as a worker has it."""
    settings = LocalTraining(batch_size=batch_size)
    batch = torch.arange(min(batch_size, len(site.train)))
    model = site.personal.model
    optimizer = sgd([parameter for parameter in model.parameters() if parameter.requires_grad], settings)

    def step() -> None:
        train(
            model,
            site.train,
            [batch],
            optimizer,
            torch.Generator().manual_seed(0),
            settings.client_max_grad_norm,
            lambda outputs, targets, indices: site.loss(outputs, targets),
        )

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tested = min(TEST_BATCH, len(site.test))
        return _Speed(_quickest(step) / len(batch), _quickest(lambda: next(tested_batches(model, site.test))) / tested)
    finally:
        torch.set_num_threads(threads)


def _quickest(work: Callable[[], object]) -> float:
    """Seconds that it takes, once warm."""
    work()
    took = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)
