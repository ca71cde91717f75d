"""One file a method: the client half. `METHODS` is the table of methods."""

from client_app.methods import distill, hypernet, local
from client_app.methods.base import ClientMethod

# FedAvg's client does what MH-pFedHN's does: start from the vector that came, return how far training moved it.
METHODS: dict[str, ClientMethod] = {
    "mh-pfedhn": hypernet,
    "mh-pfedhn-g": distill,
    "mh-pfedhn-gd": distill,
    "local": local,
    "fedavg": hypernet,
}

__all__ = ["METHODS", "ClientMethod"]
