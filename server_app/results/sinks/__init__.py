"""Where a run's numbers go besides its folder, as `log-to` names it: TensorBoard, MLflow, Weights & Biases.

`metrics.jsonl` holds the same numbers, so a run goes on without a sink that fails.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.errors import UserError
from common.text import split
from server_app.results.metrics import mean
from server_app.results.reading import ClientRow
from server_app.results.sinks.base import LoggedRun, Sink

logger = logging.getLogger(__name__)

NONE = "none"
_TITLES = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "wandb": "Weights & Biases"}
_OPTIONAL = ("mlflow", "wandb")
# Numbers of a line of `metrics.jsonl` that no sink gets, or gets under another name.
_ELSEWHERE = ("round", "accuracy-std", "clients", "bytes-down", "bytes-up", "wall-seconds")


def named(log_to: str) -> tuple[str, ...]:
    """The sinks that a value of `log-to` names."""
    return tuple(name for name in dict.fromkeys(split(log_to)) if name != NONE)


def check(log_to: str) -> None:
    """Raise UserError for a sink that cannot work, before anything has started."""
    for name in named(log_to):
        if name in _OPTIONAL and not _is_installed(name):
            raise UserError(f"log-to names {name}, which is not installed: pip install 'mh-pfedhn[{name}]'.")
    if "wandb" in named(log_to):
        from server_app.results.sinks.to_wandb import check_login

        check_login()


class Sinks:
    """All sinks of a run. One that fails is told of in a warning and left alone from then on.

    Parameters
    ----------
    names
        Those of the sinks.
    run
        What they are told of the run at first.
    kept
        The lines of `metrics.jsonl` of a run that is gone on with, and its clients: what a sink does not have of them,
        it gets.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: LoggedRun,
        kept: Sequence[Mapping[str, Any]] = (),
        clients: Mapping[str, ClientRow] | None = None,
    ) -> None:
        self._open: dict[str, Sink] = {}
        for name in names:
            with self._or_without(name):
                self._open[name] = _opened(name, run)
            with self._or_without(name):
                if name in self._open:
                    self._open[name].catch_up([(line["round"], scalars(line, clients or {})) for line in kept])

    def add(self, line: Mapping[str, Any], clients: Mapping[str, ClientRow]) -> None:
        """Add a round, given by its line of `metrics.jsonl`."""
        numbers = scalars(line, clients) if self._open else {}
        for name, sink in list(self._open.items()):
            with self._or_without(name):
                sink.add(line["round"], numbers)

    def close(self, best: Mapping[str, float] | None = None) -> None:
        """Write what is still buffered. `best` are the best numbers of a run that has completed."""
        for name, sink in list(self._open.items()):
            with self._or_without(name):
                sink.close(best)
        self._open.clear()

    @contextlib.contextmanager
    def _or_without(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a client hands on whatever it has met
            self._open.pop(name, None)
            words = " ".join(str(error).split()) or type(error).__name__
            logger.warning(
                "Nothing more goes to %s, the same numbers are in metrics.jsonl: %s", _TITLES[name], words[:500]
            )


def scalars(line: Mapping[str, Any], clients: Mapping[str, ClientRow]) -> dict[str, float]:
    """The numbers of a line of `metrics.jsonl` by the names that sinks show; what is None is left out."""
    numbers = {key: value for key, value in line.items() if key not in _ELSEWHERE}
    numbers |= {"bytes/down": line["bytes-down"], "bytes/up": line["bytes-up"]}
    numbers |= {f"seconds/{phase}": seconds for phase, seconds in line["seconds"].items()}
    by_architecture: dict[str, list[float]] = {}
    for key, accuracy in line["client-accuracy"].items():
        if accuracy is not None and key in clients:
            group = "accuracy-known-by-architecture" if clients[key].known else "accuracy-by-architecture"
            by_architecture.setdefault(f"{group}/{clients[key].architecture}", []).append(accuracy)
    numbers |= {tag: mean(values) for tag, values in by_architecture.items()}
    return {tag: value for tag, value in numbers.items() if isinstance(value, int | float)}


def _opened(name: str, run: LoggedRun) -> Sink:
    if name == "mlflow":
        from server_app.results.sinks.to_mlflow import MLflow

        return MLflow(run)
    if name == "wandb":
        from server_app.results.sinks.to_wandb import Wandb

        return Wandb(run)
    from server_app.results.sinks.to_tensorboard import TensorBoard

    return TensorBoard(run)


def _is_installed(module: str) -> bool:
    """Whether there is such a package; a folder of its name, as wandb itself leaves behind, is none."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None
