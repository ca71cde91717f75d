"""Who is known to the server: client key -> K, facts and node; the rules of admission, and who is shown how."""

import itertools
from collections.abc import Collection

from common.errors import ProtocolError
from common.protocol import Registration
from server_app.client import NOWHERE, Client, natural_order, shortened
from server_app.rounds.bindings import NOT_BOUND, Bindings

CHANGED_SIZE = "changed-size"  # the reason of a registration with another K than the client had
MAX_KEYS = 3  # that one node may bring into a run: a site whose model or data changed takes a new one


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
        self._brought: dict[int, set[str]] = {}  # keys that were new, by the node that brought them in this process

    def admit(self, registration: Registration, node_id: int, live_nodes: Collection[int]) -> Client:
        """Register a client, or find the known one that comes back.

        Whoever spoke through this node before does not do so any more, whatever comes of it, unless the server could
        not write down whose key it is. One that comes back may have other numbers of samples than before.

        Raises ProtocolError for a K or a number of samples that is too large, for a key that belongs to another node or
        is one too many of this node, and when a known client is not what it was.
        """
        key = registration.client_key
        try:
            self._check_limits(registration)
            self._check_owner(key, node_id, live_nodes)
            self._check_same(registration)
            self._check_number_of_keys(key, node_id)
            if self._bindings:
                self._bindings.bind(key, node_id)
        except ProtocolError as error:
            if error.reason != NOT_BOUND:
                self._leave(node_id)
            raise
        self._leave(node_id)
        known = self._clients.get(key)
        if known is None:
            facts, label = dict(registration.facts), self._new_label(key, node_id)
            known = self._clients[key] = Client(key, registration.num_params, NOWHERE, facts, label=label)
            self._brought.setdefault(node_id, set()).add(key)
        known.node_id = node_id
        known.num_train, known.num_test = registration.num_train, registration.num_test
        return known

    def _check_limits(self, registration: Registration) -> None:
        size = registration.num_params
        if size > self._max_params:
            raise ProtocolError("too-large", f"num-params is {size:,}, above max-params ({self._max_params:,})")
        for name, count in (("train-samples", registration.num_train), ("test-samples", registration.num_test)):
            if count > self._max_samples:
                raise ProtocolError(
                    "too-many-samples", f"{name} is {count:,}, above max-samples ({self._max_samples:,})"
                )

    def _check_owner(self, key: str, node_id: int, live_nodes: Collection[int]) -> None:
        if self._bindings:
            self._bindings.check(key, node_id)
        known = self._clients.get(key)
        if known and known.node_id != node_id and known.node_id in live_nodes:
            holder = self.node_name(known.node_id)
            raise ProtocolError("key-in-use", f"client key {known.label} is held by {holder}, still connected")

    def _check_same(self, registration: Registration) -> None:
        known, size, facts = self._clients.get(registration.client_key), registration.num_params, registration.facts
        if known and known.num_params != size:
            raise ProtocolError(
                CHANGED_SIZE, f"num-params was {known.num_params} and is now {size}: use a new client key"
            )
        if known and known.facts != dict(facts):
            raise ProtocolError(
                "changed-facts",
                f"it declared {known.facts or 'nothing'}, and now {dict(facts)}: use a new client key",
            )

    def _check_number_of_keys(self, key: str, node_id: int) -> None:
        """A node without end of keys would be as many clients, which stay for ever, and as much memory."""
        brought = self._brought.get(node_id, set())
        if key not in self._clients and key not in brought and len(brought) >= MAX_KEYS:
            raise ProtocolError(
                "too-many-keys",
                f"it has taken part under {MAX_KEYS} client keys in this run, and comes with another: go on under one "
                "of those, or restart the run",
            )

    def _leave(self, node_id: int) -> None:
        """Nobody speaks through a node any more."""
        for client in self._clients.values():
            if client.node_id == node_id:
                client.node_id = NOWHERE

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
