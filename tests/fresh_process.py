"""What a client's worker process holds between messages, and forgetting it."""

from client_app import trainer
from client_app.site.simulated import forget_clients
from common.config import batch
from common.data.simulation import forget_data_sets


def new_process() -> None:
    """Let the next message be answered as in a process that has just started."""
    batch._read.cache_clear()
    trainer._config.cache_clear()
    forget_data_sets()
    forget_clients()
