"""`mh-pfedhn certs`: certificates and keys for a server and its sites."""

import argparse
from pathlib import Path

from mh_pfedhn.commands import Subparsers


def add(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser("certs", help="make certificates and keys for a server and its sites")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where they are made; what exists there stays")
    parser.add_argument(
        "--host", action="append", default=[], metavar="NAME_OR_IP", help="how sites reach the server; may be repeated"
    )
    parser.add_argument(
        "--site", action="append", default=[], metavar="NAME", help="a site's key pair; may be repeated"
    )
    parser.set_defaults(handle=_certs)


def _certs(options: argparse.Namespace) -> int:
    from mh_pfedhn.deployment.certificates import make_certs

    print(make_certs(options.folder, options.host, options.site))
    return 0
