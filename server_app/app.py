"""The ServerApp: config -> strategy -> start; nothing else."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, INFO
from pathlib import Path

from filelock import FileLock, Timeout
from flwr.app import ArrayRecord, Context
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import InMemoryGrid

from common.config import RUN_OPTIONS, Config, load_run_config
from common.data.partition import class_counts
from common.data.simulation import divide
from common.errors import UserError
from server_app import checkpoint
from server_app.checkpoint import Checkpoint
from server_app.client import Client
from server_app.results import RunTracker
from server_app.rounds.membership import wait_for_nodes
from server_app.strategy import FederationStrategy

_SIMULATION_STARTS_WITHIN = 60.0  # seconds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation as the run config says."""
    try:
        config = load_run_config(context.run_config)
        serve(grid, config, simulated=isinstance(grid, InMemoryGrid))
    except UserError as error:
        log(ERROR, "%s", error)
        raise


def serve(grid: Grid, config: Config, *, simulated: bool) -> None:
    """Wait for the nodes, then run all rounds. Raises UserError for what a user can mend."""
    start = None
    if not config.run_name:
        config, start = _start_of(config)
    with _only_writer(config.results_path / config.run_name):
        if start is None:
            config, start = _start_of(config)
        _serve(grid, config, start, simulated)


def _serve(grid: Grid, config: Config, start: Checkpoint | None, simulated: bool) -> None:
    if start:
        _check_same(config, start, simulated)
    run_dir = config.results_path / config.run_name
    resume_after = None
    if start and config.mode == "train":
        if start.server_round >= config.num_rounds and (run_dir / "summary.json").exists():
            log(INFO, "%s is finished already: raise num-rounds to go on.", run_dir)
            return
        # The metrics of the last complete round are written when its weights have been tested, which is yet to come.
        resume_after = start.server_round - 1
    elif config.resume == "latest":
        resume_after = 0  # what a run without a checkpoint left behind is begun anew
    # A simulation has all its nodes from the start: fewer than min-clients is not worth waiting for.
    at_least, within = (1, _SIMULATION_STARTS_WITHIN) if simulated else (config.min_clients, config.deadline)
    nodes = wait_for_nodes(grid, at_least, within)
    num_parts = config.num_parts(len(nodes))
    dataset, parts = divide(config, num_parts) if simulated else (None, [])
    tracker = RunTracker(run_dir, config.to_dict(), num_rounds=config.num_rounds, resume_after=resume_after)
    if dataset:
        counts = class_counts(dataset.labels, parts[: len(nodes)], dataset.num_classes)
        tracker.set_class_counts({str(i): row.tolist() for i, row in enumerate(counts)}, dataset.class_names)

    def architecture_of(client: Client) -> str:
        return config.model_of(int(client.key), num_parts) if simulated else f"K = {client.num_params:,}"

    method = config.halves.server(config)
    strategy = FederationStrategy(config, method, tracker, architecture_of, nodes_may_come=not simulated, start=start)
    strategy.start(grid, ArrayRecord(), config.num_rounds, timeout=config.deadline)
    tracker.finish()


@contextmanager
def _only_writer(run_dir: Path) -> Iterator[None]:
    """Keep every other ServerApp out of a run's folder; the lock goes with the process, however it ends."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The run's folder {run_dir} cannot be made: {error.strerror}.") from error
    try:
        with FileLock(run_dir / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(
            f"{run_dir} is being written by another run: wait until it has ended, stop it, or choose another run-name."
        ) from error


def _start_of(config: Config) -> tuple[Config, Checkpoint | None]:
    """The checkpoint that `resume` names, and the config with a run-name: the checkpoint's when a run goes on."""
    if config.resume == "latest":
        run_dir = config.results_path / config.run_name
        if checkpoint.exists(run_dir):
            return config, checkpoint.load(run_dir)
        log(INFO, "%s has no checkpoint yet: starting anew.", run_dir)
        return config, None
    if not config.resume:
        return config.named(), None
    start = checkpoint.load(config.resume_path)
    if config.mode == "train" and not config.run_name:
        config = dataclasses.replace(config, run_name=start.config["run-name"])
    return config.named(), start


def _check_same(config: Config, start: Checkpoint, simulated: bool) -> None:
    """Raise UserError where this run would read the checkpoint's weights as something that they are not."""
    when = {"always"} | ({"training"} if config.mode == "train" else set()) | ({"simulation"} if simulated else set())
    settings = config.to_dict()
    for key, option in (RUN_OPTIONS | config.halves.options).items():
        if key not in start.config:
            continue  # mode adapt may take another method's run, and finds out itself whether that holds what it needs
        then, now = start.config[key], settings[key]
        if option.rule.fixed in when and then != now:
            raise UserError(f"{key} is {now!r}, but {start.path} was trained with {then!r}: use the same.")
    if simulated and config.run_name != start.config["run-name"]:
        expected = config.results_path / start.config["run-name"]
        if start.path.parents[1].resolve() != expected.resolve():
            raise UserError(
                f"resume is {start.path}, but clients look for what they kept in {expected}: set results-dir to the "
                "folder that holds the run."
            )
