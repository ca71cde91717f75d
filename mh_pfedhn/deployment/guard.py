"""Starts `flower-superlink` with two listeners: `python -m mh_pfedhn.deployment.guard HOST PORT`, and its options.

Accounts for Flower's control API are not in its open distribution. Without them anybody who reaches it could register a
key of their own, or start a run, which is code of their choice on the server and the sites. So Flower's own address,
`--host` and `--port`, is one of loopback, for `flwr` and for the processes that Flower starts, and HOST:PORT is added
for the sites. What may be asked depends on the listener that a request came to, never on where it seems to come from:
behind a proxy or a forwarded port every stranger comes from this machine.
"""

import contextlib
import json
import socket
import sys
from typing import Any

_OF_SITES = ("/v1/fleet/", "/health")


class Guard:
    """Middleware that answers to sites on every listener, and to commands only on the one at `command`."""

    def __init__(self, app: Any, command: tuple[str, int]) -> None:
        self._app = app
        self._command = command

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Pass on what may be asked; answer 403 to other requests, and close other connections."""
        kind = scope["type"]
        if kind == "lifespan" or (kind == "http" and scope["path"].startswith(_OF_SITES)) or self._is_command(scope):
            await self._app(scope, receive, send)
        elif kind == "http":
            body = json.dumps({"detail": "This server takes commands from its own machine only."}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        elif kind == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # policy violation; before it is accepted: 403
        else:
            raise RuntimeError(f"nothing is known of {kind} connections, so they are refused")

    def _is_command(self, scope: dict[str, Any]) -> bool:
        # The address of the listening socket. A unix socket's has no port, and is None.
        return tuple(scope.get("server") or ()) == self._command


def serve(app: Any, public: tuple[str, int], *, host: str, port: int, **options: Any) -> None:
    """As `uvicorn.run`, behind the guard, and with the sites' listener beside Flower's own."""
    import uvicorn

    config = uvicorn.Config(Guard(app, (host, port)), **options)
    listeners = [_listen(host, port), _listen(*public)]
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):  # after the shutdown that the signal asked for
        server.run(sockets=listeners)
    if not server.started:
        sys.exit(3)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family)


def main() -> None:
    """Flower's `flower-superlink` behind the guard."""
    import uvicorn
    from flwr.superlink.cli.flower_superlink import flower_superlink

    host, port = sys.argv.pop(1), int(sys.argv.pop(1))
    # A release of Flower that served in another way would not open the sites' listener.
    uvicorn.run = lambda app, **options: serve(app, (host, port), **options)
    flower_superlink()


if __name__ == "__main__":
    main()
