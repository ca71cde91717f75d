"""The server of a deployment: checks before the start, a SuperLink that is kept running, and its registrations."""

import contextlib
import dataclasses
import datetime
import os
import re
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import UserError
from mh_pfedhn.deployment.certificates import hosts_of, read_certificate
from mh_pfedhn.deployment.connections import check_connection, flower_home, write_connection
from mh_pfedhn.deployment.registrar import Registrar
from mh_pfedhn.deployment.supervision import Child
from mh_pfedhn.private_folder import OWNER, end_processes_of
from mh_pfedhn.processes import KEEP_MEMORY, check_port, flower_environment, is_healthy, say, stopping
from server_app.rounds.bindings import STATE_FOLDER

_TICK = 0.2  # seconds between two looks at the processes
_COMMAND_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Server:
    """What `mh-pfedhn server` is asked for; `certs` is None without TLS and authentication.

    Sites reach it at `host` and `port`, commands on this machine at `command_port` of loopback.
    """

    state: Path
    certs: Path | None
    host: str
    port: int
    command_port: int
    name: str

    @property
    def address(self) -> str:
        """Where commands on this machine reach it."""
        return f"{_COMMAND_HOST}:{self.command_port}"

    def command(self) -> list[str]:
        """`flower-superlink` behind the guard, and its options."""
        # -P: a folder `mh_pfedhn` where the command is given is not ours.
        command = [sys.executable, "-P", "-m", "mh_pfedhn.deployment.guard", self.host, str(self.port)]
        command += ["--host", _COMMAND_HOST, "--port", str(self.command_port)]
        command += ["--database", str(self.state / "state.db"), "--isolation", "subprocess"]
        if self.certs is None:
            return [*command, "--insecure"]
        return [
            *command,
            *("--ssl-certfile", str(self.certs / "server.pem")),
            *("--ssl-keyfile", str(self.certs / "server.key")),
            *("--ssl-ca-certfile", str(self.certs / "ca.crt")),
            "--enable-supernode-auth",
        ]

    def check(self) -> None:
        """Raises UserError for what would fail after the start, or only when the first site calls."""
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name) or self.name in ("default", "local", "supergrid"):
            raise UserError(f"--name is {self.name!r}, but must be letters, digits, '_' and '-', and not Flower's own.")
        if self.certs is not None:
            self._check_certs(self.certs)
        if self.port == self.command_port:
            raise UserError(f"--port and --command-port are both {self.port}: sites and commands need one each.")

    def check_ports(self) -> None:
        """Raises UserError where it could not listen."""
        check_port("--port", self.host, self.port)
        check_port("--command-port", _COMMAND_HOST, self.command_port)

    def _check_certs(self, certs: Path) -> None:
        for file in ("ca.crt", "server.pem", "server.key"):
            if not (certs / file).is_file():
                raise UserError(f"{certs / file} is missing; `mh-pfedhn certs {certs} --host …` makes it.")
        read_certificate(certs / "ca.crt")
        certificate = read_certificate(certs / "server.pem")
        now = datetime.datetime.now(datetime.UTC)
        try:
            chain = (certs / "server.pem", certs / "server.key")
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*chain, password="")
        except OSError as error:
            raise UserError(f"{certs / 'server.key'} is not the key of server.pem, or not readable.") from error
        if (ends := certificate.not_valid_after_utc) <= now:
            raise UserError(f"{certs / 'server.pem'} expired on {ends:%Y-%m-%d}: a new one is needed.")
        if _COMMAND_HOST not in (named := hosts_of(certificate)):
            raise UserError(
                f"{certs / 'server.pem'} is for {', '.join(sorted(named)) or 'no host'}, but commands on this "
                f"machine will reach the server as {_COMMAND_HOST}: it must be for that too."
            )
        if ends <= now + datetime.timedelta(days=30):
            say(f"{certs / 'server.pem'} expires on {ends:%Y-%m-%d}: have a new one made soon.")


def run_server(server: Server) -> int:
    """Keep a SuperLink running until SIGTERM or SIGINT; keep its registrations equal to `sites/*.pub`. Returns 0."""
    server = _absolute(server)
    server.check()
    check_connection(flower_home(os.environ) / "config.toml", server.name, server.address)
    with _only_server(server.state):
        if ended := end_processes_of(server.state):
            say(f"Ended {ended} processes that a killed server had left.")
        server.check_ports()
        _run(server)
    say("The server has stopped.")
    return 0


@contextlib.contextmanager
def _only_server(state: Path) -> Iterator[None]:
    """Make the state folder and keep every other server out of it; the lock goes with the process, however it ends."""
    try:
        state.mkdir(parents=True, mode=0o700, exist_ok=True)
        lock = FileLock(state / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"--state {state} is in use by another server: stop that one, or use another folder."
        ) from error
    except OSError as error:
        raise UserError(f"--state {state} cannot be written to: {error.strerror}.") from error
    with lock:
        yield


def _run(server: Server) -> None:
    ca = server.certs / "ca.crt" if server.certs else None
    # One for the user's `flwr` and `mh-pfedhn run`, one for this process's own calls, which nobody else edits.
    home = server.state / "flwr"
    for folder in (flower_home(os.environ), home):
        write_connection(folder / "config.toml", server.name, server.address, ca)
    environment = flower_environment(os.environ) | {"FLWR_HOME": str(home), OWNER: str(server.state)}
    environment.pop(STATE_FOLDER, None)
    registrar = None
    if server.certs:
        # Says to the ServerApp that node ids are bound to keys, and where the names of the keys are.
        environment[STATE_FOLDER] = str(server.state)
        registrar = Registrar(server.certs / "sites", server.state / "registered.json", server.name, environment)
    superlink = Child("superlink", server.command(), KEEP_MEMORY | environment)
    healthy = served = False
    with stopping() as stop:
        try:
            while not stop.wait(_TICK):
                if superlink.keep_running():
                    healthy = False
                    if not served:
                        raise UserError(f"Flower's SuperLink did not start ({superlink.reason}); its log is above.")
                if superlink.running and not healthy and is_healthy(server.address, ca):
                    say(f"The server is up: {server.host}:{server.port}, {_protection(server)}.")
                    if not served:
                        say(f"Start a run with: mh-pfedhn run PROFILE --superlink {server.name}")
                    healthy = served = True
                    if registrar:
                        registrar.recall()
                if healthy and registrar:
                    registrar.look()
        finally:
            superlink.stop()


def _absolute(server: Server) -> Server:
    certs = server.certs.expanduser().absolute() if server.certs else None
    return dataclasses.replace(server, state=server.state.expanduser().absolute(), certs=certs)


def _protection(server: Server) -> str:
    return "TLS, registered sites only" if server.certs else "INSECURE: no TLS, any site may join"
