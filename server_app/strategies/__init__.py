"""One file a method: the server half. `STRATEGIES` is the table of methods."""

from server_app.strategies.base import RoundStrategy, Run
from server_app.strategies.distill import GlobalModelStrategy
from server_app.strategies.fedavg import FedAvgStrategy
from server_app.strategies.hypernet import HyperNetStrategy
from server_app.strategies.local import LocalStrategy

STRATEGIES: dict[str, type[RoundStrategy]] = {
    "mh-pfedhn": HyperNetStrategy,
    "mh-pfedhn-g": GlobalModelStrategy,
    "mh-pfedhn-gd": GlobalModelStrategy,
    "local": LocalStrategy,
    "fedavg": FedAvgStrategy,
}

__all__ = ["STRATEGIES", "RoundStrategy", "Run"]
