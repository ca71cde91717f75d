"""The ServerApp: config -> strategy -> start; nothing else."""

from logging import ERROR

from flwr.app import ArrayRecord, Context
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import InMemoryGrid

from common.config import Config, load_config
from common.data.partition import class_counts
from common.data.simulation import divide
from common.errors import UserError
from server_app import checkpoint
from server_app.exchange import wait_for_nodes
from server_app.registry import Client
from server_app.strategies import STRATEGIES, Run
from server_app.tracking import RunTracker

_SIMULATION_STARTS_WITHIN = 60.0  # seconds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation as the run config says."""
    try:
        config = load_config(context.run_config, origin="the run config")
        serve(grid, config, simulated=isinstance(grid, InMemoryGrid))
    except UserError as error:
        log(ERROR, "%s", error)
        raise


def serve(grid: Grid, config: Config, *, simulated: bool) -> None:
    """Wait for the nodes, then run all rounds. Raises UserError for what a user can mend."""
    # A simulation has all its nodes from the start: fewer than min-clients is not worth waiting for.
    at_least, within = (1, _SIMULATION_STARTS_WITHIN) if simulated else (config.min_clients, config.deadline)
    nodes = wait_for_nodes(grid, at_least, within)
    config = config.named()
    start = checkpoint.load(config.resume_path) if config.mode == "adapt" else None
    if start:
        _check_same(config, start, simulated)
    num_parts = config.num_parts(len(nodes))
    dataset, parts = divide(config, num_parts) if simulated else (None, [])
    tracker = RunTracker(config.results_path / config.run_name, config.to_dict(), num_rounds=config.num_rounds)
    if dataset:
        counts = class_counts(dataset.labels, parts[: len(nodes)], dataset.num_classes)
        tracker.set_class_counts({str(i): row.tolist() for i, row in enumerate(counts)}, dataset.class_names)

    def architecture_of(client: Client) -> str:
        return config.model_of(int(client.key), num_parts) if simulated else f"K = {client.num_params:,}"

    strategy = STRATEGIES[config.method](Run(config, tracker, architecture_of, start))
    strategy.start(grid, ArrayRecord(), config.num_rounds, timeout=config.deadline)
    tracker.finish()


def _check_same(config: Config, start: checkpoint.Checkpoint, simulated: bool) -> None:
    """Raise UserError where this run would read the checkpoint's weights as something that they are not."""
    keys = ["seed", "anchor"]
    if simulated:
        keys += ["dataset", "partition", "classes-per-client", "dirichlet-alpha", "max-samples-per-class"]
        keys += ["num-clients", "models", "held-out", "keep-local", "freeze", "heads"]
    if config.method in ("mh-pfedhn-g", "mh-pfedhn-gd"):
        keys += ["global-model"]
    for key in keys:
        then, now = start.config.get(key), config.to_dict()[key]
        if then != now:
            raise UserError(
                f"{key} is {now!r}, but the checkpoint {start.path} was trained with {then!r}: use the same."
            )
    if simulated and start.path.parents[1].resolve() != (config.results_path / start.config["run-name"]).resolve():
        raise UserError(
            f"resume is {start.path}, but clients look for what they kept in {config.results_path}: set results-dir to "
            "the folder that holds the run."
        )
