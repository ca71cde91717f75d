"""`mh-pfedhn server`: the server of a deployment."""

import argparse
from pathlib import Path

from mh_pfedhn.commands import Subparsers


def add(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser("server", help="run the server until it is terminated")
    parser.add_argument(
        "--state", type=Path, required=True, metavar="FOLDER", help="database and settings; made if new"
    )
    protection = parser.add_mutually_exclusive_group(required=True)
    protection.add_argument(
        "--certs", type=Path, metavar="FOLDER", help="ca.crt, server.pem, server.key; sites/*.pub are who may join"
    )
    protection.add_argument("--insecure", action="store_true", help="no TLS, and any site may join")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on for sites (default: all)")
    parser.add_argument("--port", type=int, default=9290, help="for sites (default: 9290)")
    parser.add_argument(
        "--command-port", type=int, default=9291, help="for commands, on this machine alone (default: 9291)"
    )
    parser.add_argument(
        "--name", default="consortium", help="for `mh-pfedhn run --superlink NAME` (default: consortium)"
    )
    parser.set_defaults(handle=_server)


def _server(options: argparse.Namespace) -> int:
    from mh_pfedhn.deployment.server import Server, run_server

    return run_server(
        Server(
            options.state,
            options.certs,
            host=options.host,
            port=options.port,
            command_port=options.command_port,
            name=options.name,
        )
    )
