"""What a client's worker process holds between messages, and forgetting it."""

from client_app import trainer
from client_app.site import simulated
from common.config import batch


def new_process() -> None:
    """Let the next message be answered as in a process that has just started."""
    batch._read.cache_clear()
    trainer._config.cache_clear()
    simulated._divided_dataset.cache_clear()
    simulated._shared_model.cache_clear()
    simulated._samples.clear()
