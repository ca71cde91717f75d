"""A folder with a site file and certificates, and supervision without its delays."""

from pathlib import Path

import pytest

from mh_pfedhn.cli import main
from mh_pfedhn.deployment import server, site, supervision
from mh_pfedhn.deployment.certificates import make_certs

MISTAKE = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "certs"
    text = make_certs(folder, ["fl.example.org", "192.0.2.7"], ["hospital-a", "hospital-b"])
    return folder, text


@pytest.fixture
def complaint(capsys, tmp_path, monkeypatch):
    """Run the command with a mistake in a folder with a site file and certificates; return what it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    Path("site.yaml").write_text("")
    make_certs(Path("certs"), ["fl.example.org"], ["a"])

    def run(*arguments):
        assert main(arguments) == MISTAKE
        error = capsys.readouterr().err
        assert error.startswith("mh-pfedhn: ")
        assert "Traceback" not in error
        return error

    return run


@pytest.fixture
def quick(monkeypatch):
    """Delays a hundredth as long."""
    monkeypatch.setattr(supervision, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(supervision, "_LONGEST_DELAY", 0.3)
    monkeypatch.setattr(server, "_TICK", 0.01)
    monkeypatch.setattr(site, "_TICK", 0.01)
