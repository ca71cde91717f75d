"""The connections in Flower's config.toml, by which `flwr` and `mh-pfedhn run --superlink NAME` find a SuperLink."""

import contextlib
import tomllib
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from common.errors import UserError
from common.files import write_text
from mh_pfedhn.private_folder import OWNER, private_folder
from mh_pfedhn.processes import is_healthy

# What Flower itself would write first.
_NEW = '[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = ":local:"\n'


def flower_home(environment: Mapping[str, str]) -> Path:
    """The folder in which `flwr` looks for its config.toml."""
    return Path(environment.get("FLWR_HOME") or Path.home() / ".flwr")


def read_connections(path: Path) -> dict[str, dict[str, Any]]:
    """The connections in Flower's config.toml by name. Raises UserError when the file cannot be read as TOML."""
    try:
        superlink = tomllib.loads(path.read_bytes().decode()).get("superlink", {})
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid TOML ({error}): correct it first.") from error
    if not isinstance(superlink, dict):
        raise UserError(f"{path} has no table of connections under superlink: correct it first.")
    return {name: connection for name, connection in superlink.items() if isinstance(connection, dict)}


@contextlib.contextmanager
def connected(name: str, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """An environment in which `flwr` knows this connection of the user's as it is now, and no other.

    What is written into the user's file meanwhile cannot send a command about a run to another server. Raises UserError
    when there is no such connection, or nothing answers there. Of a server with accounts Flower keeps tokens beside the
    user's file and renews them there, so with those the environment is the user's.
    """
    home = flower_home(environment)
    connection = _checked(home / "config.toml", name)
    with private_folder() as folder:
        tokens = home / "credentials.yaml"
        if not tokens.exists() or connection["address"] not in tokens.read_text():
            document = {"superlink": {"default": name, name: connection}}
            write_text(folder / "config.toml", tomlkit.dumps(document), mode=0o600)
            home = folder
        yield {**environment, "FLWR_HOME": str(home), OWNER: str(folder)}


def _checked(path: Path, name: str) -> dict[str, Any]:
    """The connection of that name, to a SuperLink that answers."""
    from mh_pfedhn.deployment.certificates import read_certificate  # here, since most commands need no cryptography

    connections = read_connections(path)
    if name not in connections:
        known = f"it has {', '.join(map(repr, connections))}" if connections else "`mh-pfedhn server` writes one"
        raise UserError(f"--superlink is {name!r}, but {path} has no such connection: {known}.")
    connection = connections[name]
    address, ca = connection.get("address"), connection.get("root-certificates")
    if not isinstance(address, str) or address.startswith(":"):
        raise UserError(f"--superlink is {name!r}, which {path} gives no address: leave it out for a simulation.")
    if ca is not None and not (isinstance(ca, str) and Path(ca).is_absolute()):
        raise UserError(f"{path}: root-certificates of {name!r} is {ca!r}, but must be an absolute path.")
    if ca is not None:
        read_certificate(Path(ca))
    # Of a server that the system's authorities vouch for, Flower says itself whether it is there.
    if (ca or connection.get("insecure")) and not is_healthy(address, Path(ca) if ca else None):
        raise UserError(f"--superlink is {name!r}, but nothing answers at {address}: is its server running?")
    return connection


def check_connection(path: Path, name: str, address: str) -> None:
    """Raise UserError when the name stands for another server, to which runs of that name would go."""
    connection = read_connections(path).get(name)
    if connection is not None and connection.get("address") != address:
        raise UserError(
            f"{path} has a connection {name!r} already, to {connection.get('address', 'no address')}, and this "
            f"server's is {address}: choose another --name, or remove [superlink.{name}] there if it is no more."
        )


def write_connection(path: Path, name: str, address: str, ca: Path | None) -> None:
    """Put the connection `name` into Flower's config.toml; everything else, comments included, stays as it is.

    `ca` is the authority of the server's certificate, None without TLS. Raises UserError when the file is no TOML.
    """
    wanted: dict[str, object] = {"address": address, **({"root-certificates": str(ca)} if ca else {"insecure": True})}
    try:
        # Bytes, since reading as text would change the ends of the lines of a file from Windows.
        text = path.read_bytes().decode() if path.exists() else _NEW
        document = tomlkit.parse(text)
        connections = document.setdefault("superlink", tomlkit.table(is_super_table=True))
        if not isinstance(connections, MutableMapping):
            raise UserError(f"{path} has no table of connections under superlink: correct it first.")
        _set(connections, name, wanted)
        changed = tomlkit.dumps(document)
        if changed == text and path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, changed)
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML ({error}): correct it first.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def _set(connections: MutableMapping[str, object], name: str, wanted: Mapping[str, object]) -> None:
    """Make one connection what is wanted, in the form that it has, so that the comments beside it stay."""
    connection = connections.get(name)
    if not isinstance(connection, MutableMapping):
        inline = isinstance(connections, tomlkit.items.InlineTable)
        connection = tomlkit.inline_table() if inline else tomlkit.table()
        connection.update(wanted)
        connections[name] = connection
        return
    for key in [key for key in connection if key not in wanted]:
        del connection[key]
    for key, value in wanted.items():
        if connection.get(key) != value:
            connection[key] = value
