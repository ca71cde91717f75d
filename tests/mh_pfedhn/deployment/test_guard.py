"""Who may command the server."""

import asyncio
import json

import pytest

from mh_pfedhn.deployment.guard import Guard


@pytest.mark.parametrize(
    ("path", "client", "allowed"),
    [
        ("/v1/control/start-run", "192.0.2.9", False),
        ("/v1/control/register-node", "192.0.2.9", False),
        ("/v1/runtime/acquire-task", "192.0.2.9", False),
        ("/docs", "192.0.2.9", False),
        ("/v1/fleet/pull-messages", "192.0.2.9", True),
        ("/health", "192.0.2.9", True),
        ("/v1/control/start-run", "127.0.0.1", True),
        ("/v1/control/start-run", "192.0.2.1", True),  # the server's own address
    ],
)
def test_other_machines_may_only_be_sites(path, client, allowed):
    passed, sent = [], []

    async def app(scope, receive, send):
        passed.append(scope)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "client": (client, 5), "server": ("192.0.2.1", 9290)}
    asyncio.run(Guard(app)(scope, None, send))
    assert bool(passed) == allowed
    if not allowed:
        assert sent[0]["status"] == 403
        assert "own machine only" in json.loads(sent[1]["body"])["detail"]
