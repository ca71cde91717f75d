"""What starts `flower-superlink` with a guard before it; `python -m mh_pfedhn.deployment.guard` takes its options."""

import ipaddress
import json
from typing import Any


class Guard:
    """Middleware that lets other machines do only what SuperNodes do.

    Accounts for Flower's control API are not in its open distribution. Without them anybody who reaches the port could
    register a key of their own, or start a run, which is code of their choice on the server and the sites.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer 403 to a stranger."""
        if scope["type"] != "http" or scope["path"].startswith(("/v1/fleet/", "/health")) or _is_local(scope):
            await self._app(scope, receive, send)
            return
        body = json.dumps({"detail": "This server takes commands from its own machine only."}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _is_local(scope: dict[str, Any]) -> bool:
    """Whether a request comes from this machine: over loopback, or from the very address that it is sent to."""
    client, server = (ipaddress.ip_address(scope[end][0]) for end in ("client", "server"))
    return client.is_loopback or client == server


def main() -> None:
    """Flower's `flower-superlink` behind the guard."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    if not callable(getattr(extensions, "get_middleware", None)):
        raise RuntimeError("this release of Flower does not take the middleware that guards the server")
    extensions.get_middleware = lambda: (Middleware(Guard),)
    flower_superlink()


if __name__ == "__main__":
    main()
