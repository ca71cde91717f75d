"""Profile files and plugins of a user's own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from plugin_files import write_plugin


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
    """Write a method from outside where it can be imported; see `write_plugin`."""
    monkeypatch.syspath_prepend(tmp_path)
    return partial(write_plugin, tmp_path)
