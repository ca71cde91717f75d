"""Profile files and plugins of a user's own."""

import itertools
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

_NUMBERS = itertools.count()  # a module is imported once in a process, so every plugin needs names of its own

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


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Write a profile file of the user's own; relative names start at its folder."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        return name

    return write


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a method from outside into a package that can be imported; the name by which it is chosen.

    `{package}` in the text of a half is the package's name, `settings` are the lines of a dataclass that both halves
    have as their settings, or the one whose lines are given.
    """
    monkeypatch.syspath_prepend(tmp_path)

    def write(
        server: str = SERVER_HALF,
        client: str = CLIENT_HALF,
        settings: str = "",
        server_settings: str = "",
        client_settings: str = "",
        decorator: str = "@dataclass(frozen=True, kw_only=True)",
    ) -> str:
        package = f"plugin_{next(_NUMBERS)}"
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").touch()
        halves = {
            "server_half": (server, server_settings or settings),
            "client_half": (client, client_settings or settings),
        }
        for name, (text, lines) in halves.items():
            text = textwrap.dedent(text).replace("{package}", package)
            if lines:
                declared = "\n".join(f"    {line.strip()}" for line in lines.strip().splitlines())
                text = (
                    "from dataclasses import dataclass\nfrom pathlib import Path\n"
                    "from common.options import option\nfrom common.settings import Settings\n\n"
                    f"{decorator}\nclass Own(Settings):\n{declared}\n" + text + "\n    Settings = Own\n"
                )
            (folder / f"{name}.py").write_text(text)
        return f"{package}.server_half:Server"

    return write
