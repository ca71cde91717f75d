"""The operator's side of a real deployment: certificates and keys, the server, a site.

Thin wrappers over Flower's own `flower-superlink`, `flower-supernode` and `flwr`, with TLS and SuperNode
authentication unless the operator says otherwise.
"""

import datetime
import ipaddress
import json
import os
import re
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import UserError
from common.processes import KEEP_MEMORY, OFFLINE, Child, is_healthy, say, stopping, tool

_VALID = datetime.timedelta(days=730)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_ALWAYS = ("localhost", "127.0.0.1")
_LOOK_EVERY = 3.0  # seconds
_TICK = 0.2
_FAILURES = 3  # of a trainer that has never served
_QUICK = 60.0  # seconds within which such a failure counts
_LONGEST_SOCKET = 107  # bytes of a path in sockaddr_un, less the zero at its end


# --- Certificates and keys


def make_certs(folder: Path, hosts: Sequence[str], sites: Sequence[str]) -> str:
    """Make what is missing of an authority, a server certificate and the sites' keys; say what goes to whom.

    Nothing that exists is overwritten. Raises UserError for names that cannot be, and when what exists does not fit.
    """
    for site in sites:
        if not _NAME.fullmatch(site):
            raise UserError(f"--site is {site!r}, but must be letters, digits, '.', '_' and '-', such as hospital-a.")
    names = [_general_name(host) for host in dict.fromkeys((*hosts, *_ALWAYS))]
    made: list[str] = []
    try:
        (folder / "sites").mkdir(parents=True, exist_ok=True)
        if (folder / "server.pem").exists():
            _check_hosts(folder, hosts)
        elif not hosts:
            raise UserError("--host is missing: the name or address under which the sites reach the server.")
        else:
            made += _make_server(folder, names)
        for site in dict.fromkeys(sites):
            made += _make_site(folder / "sites" / site)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written or read: {error.strerror}.") from error
    certificate = _certificate(folder / "server.pem")
    return "\n".join(
        [
            f"{folder}: made {', '.join(made)}." if made else f"{folder}: everything was there already.",
            f"The server's certificate is for {', '.join(sorted(_hosts_of(certificate)))}; certificates are valid for "
            f"two years, this one until {certificate.not_valid_after_utc:%Y-%m-%d}.",
            "",
            "to the server   ca.crt, server.pem, server.key, sites/*.pub",
            "to each site    ca.crt and its own sites/NAME",
            "to nobody       ca.key: whoever has it can pretend to be the server",
            "",
            "A site that makes its own key (ssh-keygen -t ecdsa -b 384 -N '' -f NAME) sends only NAME.pub.",
        ]
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST_NAME.fullmatch(host):
            raise UserError(f"--host is {host!r}, but must be a name or an address, without a port.") from None
        return x509.DNSName(host)


def _hosts_of(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)}


def _check_hosts(folder: Path, hosts: Sequence[str]) -> None:
    named = _hosts_of(_certificate(folder / "server.pem"))
    if missing := set(hosts) - named:
        raise UserError(
            f"{folder / 'server.pem'} exists and is for {', '.join(sorted(named))}, but not for "
            f"{', '.join(sorted(missing))}: remove server.pem and server.key to have them made again."
        )


def _certificate(path: Path) -> x509.Certificate:
    """Raises UserError when the file is missing or is no certificate."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not a certificate in PEM form.") from error


def _make_server(folder: Path, names: Sequence[x509.GeneralName]) -> list[str]:
    if (folder / "server.key").exists():
        raise UserError(f"{folder / 'server.key'} exists, but not server.pem: remove the key to have both made again.")
    made, authority, authority_key = _authority(folder)
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = (
        _unsigned("mh-pfedhn server", key, authority.subject)
        .not_valid_after(min(_now() + _VALID, authority.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    _write_private(folder / "server.key", _pem(key))
    (folder / "server.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    return [*made, "server.pem", "server.key"]


def _authority(folder: Path) -> tuple[list[str], x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority of this folder, made if there is none."""
    certificate_path, key_path = folder / "ca.crt", folder / "ca.key"
    if certificate_path.exists() != key_path.exists():
        there, missing = sorted((certificate_path, key_path), key=Path.exists, reverse=True)
        raise UserError(f"{there} exists, but not {missing.name}, which a new server.pem needs.")
    if certificate_path.exists():
        certificate = _certificate(certificate_path)
        try:
            key = load_pem_private_key(key_path.read_bytes(), None)
        except (ValueError, TypeError) as error:
            raise UserError(f"{key_path} is not a private key in PEM form without a passphrase.") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise UserError(f"{key_path} is not the key of {certificate_path.name}.")
        if certificate.not_valid_after_utc <= _now():
            raise UserError(f"{certificate_path} has expired: use a new folder, and give its ca.crt to every site.")
        return [], certificate, key
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = (
        _unsigned("mh-pfedhn authority", key, None)
        .not_valid_after(_now() + _VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    _write_private(key_path, _pem(key))
    certificate_path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return ["ca.crt", "ca.key"], certificate, key


def _unsigned(name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name | None) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - datetime.timedelta(hours=1))  # for sites whose clocks are behind
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(**allowed: bool) -> x509.KeyUsage:
    kinds = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    kinds += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**(dict.fromkeys(kinds, False) | allowed))


def _make_site(private: Path) -> list[str]:
    """A key pair in the form that `ssh-keygen -t ecdsa -b 384` writes. A public key alone is left as it is."""
    public = private.with_name(private.name + ".pub")
    if public.exists():
        return []
    made = [f"sites/{public.name}"]
    if private.exists():
        key = _site_key(private)
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        _write_private(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        made = [f"sites/{private.name}", *made]
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    public.write_bytes(line + f" {private.name}\n".encode())
    return made


def _site_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises UserError when the file is missing or is no key that a SuperNode can use."""
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a private key in OpenSSH form without a passphrase.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{path} is not an elliptic-curve key; `ssh-keygen -t ecdsa -b 384` makes one.")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_private(path: Path, content: bytes) -> None:
    """For the owner's eyes only from its first byte on; never over a file that exists."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


# --- The server


@dataclass(frozen=True)
class Server:
    """What `mh-pfedhn server` is asked for; `certs` is None without TLS and authentication."""

    state: Path
    certs: Path | None
    host: str
    port: int
    name: str

    @property
    def address(self) -> str:
        """Where commands on this machine reach it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def command(self) -> list[str]:
        """`flower-superlink` as `superlink` below starts it, and its options."""
        # -P: a folder `common` where the command is given is not ours.
        command = [sys.executable, "-P", "-m", "common.deploy", "--host", self.host, "--port", str(self.port)]
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
            for file in ("ca.crt", "server.pem", "server.key"):
                if not (self.certs / file).is_file():
                    raise UserError(
                        f"{self.certs / file} is missing; `mh-pfedhn certs {self.certs} --host …` makes it."
                    )
            _certificate(self.certs / "ca.crt")
            certificate = _certificate(self.certs / "server.pem")
            try:
                chain = (self.certs / "server.pem", self.certs / "server.key")
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*chain, password="")
            except OSError as error:
                raise UserError(
                    f"{self.certs / 'server.key'} is not the key of server.pem, or not readable."
                ) from error
            if (ends := certificate.not_valid_after_utc) <= _now():
                raise UserError(f"{self.certs / 'server.pem'} expired on {ends:%Y-%m-%d}: a new one is needed.")
            host = self.address.rpartition(":")[0].strip("[]")
            if host not in (named := _hosts_of(certificate)):
                raise UserError(
                    f"{self.certs / 'server.pem'} is for {', '.join(sorted(named)) or 'no host'}, but commands on this "
                    f"machine will reach the server as {host}: it must be for that too."
                )
            if ends <= _now() + datetime.timedelta(days=30):
                say(f"{self.certs / 'server.pem'} expires on {ends:%Y-%m-%d}: have a new one made soon.")
        _check_port("--port", self.host, self.port)


def run_server(server: Server) -> int:
    """Keep a SuperLink running until SIGTERM or SIGINT; keep its registrations equal to `sites/*.pub`. Returns 0."""
    server = _absolute(server)
    server.check()
    home = server.state / "flwr"
    try:
        server.state.mkdir(parents=True, mode=0o700, exist_ok=True)
        home.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"--state {server.state} cannot be written to: {error.strerror}.") from error
    ca = server.certs / "ca.crt" if server.certs else None
    # One for the user's `flwr` and `mh-pfedhn run`, one for this process's own calls, which nobody else edits.
    for folder in (flower_home(os.environ), home):
        write_connection(folder / "config.toml", server.name, server.address, ca)
    environment = flower_environment(os.environ) | {"FLWR_HOME": str(home)}
    superlink = Child("superlink", server.command(), KEEP_MEMORY | environment)
    registrar = None
    if server.certs:
        registrar = Registrar(server.certs / "sites", server.state / "registered.json", server.name, environment)
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
    say("The server has stopped.")
    return 0


def _absolute(server: Server) -> Server:
    certs = server.certs.expanduser().absolute() if server.certs else None
    return Server(server.state.expanduser().absolute(), certs, server.host, server.port, server.name)


def _protection(server: Server) -> str:
    return "TLS, registered sites only" if server.certs else "INSECURE: no TLS, any site may join"


class Guard:
    """Middleware that lets other machines do only what SuperNodes do.

    Accounts for Flower's control API are not in its open distribution. Without them anybody who reaches the port could
    register a key of their own, or start a run, which is code of their choice on the server and the sites.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer 403 to a stranger."""
        if scope["type"] != "http" or scope["path"].startswith(("/v1/fleet/", "/health")) or _is_local(scope):
            await self._app(scope, receive, send)
            return
        body = json.dumps({"detail": "This server takes commands from its own machine only."}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _is_local(scope: dict[str, Any]) -> bool:
    """Whether a request comes from this machine: over loopback, or from the very address that it is sent to."""
    client, server = (ipaddress.ip_address(scope[end][0]) for end in ("client", "server"))
    return client.is_loopback or client == server


def superlink() -> None:
    """Flower's `flower-superlink` behind the guard."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    if not callable(getattr(extensions, "get_middleware", None)):
        raise RuntimeError("this release of Flower does not take the middleware that guards the server")
    extensions.get_middleware = lambda: (Middleware(Guard),)
    flower_superlink()


def flower_home(environment: Mapping[str, str]) -> Path:
    """The folder in which `flwr` looks for its config.toml."""
    return Path(environment.get("FLWR_HOME") or Path.home() / ".flwr")


def flower_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Offline; Flower's processes start each other by name, so this environment's commands come first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    return {**environment, **OFFLINE, "PATH": path}


def write_connection(path: Path, name: str, address: str, ca: Path | None) -> None:
    """Put the connection `name` into Flower's config.toml; everything else, comments included, stays as it is.

    Raises UserError when the file is no TOML, or has the connection in a form that cannot be replaced safely.
    """
    wanted: dict[str, Any] = {"address": address, **({"root-certificates": str(ca)} if ca else {"insecure": True})}
    # What Flower itself would write first; JSON's strings and booleans are TOML's.
    text = '[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = ":local:"\n'
    table = f"[superlink.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in wanted.items())
    try:
        if path.exists():
            text = path.read_text()
        before = tomllib.loads(text)
        if before.get("superlink", {}).get(name) == wanted:
            return
        lines = text.splitlines(keepends=True)
        kept = "".join(_without_table(lines, name)).rstrip("\n")
        text = f"{kept}\n\n{table}"
        expected = {**before, "superlink": {**before.get("superlink", {}), name: wanted}}
        if tomllib.loads(text) != expected:
            raise UserError(
                f"{path} has the connection {name!r} in an unusual form: remove it there, or choose a --name."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML ({error}): correct it first.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def _without_table(lines: list[str], name: str) -> list[str]:
    """The lines of a TOML file without the table of one connection and its sub-tables."""
    header = re.compile(r"\s*\[\s*superlink\s*\.\s*(?P<quote>[\"']?)" + re.escape(name) + r"(?P=quote)\s*[.\]]")
    kept, inside = [], False
    for line in lines:
        if line.lstrip().startswith("["):
            inside = header.match(line) is not None
        if not inside:
            kept.append(line)
    return kept


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader, and a crash, finds the old or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    if path.exists():
        temporary.chmod(path.stat().st_mode & 0o777)
    os.replace(temporary, path)


class Registrar:
    """Keeps the SuperNodes that a SuperLink has registered equal to the public keys in a folder.

    Flower's list of nodes tells neither key nor name, so the record keeps, for each file name, key and node id. Nodes
    that were registered in another way are not in it, and left alone.
    """

    def __init__(self, folder: Path, record: Path, superlink: str, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._path = record
        self._superlink = superlink
        self._environment = environment
        self._record: dict[str, dict[str, str]] = {}
        self._refused: dict[str, str] = {}  # by file name, the content that was refused and has been complained about
        self._next_look = 0.0
        self._folder_seen = True

    def recall(self) -> None:
        """Read the record, less what the SuperLink does not know (any more): its database may be a new one."""
        try:
            self._record = json.loads(self._path.read_text()) if self._path.exists() else {}
            answer = self._flwr("list")
        except (OSError, ValueError, FlowerRefusedError) as error:
            say(f"Registrations could not be read: {error}")
            return
        known = {node["node-id"] for node in answer["nodes"] if node["status"] != "unregistered"}
        for name in [name for name, entry in self._record.items() if entry["node-id"] not in known]:
            del self._record[name]
        say(f"{len(known)} sites are registered, {len(self._record)} of them from {self._folder}.")

    def look(self) -> None:
        """Register keys that have come, unregister keys that have gone, every few seconds."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_EVERY
        # A folder that is not there, such as one that is not mounted, must not unregister everybody.
        if self._folder.is_dir() != self._folder_seen:
            self._folder_seen = not self._folder_seen
            say(f"{self._folder} is {'there' if self._folder_seen else 'missing; registrations stay as they are'}.")
        if not self._folder_seen:
            return
        files = {path.name.removesuffix(".pub"): path for path in sorted(self._folder.glob("*.pub"))}
        try:
            for name in [name for name in self._record if name not in files]:
                self._unregister(name)
            for name, path in files.items():
                self._consider(name, path)
        except (FlowerRefusedError, OSError) as error:
            say(f"Registrations could not be changed, which is tried again: {error}")

    def _consider(self, name: str, path: Path) -> None:
        try:
            content = path.read_text()
            load_ssh_public_key(content.encode())
        except (OSError, ValueError):  # also cryptography's UnsupportedAlgorithm
            self._complain(name, "", f"{path} is not a public key in OpenSSH form; it is ignored.")
            return
        key = " ".join(content.split()[:2])
        if self._record.get(name, {}).get("key") == key or self._refused.get(name) == key:
            return
        if name in self._record:
            self._unregister(name)
        try:
            answer = self._flwr("register", str(path), name="--name=" + name)
        except FlowerRefusedError as error:
            if "already in use" not in str(error):
                raise
            self._complain(
                name,
                key,
                f"The key of {name} is in the database already: registered in another way, or removed before; a "
                "removed key cannot come back, make a new one.",
            )
            return
        self._record[name] = {"key": key, "node-id": str(answer["node-id"])}
        self._save()
        say(f"Registered {name} as node {answer['node-id']}.")

    def _unregister(self, name: str) -> None:
        node = self._record[name]["node-id"]
        self._flwr("unregister", node)
        del self._record[name]
        self._save()
        say(f"Unregistered {name}, node {node}.")

    def _complain(self, name: str, content: str, text: str) -> None:
        if self._refused.get(name) != content:
            self._refused[name] = content
            say(text)

    def _save(self) -> None:
        _replace(self._path, json.dumps(self._record, indent=1) + "\n")

    def _flwr(self, command: str, *arguments: str, name: str | None = None) -> dict[str, Any]:
        words = [tool("flwr"), "supernode", command, *arguments, self._superlink, "--format", "json"]
        if name:
            words.append(name)
        try:
            done = subprocess.run(
                words, env=self._environment, capture_output=True, text=True, errors="replace", timeout=60, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise FlowerRefusedError(f"`flwr supernode {command}` did not answer within 60 s.") from error
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            answer = {"success": False, "error-message": (done.stdout + done.stderr).strip()}
        if not answer.get("success"):
            raise FlowerRefusedError(" ".join(str(answer.get("error-message", answer)).split()))
        return answer


class FlowerRefusedError(Exception):
    """What a `flwr` command said when it failed."""


def _check_port(option: str, host: str, port: int) -> None:
    """Raises UserError when nothing could listen there."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except (OSError, OverflowError) as error:
        raise UserError(f"{option} {port} on {host} cannot be listened on: {error}.") from error


# --- A site


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
            _site_key(self.key)
        if self.ca is not None:
            _certificate(self.ca)
            _check_tls(host.strip("[]"), int(port), self.ca)
        _check_port("--port", "127.0.0.1", self.port)


def trainer_command(site: Path, trainer_socket: Path, secret: Path) -> list[str]:
    """The process that holds model and data between messages."""
    command = [sys.executable, "-m", "client_app.resident", "--site", str(site)]
    return [*command, "--socket", str(trainer_socket), "--secret", str(secret)]


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
    site.check()
    if site.ca is None:
        say("INSECURE: no TLS, and the server cannot tell this site from others.")
    # Made with mode 0700.
    with tempfile.TemporaryDirectory(prefix="mh-pfedhn-") as folder, stopping() as stop:
        trainer_socket, secret = Path(folder, "trainer"), Path(folder, "secret")
        if len(os.fsencode(trainer_socket)) > _LONGEST_SOCKET:
            raise UserError(f"TMPDIR is {tempfile.gettempdir()!r}, which is too long for the path of a socket.")
        _write_private(secret, secrets.token_hex(32).encode())
        environment = flower_environment(os.environ)
        trainer = Child("trainer", trainer_command(site.site, trainer_socket, secret), KEEP_MEMORY | environment)
        supernode = Child("supernode", site.command(trainer_socket, secret), environment)
        try:
            _supervise(trainer, supernode, trainer_socket, stop.wait)
        finally:
            # The SuperNode first, so that no message arrives that nobody answers.
            supernode.stop()
            trainer.stop()
    say("The site has stopped.")
    return 0


def _supervise(trainer: Child, supernode: Child, trainer_socket: Path, wait: Any) -> None:
    """Both run until `wait` says stop; the SuperNode joins when the trainer serves for the first time."""
    served, failures = False, 0
    while not wait(_TICK):
        if not trainer.running:
            trainer_socket.unlink(missing_ok=True)
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


if __name__ == "__main__":
    superlink()
