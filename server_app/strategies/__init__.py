"""One file a method: the server half. `STRATEGIES` is the table of methods."""

from server_app.strategies.base import RoundStrategy, Run
from server_app.strategies.fedavg import FedAvgStrategy
from server_app.strategies.hypernet import HyperNetStrategy
from server_app.strategies.local import LocalStrategy

STRATEGIES: dict[str, type[RoundStrategy]] = {
    "mh-pfedhn": HyperNetStrategy,
    "local": LocalStrategy,
    "fedavg": FedAvgStrategy,
}

__all__ = ["STRATEGIES", "RoundStrategy", "Run"]
