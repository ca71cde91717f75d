"""A site of a deployment: its trainer and its SuperNode are kept running, with the operator's own model and data."""

import os
import re
import secrets
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.files import write_text
from mh_pfedhn.deployment.certificates import read_certificate, read_site_key
from mh_pfedhn.deployment.heartbeat import Heartbeat
from mh_pfedhn.deployment.supervision import Child
from mh_pfedhn.private_folder import OWNER, private_folder
from mh_pfedhn.processes import KEEP_MEMORY, check_port, flower_environment, say, stopping, tool

_TICK = 0.2  # seconds between two looks at the processes
_FAILURES = 3  # of a trainer that has never served
_QUICK = 60.0  # seconds within which such a failure counts
_LONGEST_SOCKET = 107  # bytes of a path in sockaddr_un, less the zero at its end


@dataclass(frozen=True)
class SiteRun:
    """What `mh-pfedhn site run` is asked for; `ca` and `key` are None without TLS and authentication."""

    site: Path
    server: str
    ca: Path | None
    key: Path | None
    port: int

    def command(self, trainer_socket: Path, secret: Path) -> list[str]:
        """`flower-supernode` and its options."""
        settings = {"site": self.site, "trainer-socket": trainer_socket, "trainer-secret": secret}
        command = [tool("flower-supernode"), "--superlink", self.server]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--isolation", "subprocess"]
        command += ["--node-config", " ".join(f'{key}="{value}"' for key, value in settings.items())]
        if self.ca is None or self.key is None:
            return [*command, "--insecure"]
        return [*command, "--root-certificates", str(self.ca), "--auth-supernode-private-key", str(self.key)]

    def check(self) -> None:
        """Raises UserError for what would fail after the start, or be tried for ever."""
        if not self.site.is_file():
            raise UserError(f"there is no site file {self.site}.")
        if re.search(r'["\\\n]', str(self.site)):
            raise UserError(f"{self.site} has a character in its path that Flower's settings cannot hold.")
        host, _, port = self.server.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(f"--server is {self.server!r}, but must be HOST:PORT, such as fl.example.org:9290.")
        if self.key is not None:
            read_site_key(self.key)
        if self.ca is not None:
            read_certificate(self.ca)
            _check_tls(host.strip("[]"), int(port), self.ca)
        check_port("--port", "127.0.0.1", self.port)


def trainer_command(site: Path, trainer_socket: Path, secret: Path, heartbeat: Path) -> list[str]:
    """The process that holds model and data between messages."""
    # -P: a folder `common` or `client_app` where the command is given is not ours.
    command = [sys.executable, "-P", "-m", "client_app.resident", "--site", str(site)]
    return [*command, "--socket", str(trainer_socket), "--secret", str(secret), "--heartbeat", str(heartbeat)]


def run_site(site: SiteRun) -> int:
    """Keep a site's trainer and SuperNode running until SIGTERM or SIGINT. Returns 0.

    Raises UserError when the trainer fails three times in a row without ever having served.
    """
    site = SiteRun(
        site.site.expanduser().absolute(),
        site.server,
        site.ca.expanduser().absolute() if site.ca else None,
        site.key.expanduser().absolute() if site.key else None,
        site.port,
    )
    # First, since this ends what was left of a site that was killed, which may listen on the port.
    with private_folder() as folder, stopping() as stop:
        site.check()
        if site.ca is None:
            say("INSECURE: no TLS, and the server cannot tell this site from others.")
        trainer_socket, secret = folder / "trainer", folder / "secret"
        if len(os.fsencode(trainer_socket)) > _LONGEST_SOCKET:
            raise UserError(f"TMPDIR is {tempfile.gettempdir()!r}, which is too long for the path of a socket.")
        write_text(secret, secrets.token_hex(32), mode=0o600)
        environment = flower_environment(os.environ) | {OWNER: str(folder)}
        heartbeat = Heartbeat(Path(folder, "heartbeat"))
        command = trainer_command(site.site, trainer_socket, secret, heartbeat.path)
        trainer = Child("trainer", command, KEEP_MEMORY | environment)
        supernode = Child("supernode", site.command(trainer_socket, secret), environment)
        try:
            _supervise(trainer, supernode, trainer_socket, heartbeat, stop.wait)
        finally:
            # The SuperNode first, so that no message arrives that nobody answers.
            supernode.stop()
            trainer.stop()
    say("The site has stopped.")
    return 0


def _supervise(
    trainer: Child, supernode: Child, trainer_socket: Path, heartbeat: Heartbeat, wait: Callable[[float], bool]
) -> None:
    """Both run until `wait` says stop; the SuperNode joins when the trainer serves for the first time.

    A trainer whose heart does not beat is killed, and started again as after any other end.
    """
    served, failures = False, 0
    while not wait(_TICK):
        if not trainer.running:
            trainer_socket.unlink(missing_ok=True)
            heartbeat.forget()
        elif heartbeat.has_stopped():
            say(f"The trainer has given no sign of life for {heartbeat.patience:.0f} s, so it is killed.")
            trainer.kill()
            heartbeat.forget()
        if trainer.keep_running() and not served:
            failures = failures + 1 if trainer.lasted < _QUICK else 0
            if failures == _FAILURES:
                lines = "\n".join(f"  {line}" for line in trainer.lines)
                raise UserError(f"the trainer failed {failures} times before it ever served; its last lines:\n{lines}")
        if not served and trainer_socket.is_socket():
            served = True
            say("The trainer serves; the SuperNode starts.")
        if served:
            supernode.keep_running()


def _check_tls(host: str, port: int, ca: Path) -> None:
    """Raises UserError for a server that will never be accepted. One that is not there may come later."""
    try:
        context = ssl.create_default_context(cafile=ca)
        with (
            socket.create_connection((host, port), timeout=5) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        message = error.verify_message.rstrip(".")
        raise UserError(
            f"{host}:{port} does not prove to be the server: {message}; check --server and --ca."
        ) from error
    except ssl.SSLError as error:
        raise UserError(f"{host}:{port} does not speak TLS; check --server.") from error
    except OSError as error:
        say(f"{host}:{port} does not answer yet ({error}); it is tried until it does.")
