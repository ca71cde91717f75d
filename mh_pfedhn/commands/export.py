"""`mh-pfedhn export`: the personal model of a simulated client, as a program that needs nothing but PyTorch."""

import argparse
from pathlib import Path

from common.errors import UserError
from common.text import nearest
from mh_pfedhn.commands import Subparsers

# Those of `client_app/programs.py` and the endings of their files, here too since a parser is made without PyTorch.
FORMATS = {"torch-export": ".pt2", "torchscript": ".pt"}
_NAMED = 10  # of the runs or clients that there are


def add(commands: Subparsers) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "export", help="write the personal model of a simulated client as a program for plain PyTorch"
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="results folder of a finished run")
    parser.add_argument("client", metavar="CLIENT", help="its key, as in clients.csv")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="must not exist yet (default: RUN-CLIENT.pt2 in the working folder)"
    )
    parser.add_argument(
        "--format",
        default="torch-export",
        choices=FORMATS,
        help="what torch.export.load reads, or torch.jit.load, which PyTorch has declared deprecated",
    )
    parser.set_defaults(handle=_export)


def _export(options: argparse.Namespace) -> int:
    from client_app.personal import build_described, read_personal
    from client_app.programs import write_program
    from mh_pfedhn.simulation import import_from_here

    run_dir = options.run_dir.expanduser()
    folder = _folder_of(run_dir, options.client)
    name = f"{run_dir.resolve().name}-{options.client}{FORMATS[options.format]}"
    output = options.output.expanduser() if options.output else Path(name)
    import_from_here()  # a model of the user's own
    personal = read_personal(folder)
    write_program(personal, build_described(personal.about), output, options.format)
    print(output)
    return 0


def _folder_of(run_dir: Path, client: str) -> Path:
    """The folder with the personal model of a client. Raises UserError where there is none."""
    from client_app.store import PERSONAL_MODEL
    from server_app.client import natural_order

    if not (run_dir / "config.yaml").exists():
        runs = sorted(each.parent.name for each in run_dir.parent.glob("*/config.yaml"))
        raise UserError(f"{run_dir} is no folder of a run{nearest(run_dir.name, runs) or _listed('runs there', runs)}")
    clients = sorted((each.name for each in (run_dir / "clients").glob("*/")), key=natural_order)
    if not clients:
        raise UserError(
            f"{run_dir} holds no models of clients: sites keep theirs, and each exports its own with mh-pfedhn site "
            "export."
        )
    if client not in clients:
        hint = "" if client.isdigit() else nearest(client, clients)
        raise UserError(f"{run_dir} has no client {client!r}{hint or _listed('clients', clients)}")
    if not (run_dir / "summary.json").exists():
        raise UserError(
            f"{run_dir} is not finished, so its clients have no personal models yet: wait for it, or go on with it by "
            f"resume=latest run-name={run_dir.resolve().name}."
        )
    folder = run_dir / "clients" / client
    if not (folder / f"{PERSONAL_MODEL}.pt").exists():
        raise UserError(
            f"Client {client} got no personal model at the end of {run_dir}: its report names what went wrong there."
        )
    return folder


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"; {what}: {', '.join(names[:_NAMED]) or 'none'}{more}."
