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
    """Let a method of the user's own lie in the working folder; at the end of the path, where it hides nothing."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def from_here(config: Config) -> Config:
    """The same settings with absolute paths, which start at the working folder: the apps run in another one."""
    here = Path.cwd()
    data_path = here / Path(config.data_dir).expanduser()
    if config.data_dir != Config.data_dir and not _is_there(data_path):
        # Data that come with the project would be found all the same, and the typing error would go unseen.
        raise UserError(f"data-dir is {shown(config.data_dir)}, but there is no {shown(str(data_path))}.")
    return dataclasses.replace(results_from_here(config), data_dir=str(data_path))


def results_from_here(config: Config) -> Config:
    """The same settings with absolute paths to results, also for a ServerApp that a server on this machine starts."""
    here = Path.cwd()
    resume = str(here / Path(config.resume).expanduser()) if config.resume not in ("", "latest") else config.resume
    return dataclasses.replace(config, results_dir=str(here / Path(config.results_dir).expanduser()), resume=resume)


def check(config: Config) -> None:
    """Find now what would fail in the middle of a start that takes half a minute. Raises UserError."""
    from client_app.site.simulated import check_models
    from common.data.simulation import divide
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
    dataset, _ = divide(config, config.num_clients)
    check_models(config, dataset)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, a folder that may not be looked into
        return False


def check_is_new(config: Config) -> None:
    """Raise UserError where a run that does not go on with another would write over one."""
    run_dir = config.results_path / config.run_name
    if not config.resume and (run_dir / "metrics.jsonl").exists():
        raise UserError(f"{run_dir} holds a run already: choose another run-name, or go on with resume=latest.")


def federation(config: Config) -> list[str]:
    """Virtual nodes and the share of the machine that a client gets: one CPU each, the GPUs divided evenly."""
    import torch

    cpus = len(os.sched_getaffinity(0))
    at_once = min(cpus, config.num_nodes)
    gpus = torch.cuda.device_count() if config.device != "cpu" and torch.cuda.is_available() else 0
    settings = {
        "num-supernodes": config.num_nodes,
        "client-resources-num-cpus": 1,
        "client-resources-num-gpus": int(10_000 * gpus / at_once) / 10_000,
        "init-args-num-cpus": at_once,
    }
    return ["--federation-config", " ".join(f"{key}={value}" for key, value in settings.items())]


@contextlib.contextmanager
def local_superlink(config: Config) -> Iterator[tuple[str, dict[str, str]]]:
    """A SuperLink for one simulation; Flower's shared one would keep the environment of whoever started it.

    Yields the name of a connection to it, and the environment in which `flwr` knows that name.
    """
    with private_folder() as home:
        environment = KEEP_MEMORY | flower_environment(os.environ) | {"FLWR_HOME": str(home), OWNER: str(home)}
        environment = with_foreign_method(environment, config.method)
        port = free_port()
        write_connection(home / "config.toml", "simulation", f"127.0.0.1:{port}", None)
        command = [tool("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        log = home / "superlink.log"
        with running(command, log, environment) as superlink:
            wait_until_healthy(superlink, port, log)
            yield "simulation", environment


def with_foreign_method(environment: Mapping[str, str], method: str) -> dict[str, str]:
    """An environment in which `package.module:Class`, a method of the user's own, may lie in the working folder.

    For the methods that come with this project, which have no colon, nothing is changed.
    """
    if ":" not in method:
        return dict(environment)
    # At the end of the path, so that what the user has put there still comes first.
    folders = filter(None, [environment.get("PYTHONPATH"), str(Path.cwd())])
    return {**environment, "PYTHONPATH": os.pathsep.join(folders)}
