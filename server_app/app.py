"""The ServerApp: config -> strategy -> start; nothing else."""

import os
from contextlib import closing
from logging import ERROR, INFO, Filter, LogRecord, getLogger
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import InMemoryGrid

from common.config import Config, load_run_config
from common.config.batch import is_batch
from common.data.simulation import divide, located
from common.errors import UserError
from server_app import batch
from server_app.checkpoint import Checkpoint
from server_app.client import Client
from server_app.results import RunTracker, sinks
from server_app.results.data import data_of, partition_of
from server_app.rounds.bindings import STATE_FOLDER, Bindings
from server_app.rounds.membership import wait_for_nodes
from server_app.starting import begin_line, is_finished, opened, resume_after
from server_app.strategy import FederationStrategy

_SIMULATION_STARTS_WITHIN = 60.0  # seconds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation as the run config says, or several."""
    try:
        if is_batch(context.run_config):
            if not isinstance(grid, InMemoryGrid):
                raise UserError("runs names several runs, which only a simulation plays: start them one by one.")
            batch.play(context.run_config, lambda config: serve(grid, config, simulated=True))
            return
        config = load_run_config(context.run_config)
        simulated, state = isinstance(grid, InMemoryGrid), os.environ.get(STATE_FOLDER)
        serve(grid, config, simulated=simulated, bindings=Bindings(Path(state)) if state and not simulated else None)
    except UserError as error:
        log(ERROR, "%s", error)
        getLogger("flwr").addFilter(_NotAgain(error))
        raise


class _NotAgain(Filter):
    """Keeps from the log what Flower adds to an error that has been told: a page of traceback, and an exit code."""

    def __init__(self, told: UserError) -> None:
        super().__init__()
        self._told = told

    def filter(self, record: LogRecord) -> bool:
        """Whether the record is logged."""
        is_traceback = record.exc_info is not None and record.exc_info[1] is self._told
        return not is_traceback and not record.getMessage().startswith("Exit Code:")


def serve(grid: Grid, config: Config, *, simulated: bool, bindings: Bindings | None = None) -> None:
    """Wait for the nodes, then run all rounds. Raises UserError for what a user can mend.

    `bindings` are those of a deployment whose nodes prove who they are.
    """
    sinks.check(config.log_to)
    with opened(config, simulated) as (config, start):
        run_dir = config.run_dir
        if is_finished(config, start):
            log(INFO, "%s is finished already: raise num-rounds to go on.", run_dir)
            return
        _serve(grid, config, start, simulated, bindings)


def _serve(grid: Grid, config: Config, start: Checkpoint | None, simulated: bool, bindings: Bindings | None) -> None:
    run_dir = config.run_dir
    # A simulation has all its nodes from the start: fewer than min-clients is not worth waiting for.
    at_least, within = (1, _SIMULATION_STARTS_WITHIN) if simulated else (config.min_clients, config.deadline)
    nodes = wait_for_nodes(grid, at_least, within)
    num_parts = config.num_parts(len(nodes))
    division = divide(config, num_parts) if simulated else None
    config = located(config, division) if division else config
    keep = resume_after(config, start)
    if start and config.mode == "train":
        begin_line(config, start)
    log_to = sinks.named(config.log_to)
    tracker = RunTracker(run_dir, config.to_dict(), num_rounds=config.num_rounds, resume_after=keep, log_to=log_to)
    if division:
        if division.left_out:
            few, left_out = config.min_samples, division.left_out
            log(INFO, "Owners left out since they have fewer than %d samples (min-samples): %d.", few, left_out)
        tracker.set_data(data_of(division), partition_of(division, len(nodes)))

    def architecture_of(client: Client) -> str:
        return config.model_of(int(client.key), num_parts) if simulated else f"K = {client.num_params:,}"

    with closing(tracker):
        method = config.halves.server(config)
        strategy = FederationStrategy(
            config, method, tracker, architecture_of, nodes_may_come=not simulated, start=start, bindings=bindings
        )
        strategy.start(grid, ArrayRecord(), config.num_rounds, timeout=config.deadline)
        tracker.finish()
