"""A method from outside this project, as its author writes it: a package with a module for each half."""

import itertools
from pathlib import Path

_NUMBERS = itertools.count()  # a module is imported once in a process, so every plugin needs names of its own

# `{package}` is the name of the package.
SERVER_HALF = """
from server_app.methods.base import Exchange, Method

class Server(Method):
    client = "{package}.client_half:Client"

    def round(self, cohort):
        yield Exchange("personal", to=cohort, deploys=True)

    def deploy(self, clients):
        yield Exchange("deploy", to=clients, deploys=True)
"""
CLIENT_HALF = """
from client_app.methods.base import ClientMethod

class Client(ClientMethod):
    def load(self, task):
        pass
"""
_SETTINGS = """
from dataclasses import dataclass
from pathlib import Path

from common.options import option
from common.settings import Settings

{decorator}
class Own(Settings):
    {line}
"""
DECORATOR = "@dataclass(frozen=True, kw_only=True)"


def write_plugin(
    folder: Path,
    server: str = SERVER_HALF,
    client: str = CLIENT_HALF,
    settings: str = "",
    server_settings: str = "",
    client_settings: str = "",
    decorator: str = DECORATOR,
) -> str:
    """Write a method into a package in this folder; return the name by which it is chosen.

    `settings` is the one line of the dataclass `Own`, which both halves have as their settings; the other two are that
    of one half alone.
    """
    package = f"plugin_{next(_NUMBERS)}"
    (folder / package).mkdir()
    (folder / package / "__init__.py").touch()
    for name, half, line in (
        ("server_half", server, server_settings or settings),
        ("client_half", client, client_settings or settings),
    ):
        text = half.replace("{package}", package)
        if line:
            text = f"{_SETTINGS.format(decorator=decorator, line=line)}\n{text}\n    Settings = Own\n"
        (folder / package / f"{name}.py").write_text(text)
    return f"{package}.server_half:Server"
