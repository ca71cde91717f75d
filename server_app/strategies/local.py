"""Local: every client trains alone, as often as with the other methods; the server only counts."""

from collections.abc import Mapping, Sequence

from server_app.registry import Client
from server_app.strategies.base import RoundStrategy, Update, Vectors


class LocalStrategy(RoundStrategy):
    """Sends nothing and receives nothing but counts."""

    def outgoing(self, clients: Sequence[Client]) -> dict[str, Vectors]:
        """No vectors: the client's model is its own."""
        return {client.key: {} for client in clients}

    def incoming(self, client: Client) -> Mapping[str, int]:
        """No vectors."""
        return {}

    def update(self, updates: Mapping[str, Update]) -> None:
        """Nothing to learn on the server."""
