"""Who is known to the server: client key -> K and node, and the rules of admission."""

from collections.abc import Collection

from common.errors import ProtocolError
from common.protocol import Registration
from server_app.client import NOWHERE, Client, natural_order

KEY_IN_USE = "key-in-use"


class Registry:
    """The registered clients, found by key or by the node that they speak through.

    `max_params` is the largest K that is admitted, `max_samples` the largest number of samples of each kind.
    """

    def __init__(self, max_params: int, max_samples: int) -> None:
        self._max_params = max_params
        self._max_samples = max_samples
        self._clients: dict[str, Client] = {}

    def admit(self, registration: Registration, node_id: int, live_nodes: Collection[int]) -> Client:
        """Register a client, or find the known one that comes back through another node.

        One that comes back may have other numbers of samples than before.

        Raises ProtocolError for a K or a number of samples that is too large, when a live node already holds the key,
        or when a known client changes its K.
        """
        if registration.num_params > self._max_params:
            raise ProtocolError(
                "too-large", f"num-params is {registration.num_params:,}, above max-params ({self._max_params:,})"
            )
        for key, count in (("train-samples", registration.num_train), ("test-samples", registration.num_test)):
            if count > self._max_samples:
                raise ProtocolError(
                    "too-many-samples", f"{key} is {count:,}, above max-samples ({self._max_samples:,})"
                )
        known = self._clients.get(registration.client_key)
        if known is None:
            known = Client(registration.client_key, registration.num_params, node_id, dict(registration.facts))
            self._clients[known.key] = known
        elif known.node_id != node_id and known.node_id in live_nodes:
            raise ProtocolError(
                KEY_IN_USE, f"client key {known.key!r} is held by node {known.node_id}, still connected"
            )
        elif known.num_params != registration.num_params:
            raise ProtocolError(
                "changed-size",
                f"num-params was {known.num_params} and is now {registration.num_params}: use a new client key",
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

    @property
    def clients(self) -> list[Client]:
        """All clients, sorted by key, numbers in their natural order."""
        return sorted(self._clients.values(), key=lambda client: natural_order(client.key))

    def nodes(self) -> set[int]:
        """Ids of the nodes that some client speaks through."""
        return {client.node_id for client in self._clients.values()} - {NOWHERE}
