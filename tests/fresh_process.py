"""What a client's worker process holds between messages, and forgetting it."""

from client_app import trainer
from client_app.site import simulated
from common.config import batch
from common.data.simulation import forget_data_sets


def new_process() -> None:
    """Let the next message be answered as in a process that has just started."""
    batch._read.cache_clear()
    trainer._config.cache_clear()
    forget_data_sets()
    simulated._division.cache_clear()
    simulated._shared_model.cache_clear()
    simulated._samples.clear()
