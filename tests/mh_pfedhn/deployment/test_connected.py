"""`mh-pfedhn run --superlink NAME` holds on to the server that the name stood for when it was given."""

import contextlib
import http.server
import threading
import tomllib
from pathlib import Path

import pytest

from common.errors import UserError
from mh_pfedhn.deployment.certificates import make_certs
from mh_pfedhn.deployment.connections import connected, write_connection
from mh_pfedhn.private_folder import OWNER
from mh_pfedhn.processes import free_port


class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def address():
    """That of a SuperLink, as far as it tells that it is there."""
    with http.server.HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def write(home, text):
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(text)


def test_a_run_has_a_copy_of_its_connection_alone_that_nobody_else_changes(home, address):
    other = '[superlink]\ndefault = "other"\n[superlink.other]\naddress = "1.2.3.4:5"\n'
    lab = f'{other}[superlink.lab]\naddress = "{address}"\n'
    write(home, lab + 'insecure = true\nfederation = "@a/b"\n')
    with connected("lab", {"FLWR_HOME": str(home), "X": "1"}) as environment:
        folder = Path(environment["FLWR_HOME"])
        write(home, lab.replace(address, "6.7.8.9:10"))
        settings = tomllib.loads((folder / "config.toml").read_text())["superlink"]
        assert settings == {"default": "lab", "lab": {"address": address, "insecure": True, "federation": "@a/b"}}
        assert folder.stat().st_mode & 0o077 == 0
        assert (environment[OWNER], environment["X"]) == (str(folder), "1")
    assert not folder.exists()


@pytest.mark.parametrize("elsewhere", [True, False])
def test_tokens_of_a_server_with_accounts_stay_where_flower_renews_them(home, address, elsewhere):
    write_connection(home / "config.toml", "lab", address, None)
    (home / "credentials.yaml").write_text(f"flwr.{'1.2.3.4:5' if elsewhere else address}.access-token: abc\n")
    with connected("lab", {"FLWR_HOME": str(home)}) as environment:
        assert (environment["FLWR_HOME"] == str(home)) is not elsewhere
        assert environment[OWNER] != str(home)


def refusal(name, home):
    with pytest.raises(UserError) as refused, connected(name, {"FLWR_HOME": str(home)}):
        pass
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_name_that_is_not_known_is_told_with_those_that_are(home):
    path = home / "config.toml"
    assert refusal("nope", home) == (
        f"--superlink is 'nope', but {path} has no such connection: `mh-pfedhn server` writes one."
    )
    write(home, '[superlink]\ndefault = "a"\n[superlink.a]\naddress = "h:1"\n[superlink.b]\naddress = "h:2"\n')
    assert refusal("nope", home) == f"--superlink is 'nope', but {path} has no such connection: it has 'a', 'b'."


def test_a_server_that_does_not_answer_is_told_with_its_address(home):
    address = f"127.0.0.1:{free_port()}"
    write_connection(home / "config.toml", "lab", address, None)
    assert refusal("lab", home) == f"--superlink is 'lab', but nothing answers at {address}: is its server running?"


@pytest.mark.parametrize(
    ("connection", "part"),
    [
        ('address = ":local:"', "leave it out for a simulation"),
        ("options.num-supernodes = 2", "leave it out for a simulation"),
        ('address = "h:1"\nroot-certificates = "certs/ca.crt"', "must be an absolute path"),
        ('address = "h:1"\nroot-certificates = "/nowhere/ca.crt"', "/nowhere/ca.crt cannot be read"),
    ],
)
def test_a_connection_that_cannot_be_used_is_refused(home, connection, part):
    write(home, f"[superlink.lab]\n{connection}\n")
    assert part in refusal("lab", home)


def test_a_server_that_speaks_no_tls_does_not_answer(home, address, tmp_path):
    make_certs(tmp_path / "certs", ["localhost"], [])
    write_connection(home / "config.toml", "lab", address, tmp_path / "certs/ca.crt")
    assert "nothing answers" in refusal("lab", home)


def test_what_fails_within_leaves_nothing(home, address):
    write_connection(home / "config.toml", "lab", address, None)
    with contextlib.suppress(KeyError), connected("lab", {"FLWR_HOME": str(home)}) as environment:
        raise KeyError
    assert not Path(environment["FLWR_HOME"]).exists()
