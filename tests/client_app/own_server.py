"""The server half of the tests' own method, as far as clients of a simulation need it: it names their half."""

from collections.abc import Sequence

from own_method import NAME

from server_app.client import Client
from server_app.methods.base import Exchange, Exchanges, Method


class Own(Method):
    client = NAME

    def round(self, cohort: Sequence[Client]) -> Exchanges:
        yield Exchange("prototypes", to=cohort)

    def deploy(self, clients: Sequence[Client]) -> Exchanges:
        yield Exchange("deploy", to=clients, deploys=True)
