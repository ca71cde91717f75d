"""The console script `mh-pfedhn`: `run`, `report`, `profiles`, and the operator's `certs`, `server`, `site`.

`run` drives Flower's own commands and adds what they lack: checks before the start and an honest exit status. Nothing
else in this package reaches up to `server_app` and `client_app`.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.config import DEFAULT_PROFILE, Config, keys_with_help, load_config, parse_overrides, profiles
from common.errors import UserError
from common.processes import KEEP_MEMORY, free_port, running, tool, wait_until_healthy

APP_DIR = Path(__file__).resolve().parent.parent

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Everything is installed in this environment already.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    # Ray announces this change of a default at every start.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Flower's log lines: a coloured level, a colon, the text.
_LOG_LINE = re.compile(r"^\x1b\[\d+m(?P<level>[A-Z]+) *\x1b\[0m: +(?P<text>.*)$", re.DOTALL)
# What Flower says about federation sizes, which this script has chosen.
_NOISE = ("default simulated SuperNodes changed", "To change federation size", "flwr federation simulation-config")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0 for success, 1 for a run that failed, 2 for a mistake in what was asked."""
    parser = argparse.ArgumentParser(
        prog="mh-pfedhn", description="Personalised federated learning for parties whose models differ."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a federation, simulated on this machine unless --superlink is given")
    run.add_argument("profile", nargs="?", metavar="PROFILE", help=f"default {DEFAULT_PROFILE}; see `profiles`")
    run.add_argument("-c", dest="overrides", action="append", nargs="+", default=[], metavar="KEY=VALUE")
    run.add_argument("--superlink", metavar="NAME", help="a connection of Flower's config.toml to a running SuperLink")
    run.set_defaults(handle=_run)
    report = commands.add_parser("report", help="draw the report of a run again from its files")
    report.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    report.set_defaults(handle=_report)
    commands.add_parser("profiles", help="list profiles and keys").set_defaults(handle=_profiles)
    _add_operator_commands(commands)
    options = parser.parse_args(arguments)
    try:
        status: int = options.handle(options)
    except UserError as error:
        print(f"mh-pfedhn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mh-pfedhn: interrupted before the run began.", file=sys.stderr)
        return 1
    return status


def _run(options: argparse.Namespace) -> int:
    overrides = parse_overrides([item for group in options.overrides for item in group])
    if options.profile:
        overrides["profile"] = options.profile
    config = load_config(overrides)
    if not config.resume or config.mode == "adapt":
        config = config.named()
    # A terminated script stops its run and its SuperLink as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.superlink:
        return _run_with_flower(config, options.superlink, [], dict(os.environ) | _QUIET)
    here = Path.cwd()
    data_path = here / Path(config.data_dir).expanduser()
    if config.data_dir != Config.data_dir and not data_path.exists():
        # Data that come with the project would be found all the same, and the typing error would go unseen.
        raise UserError(f"data-dir is {config.data_dir!r}, but there is no {data_path}.")
    resume = str(here / Path(config.resume).expanduser()) if config.resume not in ("", "latest") else config.resume
    config = dataclasses.replace(
        config,
        data_dir=str(data_path),
        results_dir=str(here / Path(config.results_dir).expanduser()),
        resume=resume,
    )
    _check_simulation(config)
    with _local_superlink() as (name, environment):
        return _run_with_flower(config, name, _federation(config), environment)


def _check_simulation(config: Config) -> None:
    """Find now what would fail in the middle of a start that takes half a minute."""
    from common.data.simulation import divide
    from common.device import resolve_device

    if config.num_nodes < config.min_clients:
        raise UserError(
            f"{config.num_nodes} clients take part (num-clients less held-out), but min-clients is "
            f"{config.min_clients}: raise the one or lower the other."
        )
    if config.resume not in ("", "latest") and not config.resume_path.exists():
        raise UserError(f"resume is {config.resume!r}, but there is no such run folder or checkpoint file.")
    if not config.resume and (config.results_path / config.run_name / "metrics.jsonl").exists():
        raise UserError(
            f"{config.results_path / config.run_name} holds a run already: choose another run-name, or go on with "
            "resume=latest."
        )
    resolve_device(config.device)
    divide(config, config.num_clients)
    try:
        config.results_path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=config.results_path):
            pass
    except OSError as error:
        raise UserError(f"results-dir {config.results_path} cannot be written to: {error.strerror}.") from error


def _federation(config: Config) -> list[str]:
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


def _run_with_flower(config: Config, superlink: str, arguments: list[str], environment: dict[str, str]) -> int:
    """`flwr run`, its log, then the run's real status, which `flwr run` does not tell."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "run.toml"
        # JSON's strings, numbers and booleans are TOML's.
        settings.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in config.to_dict().items()))
        command = [tool("flwr"), "run", str(APP_DIR), superlink, "--stream", "-c", str(settings), *arguments]
        run_id = _stream(command, superlink, environment)
    if run_id is None:
        print("mh-pfedhn: Flower did not start the run; its own words are above.", file=sys.stderr)
        return 1
    status = _status(run_id, superlink, environment)
    run_dir = config.results_path / config.run_name
    if (run_dir / "summary.json").exists():
        from server_app.report import final_table

        print(f"\n{final_table(run_dir)}\n\nReport: {run_dir / 'report.html'}")
    if status != "finished:completed":
        print(f"mh-pfedhn: the run ended as {status}; the log above says why.", file=sys.stderr)
        return 1
    return 0


def _stream(command: list[str], superlink: str, environment: dict[str, str]) -> str | None:
    """Run Flower, pass its log on, return the id of the run; stop the run when the user interrupts."""
    run_id = None
    environment = environment | {"PYTHONUNBUFFERED": "1"}
    flower = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    with flower:
        assert flower.stdout is not None
        try:
            for line in flower.stdout:
                if started := re.search(r"Successfully started run (\d+)", line):
                    run_id = started[1]
                if not any(noise in line for noise in _NOISE):
                    print(_plain(line), end="", flush=True)
        except KeyboardInterrupt:
            flower.terminate()
            if run_id:
                subprocess.run([tool("flwr"), "stop", run_id, superlink], env=environment, check=False)
            print("mh-pfedhn: interrupted; what was computed so far is in the run's folder.", file=sys.stderr)
    return run_id


def _plain(line: str) -> str:
    """A line of Flower's log without colours, and without a level that says nothing."""
    found = _LOG_LINE.match(line)
    if not found:
        return line
    return found["text"] if found["level"] == "INFO" else f"{found['level']}: {found['text']}"


def _status(run_id: str, superlink: str, environment: dict[str, str]) -> str:
    """Such as `finished:completed` or `finished:failed`."""
    command = [tool("flwr"), "list", superlink, "--run-id", run_id, "--format", "json"]
    for _ in range(20):
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout
        try:
            status = str(json.loads(answer)["runs"][0]["status"])
        except (ValueError, LookupError):
            return f"unknown, since `flwr list` answered {answer.strip()!r}"
        if status.startswith("finished"):
            return status
        time.sleep(0.5)
    return status


@contextlib.contextmanager
def _local_superlink() -> Iterator[tuple[str, dict[str, str]]]:
    """A SuperLink for one simulation; Flower's shared one would keep the environment of whoever started it."""
    with tempfile.TemporaryDirectory(prefix="mh-pfedhn-") as home:
        environment = KEEP_MEMORY | dict(os.environ) | _QUIET | {"FLWR_HOME": home}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        port = free_port()
        Path(home, "config.toml").write_text(
            '[superlink]\ndefault = "simulation"\n\n'
            f'[superlink.simulation]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        command = [tool("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        log = Path(home, "superlink.log")
        with running(command, log, environment) as superlink:
            wait_until_healthy(superlink, port, log)
            yield "simulation", environment


def _report(options: argparse.Namespace) -> int:
    from server_app.report import write_report

    print(write_report(options.run_dir))
    return 0


def _profiles(options: argparse.Namespace) -> int:
    print("Profiles (join several with '+', later ones win):")
    for name, description in profiles():
        print(f"  {name:<38} {description}")
    print("\nKeys (-c KEY=VALUE), with the defaults that profiles start from:")
    for key, default, text in keys_with_help():
        print(f"  {key + ' = ' + str(default):<34} {text}")
    return 0


def _add_operator_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    certs = commands.add_parser("certs", help="make certificates and keys for a server and its sites")
    certs.add_argument("folder", type=Path, metavar="FOLDER", help="where they are made; what exists there stays")
    certs.add_argument(
        "--host", action="append", default=[], metavar="NAME_OR_IP", help="how sites reach the server; may be repeated"
    )
    certs.add_argument("--site", action="append", default=[], metavar="NAME", help="a site's key pair; may be repeated")
    certs.set_defaults(handle=_certs)

    server = commands.add_parser("server", help="run the server until it is terminated")
    server.add_argument(
        "--state", type=Path, required=True, metavar="FOLDER", help="database and settings; made if new"
    )
    protection = server.add_mutually_exclusive_group(required=True)
    protection.add_argument(
        "--certs", type=Path, metavar="FOLDER", help="ca.crt, server.pem, server.key; sites/*.pub are who may join"
    )
    protection.add_argument("--insecure", action="store_true", help="no TLS, and any site may join")
    server.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")
    server.add_argument("--port", type=int, default=9290, help="default 9290")
    server.add_argument(
        "--name", default="consortium", help="for `mh-pfedhn run --superlink NAME` (default: consortium)"
    )
    server.set_defaults(handle=_server)

    site = commands.add_parser("site", help="what a site does").add_subparsers(required=True, metavar="COMMAND")
    site_file = argparse.ArgumentParser(add_help=False)
    site_file.add_argument("site", type=Path, metavar="SITE.yaml", help="the site's model and data")
    site_check = site.add_parser(
        "check", parents=[site_file], help="build model and data offline; show what they are and what the server sees"
    )
    site_check.set_defaults(handle=_site_check)

    site_run = site.add_parser(
        "run", parents=[site_file], help="take part with a model and data of one's own until terminated"
    )
    site_run.add_argument("--server", required=True, metavar="HOST:PORT")
    site_run.add_argument("--ca", type=Path, metavar="ca.crt", help="the authority of the server's certificate")
    site_run.add_argument("--key", type=Path, metavar="sites/NAME", help="this site's private key")
    site_run.add_argument("--insecure", action="store_true", help="neither TLS nor a key")
    site_run.add_argument(
        "--port", type=int, default=9094, help="of this machine alone; another one for each site on it (default: 9094)"
    )
    site_run.set_defaults(handle=_site_run)

    site_export = site.add_parser(
        "export", parents=[site_file], help="write the model of a finished run as a state_dict for plain PyTorch"
    )
    site_export.add_argument("--run", required=True, metavar="RUN_NAME")
    site_export.add_argument("--output", type=Path, required=True, metavar="FILE", help="must not exist yet")
    site_export.set_defaults(handle=_site_export)


def _certs(options: argparse.Namespace) -> int:
    from common.deploy import make_certs

    print(make_certs(options.folder, options.host, options.site))
    return 0


def _server(options: argparse.Namespace) -> int:
    from common.deploy import Server, run_server

    return run_server(Server(options.state, options.certs, options.host, options.port, options.name))


def _site_run(options: argparse.Namespace) -> int:
    from common.deploy import SiteRun, run_site

    if options.insecure == bool(options.ca and options.key) or (options.insecure and (options.ca or options.key)):
        raise UserError("give --ca and --key, or --insecure for neither TLS nor authentication.")
    return run_site(SiteRun(options.site, options.server, options.ca, options.key, options.port))


def _site_check(options: argparse.Namespace) -> int:
    from client_app.site.tools import check

    check(options.site.expanduser())
    return 0


def _site_export(options: argparse.Namespace) -> int:
    from client_app.site.tools import export

    output = options.output.expanduser()
    export(options.site.expanduser(), options.run, output)
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
