"""Who may command the server: whoever comes to the listener on loopback, and nobody who comes to the sites'."""

import asyncio
import json
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from children import until

from mh_pfedhn.deployment.guard import Guard
from mh_pfedhn.processes import free_port

COMMAND = ("127.0.0.1", 9291)


def answers(scope):
    """The scopes that reach the app, and what the guard sends itself."""
    passed, sent = [], []

    async def app(scope, receive, send):
        passed.append(scope)

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(app, COMMAND)(scope, None, send))
    return passed, sent


def request(path, server, client="192.0.2.9"):
    return {"type": "http", "path": path, "client": (client, 5), "server": server}


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/health"])
@pytest.mark.parametrize("server", [("192.0.2.1", 9290), COMMAND])
def test_sites_may_come_to_either_listener(path, server):
    assert answers(request(path, server)) == ([request(path, server)], [])


PATHS = ["/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/docs"]


@pytest.mark.parametrize("path", [*PATHS, "/", "/v1/fleet", "//v1/fleet/pull-messages"])
# Whoever uses a proxy or a forwarded port on the server's machine comes from loopback, or from the machine's address.
@pytest.mark.parametrize("client", ["192.0.2.9", "127.0.0.1", "192.0.2.1", "::1"])
@pytest.mark.parametrize("server", [("192.0.2.1", 9290), ("127.0.0.1", 9290), ("192.0.2.1", 9291), None, ("/a", None)])
def test_the_sites_listener_takes_no_commands_wherever_they_come_from(path, client, server):
    passed, sent = answers(request(path, server, client))
    assert passed == []
    assert sent[0]["status"] == 403
    assert "own machine only" in json.loads(sent[1]["body"])["detail"]


@pytest.mark.parametrize("path", PATHS)
def test_the_listener_of_commands_takes_them(path):
    assert answers(request(path, COMMAND, "127.0.0.1")) == ([request(path, COMMAND, "127.0.0.1")], [])


def test_other_connections_pass_where_commands_do_and_nowhere_else():
    scope = {"type": "websocket", "path": "/v1/fleet/pull-messages", "server": ("127.0.0.1", 9290)}
    assert answers(scope) == ([], [{"type": "websocket.close", "code": 1008}])
    assert answers({"type": "lifespan"}) == ([{"type": "lifespan"}], [])
    with pytest.raises(RuntimeError, match="refused"):
        answers({"type": "quic", "path": "/health"})
    assert answers({**scope, "server": COMMAND})[0]


SERVED = """
import sys
from mh_pfedhn.deployment import guard

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

sites, commands = map(int, sys.argv[1:])
guard.serve(app, ("0.0.0.0", sites), host="127.0.0.1", port=commands, log_level="error", lifespan="off")
"""


@pytest.fixture
def ports():
    """The sites' port and that of commands, of a server behind the guard."""
    ports = free_port(), free_port()
    with subprocess.Popen([sys.executable, "-c", SERVED, *map(str, ports)]) as serving:
        until(lambda: serving.poll() is None and status(ports[0], "/health") == 200)
        yield ports
        serving.terminate()


def status(port, path):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def test_one_server_has_two_listeners_and_tells_them_apart(ports):
    sites, commands = ports
    assert [status(port, "/v1/fleet/pull-messages") for port in ports] == [200, 200]
    assert (status(sites, "/v1/control/list-runs"), status(commands, "/v1/control/list-runs")) == (403, 200)
