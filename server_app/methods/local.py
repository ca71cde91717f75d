"""Local: every client trains alone, as often as with the other methods; the server only counts."""

from collections.abc import Sequence

from server_app.client import Client
from server_app.methods.base import Exchange, Exchanges, Method


class Local(Method):
    """Sends nothing and receives nothing but counts."""

    def round(self, cohort: Sequence[Client]) -> Exchanges:
        """Each client goes on from where it stopped."""
        yield Exchange("personal", to=cohort, deploys=True)

    def deploy(self, clients: Sequence[Client]) -> Exchanges:
        """The client's model is its own."""
        yield Exchange("deploy", to=clients, deploys=True)
