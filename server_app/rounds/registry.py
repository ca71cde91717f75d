"""Who is known to the server: client key -> K, facts and node; the rules of admission, and who is shown how."""

import itertools
from collections.abc import Collection

from common.errors import ProtocolError
from common.protocol import Registration
from server_app.client import NOWHERE, Client, natural_order, shortened
from server_app.rounds.bindings import Bindings


class Registry:
    """The registered clients, found by key or by the node that they speak through.

    Parameters
    ----------
    max_params: the largest K that is admitted.
    max_samples: the largest number of samples of each kind.
    bindings: which key belongs to which node; None where node ids mean nothing, since without registered keys a site
        has another one after every start. There a key is its holder's as long as that is connected.
    """

    def __init__(self, max_params: int, max_samples: int, bindings: Bindings | None = None) -> None:
        self._max_params = max_params
        self._max_samples = max_samples
        self._bindings = bindings
        self._clients: dict[str, Client] = {}

    def admit(self, registration: Registration, node_id: int, live_nodes: Collection[int]) -> Client:
        """Register a client, or find the known one that comes back.

        Whoever spoke through this node before does not do so any more, whatever comes of it. One that comes back may
        have other numbers of samples than before.

        Raises ProtocolError for a K or a number of samples that is too large, for a key that belongs to another node,
        and when a known client is not what it was.
        """
        for client in self._clients.values():
            if client.node_id == node_id:
                client.node_id = NOWHERE
        key, size, facts = registration.client_key, registration.num_params, dict(registration.facts)
        if size > self._max_params:
            raise ProtocolError("too-large", f"num-params is {size:,}, above max-params ({self._max_params:,})")
        for name, count in (("train-samples", registration.num_train), ("test-samples", registration.num_test)):
            if count > self._max_samples:
                raise ProtocolError(
                    "too-many-samples", f"{name} is {count:,}, above max-samples ({self._max_samples:,})"
                )
        if self._bindings:
            self._bindings.check(key, node_id)
        known = self._clients.get(key)
        if known and known.node_id in live_nodes:
            holder = self.node_name(known.node_id)
            raise ProtocolError("key-in-use", f"client key {known.label} is held by {holder}, still connected")
        if self._bindings:
            self._bindings.bind(key, node_id)
        if known is None:
            known = self._clients[key] = Client(key, size, NOWHERE, facts, label=self._new_label(key, node_id))
        elif known.num_params != size:
            raise ProtocolError(
                "changed-size", f"num-params was {known.num_params} and is now {size}: use a new client key"
            )
        elif known.facts != facts:
            raise ProtocolError(
                "changed-facts", f"it declared {known.facts or 'nothing'}, and now {facts}: use a new client key"
            )
        known.node_id = node_id
        known.num_train, known.num_test = registration.num_train, registration.num_test
        return known

    def restore(self, client: Client) -> None:
        """Take up a client that an earlier process admitted."""
        self._clients[client.key] = client

    def remove(self, key: str) -> None:
        """Forget a client that could not be served after all."""
        del self._clients[key]

    def client(self, key: str) -> Client:
        """Raises KeyError for an unknown key."""
        return self._clients[key]

    def label(self, name: str) -> str:
        """What is shown for a client key; any other name as it is."""
        return self._clients[name].label if name in self._clients else name

    def node_name(self, node_id: int) -> str:
        """What is shown for a node: the name of its site, where that is known."""
        return self._bindings.name_of(node_id) if self._bindings else f"node {node_id}"

    @property
    def clients(self) -> list[Client]:
        """All clients, sorted by key, numbers in their natural order."""
        return sorted(self._clients.values(), key=lambda client: natural_order(client.key))

    def nodes(self) -> set[int]:
        """Ids of the nodes that some client speaks through."""
        return {client.node_id for client in self._clients.values()} - {NOWHERE}

    def _new_label(self, key: str, node_id: int) -> str:
        """One that no other client has, so that a run's results tell them apart; it stays when the run is resumed."""
        site = self._bindings.site_at(node_id) if self._bindings else ""
        forms = [site, *(f"{site} ({form})" for form in shortened(key))] if site else list(shortened(key))
        numbered = (f"{forms[-1]} #{number}" for number in itertools.count(2))
        taken = {client.label for client in self._clients.values()}
        return next(form for form in itertools.chain(forms, numbered) if form not in taken)
