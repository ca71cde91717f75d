"""The numbers of a run as TensorBoard's events."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from server_app.results.metrics import accuracy_key, extra_losses, further_tests, mean
from server_app.results.reading import ClientRow

logger = logging.getLogger(__name__)


class Events:
    """Writes event files. Where that is impossible a run goes on without: `metrics.jsonl` holds the same numbers.

    Parameters
    ----------
    folder
        Of the files; made if it does not exist.
    first_round
        The first one that is written, if the folder holds later ones of a run that is gone on with.
    """

    def __init__(self, folder: Path, first_round: int | None) -> None:
        self._writer: SummaryWriter | None = None
        with self._or_without():
            self._writer = SummaryWriter(str(folder), purge_step=first_round)

    def add(self, line: Mapping[str, Any], numbers: Iterable[str], rows: Mapping[str, ClientRow]) -> None:
        """Add a round: its line of `metrics.jsonl`, the names in it of the method's own numbers, its clients."""
        if self._writer is None:
            return
        scalars = {key: line[key] for key in ("accuracy", "accuracy-mean", "accuracy-worst10", "loss", "train-loss")}
        scalars |= {key: line.get(key) for key in ("accuracy-known", "epsilon", "capped-clients")}
        further = [accuracy_key(test) for test in further_tests([line])]
        scalars |= {key: line[key] for name in further for key in (name, f"{name}-mean")}
        scalars |= {key: line[key] for name in extra_losses(line) for key in (f"{name}-loss", f"{name}-clients")}
        scalars |= {name: line[name] for name in numbers}
        scalars |= {"bytes/down": line["bytes-down"], "bytes/up": line["bytes-up"]}
        scalars |= {f"seconds/{phase}": seconds for phase, seconds in line["seconds"].items()}
        by_architecture: dict[str, list[float]] = {}
        for key, accuracy in line["client-accuracy"].items():
            group = "accuracy-known-by-architecture" if rows[key].known else "accuracy-by-architecture"
            by_architecture.setdefault(f"{group}/{rows[key].architecture}", []).append(accuracy)
        scalars |= {tag: mean(values) for tag, values in by_architecture.items()}
        with self._or_without():
            for tag, value in scalars.items():
                if value is not None:
                    self._writer.add_scalar(tag, value, line["round"])

    def close(self) -> None:
        """Write what is still buffered."""
        if self._writer:
            with self._or_without():
                self._writer.close()

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # its thread hands on whatever it has met
            self._writer = None
            logger.warning("No more events for TensorBoard, the same numbers are in metrics.jsonl: %s", error)
