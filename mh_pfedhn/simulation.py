"""What a simulation needs before and around `flwr run`: checks, a federation, a SuperLink of its own."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.config import Config
from common.errors import UserError
from common.files import WriteError, check_writable
from common.text import shown
from mh_pfedhn.deployment.connections import write_connection
from mh_pfedhn.private_folder import OWNER, private_folder
from mh_pfedhn.processes import KEEP_MEMORY, flower_environment, free_port, running, tool, wait_until_healthy


def import_from_here() -> None:
    """Let the user's own code lie in the working folder; at the end of the path, where it hides nothing."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def from_here(config: Config) -> Config:
    """The same settings as the apps need them, which run in another folder and are given a number of nodes.

    Paths are absolute, from the working folder on, and `num-clients` is a number where it stands for all owners of
    samples. Raises UserError for data that are not there or have no owners, and where too few would be trained.
    """
    here = Path.cwd()
    data_path = here / Path(config.data_dir).expanduser()
    if config.data_dir != Config.data_dir and not _is_there(data_path):
        # Data that come with the project would be found all the same, and the typing error would go unseen.
        raise UserError(f"data-dir is {shown(config.data_dir)}, but there is no {shown(str(data_path))}.")
    return _counted(dataclasses.replace(results_from_here(config), data_dir=str(data_path)))


def _counted(config: Config) -> Config:
    if config.num_clients:
        return config
    from common.data.simulation import count_owners

    found = count_owners(config)
    if config.held_out >= found:
        raise UserError(
            f"held-out is {config.held_out}, but must be below the number of clients: num-clients is 0, which takes "
            f"the {found} owners of samples that there are."
        )
    return dataclasses.replace(config, num_clients=found)


def results_from_here(config: Config) -> Config:
    """The same settings with absolute paths to results, also for a ServerApp that a server on this machine starts."""
    here = Path.cwd()
    resume = str(here / Path(config.resume).expanduser()) if config.resume not in ("", "latest") else config.resume
    return dataclasses.replace(config, results_dir=str(here / Path(config.results_dir).expanduser()), resume=resume)


def check(config: Config) -> None:
    """Find now what would fail in the middle of a start that takes half a minute. Raises UserError.

    What it opens stays open for the next check: see `forgetting`.
    """
    from client_app.site.simulated import check_models
    from common.device import resolve_device
    from server_app.results import sinks

    if config.num_nodes < config.min_clients:
        raise UserError(
            f"{config.num_nodes} clients take part (num-clients less held-out), but min-clients is "
            f"{config.min_clients}: raise the one or lower the other."
        )
    if config.resume not in ("", "latest") and not _is_there(config.resume_path):
        raise UserError(f"resume is {shown(config.resume)}, but there is no such run folder or checkpoint file.")
    try:
        check_writable(config.results_path)
    except WriteError as error:
        raise UserError(f"results-dir is {shown(config.results_dir)}, but {error}.") from error
    check_is_new(config)
    sinks.check(config.log_to)
    resolve_device(config.device)
    check_models(config)


@contextlib.contextmanager
def forgetting() -> Iterator[None]:
    """Let go at the end of data and models that checks have opened: the apps open them in processes of their own."""
    from client_app.site.simulated import forget_clients
    from common.data.simulation import forget_data_sets

    try:
        yield
    finally:
        forget_clients()
        forget_data_sets()


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, a folder that may not be looked into
        return False


def check_is_new(config: Config) -> None:
    """Raise UserError where a run that does not go on with another would write over one."""
    if not config.resume and (config.run_dir / "metrics.jsonl").exists():
        raise UserError(f"{config.run_dir} holds a run already: choose another run-name, or go on with resume=latest.")


def workers(config: Config) -> int:
    """How many processes play the clients of a simulation."""
    return min(len(os.sched_getaffinity(0)), config.num_nodes)


def federation(config: Config) -> list[str]:
    """Virtual nodes and the share of the machine that a client gets: one CPU each, the GPUs divided evenly."""
    import torch

    at_once = workers(config)
    gpus = torch.cuda.device_count() if config.device != "cpu" and torch.cuda.is_available() else 0
    settings = {
        "num-supernodes": config.num_nodes,
        "client-resources-num-cpus": 1,
        "client-resources-num-gpus": int(10_000 * gpus / at_once) / 10_000,
        "init-args-num-cpus": at_once,
    }
    return ["--federation-config", " ".join(f"{key}={value}" for key, value in settings.items())]


@contextlib.contextmanager
def local_superlink(*configs: Config) -> Iterator[tuple[str, dict[str, str]]]:
    """A SuperLink for one simulation of these runs; Flower's shared one would keep the environment of its starter.

    Yields the name of a connection to it, and the environment in which `flwr` knows that name.
    """
    with private_folder() as home:
        environment = KEEP_MEMORY | flower_environment(os.environ) | {"FLWR_HOME": str(home), OWNER: str(home)}
        environment = with_own_code(environment, *configs)
        port = free_port()
        write_connection(home / "config.toml", "simulation", f"127.0.0.1:{port}", None)
        command = [tool("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        log = home / "superlink.log"
        with running(command, log, environment) as superlink:
            wait_until_healthy(superlink, port, log)
            yield "simulation", environment


def with_own_code(environment: Mapping[str, str], *configs: Config) -> dict[str, str]:
    """An environment in which the user's own code, named as `module:name`, may lie in the working folder.

    For runs with nothing but what comes with this project, nothing is changed.
    """
    if not any(config.own_code for config in configs):
        return dict(environment)
    # At the end of the path, so that what the user has put there still comes first.
    folders = filter(None, [environment.get("PYTHONPATH"), str(Path.cwd())])
    return {**environment, "PYTHONPATH": os.pathsep.join(folders)}
