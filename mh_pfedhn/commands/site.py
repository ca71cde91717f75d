"""`mh-pfedhn site`: what the operator of a site does, with a model and data that stay there."""

import argparse
from pathlib import Path

from common.errors import UserError
from mh_pfedhn.commands import Subparsers
from mh_pfedhn.commands.export import FORMATS


def add(commands: Subparsers) -> None:
    """Declare `site check`, `site run`, `site export`, and for servers `site forget`."""
    site = commands.add_parser("site", help="what a site does").add_subparsers(required=True, metavar="COMMAND")
    site_file = argparse.ArgumentParser(add_help=False)
    site_file.add_argument("site", type=Path, metavar="SITE.yaml", help="the site's model and data")
    check = site.add_parser(
        "check", parents=[site_file], help="build model and data offline; show what they are and what the server sees"
    )
    check.set_defaults(handle=_check)

    run = site.add_parser(
        "run", parents=[site_file], help="take part with a model and data of one's own until terminated"
    )
    run.add_argument("--server", required=True, metavar="HOST:PORT")
    run.add_argument("--ca", type=Path, metavar="ca.crt", help="the authority of the server's certificate")
    run.add_argument("--key", type=Path, metavar="sites/NAME", help="this site's private key")
    run.add_argument("--insecure", action="store_true", help="neither TLS nor a key")
    run.add_argument(
        "--port", type=int, default=9094, help="of this machine alone; another one for each site on it (default: 9094)"
    )
    run.set_defaults(handle=_run)

    export = site.add_parser("export", parents=[site_file], help="write the model of a finished run for plain PyTorch")
    export.add_argument("--run", required=True, metavar="RUN_NAME")
    export.add_argument("--output", type=Path, required=True, metavar="FILE", help="must not exist yet")
    export.add_argument(
        "--format",
        default="state-dict",
        choices=["state-dict", *FORMATS],
        help="weights for the model's own code, with a description beside them, or a program that needs no code; it "
        "takes what the site's data give",
    )
    export.set_defaults(handle=_export)

    forget = site.add_parser("forget", help="on the server: unbind a client key, which another site may then claim")
    forget.add_argument("key", metavar="KEY", help="the key, its beginning, or the name of its site")
    forget.add_argument("--state", type=Path, required=True, metavar="FOLDER", help="that of `mh-pfedhn server`")
    forget.set_defaults(handle=_forget)


def _check(options: argparse.Namespace) -> int:
    from client_app.site.tools import check

    check(options.site.expanduser())
    return 0


def _run(options: argparse.Namespace) -> int:
    from mh_pfedhn.deployment.site import SiteRun, run_site

    if options.insecure == bool(options.ca and options.key) or (options.insecure and (options.ca or options.key)):
        raise UserError("give --ca and --key, or --insecure for neither TLS nor authentication.")
    return run_site(SiteRun(options.site, options.server, options.ca, options.key, options.port))


def _export(options: argparse.Namespace) -> int:
    from client_app.site.tools import export

    output = options.output.expanduser()
    export(options.site.expanduser(), options.run, output, options.format)
    print(output)
    return 0


def _forget(options: argparse.Namespace) -> int:
    from server_app.rounds.bindings import Bindings

    forgotten = Bindings(options.state.expanduser()).forget(options.key)
    print(f"Unbound {', '.join(forgotten)}: whoever claims that key next keeps it.")
    return 0
