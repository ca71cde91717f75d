"""A run's numbers in MLflow, through its client: at MLFLOW_TRACKING_URI, or in a database beside the run's folder."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from filelock import FileLock

from server_app.results.sinks.base import LoggedRun, set_unless_given

# Flower's, since that is what is printed.
logger = logging.getLogger("flwr")

# MLflow's own limits would let a server that is not there hold up a round for a quarter of an hour.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
_PARAMS_AT_ONCE = 100  # MLflow takes no more


class MLflow:
    """One run of MLflow: the settings as params, a metric a number of a round, with the round as its step."""

    def __init__(self, run: LoggedRun) -> None:
        set_unless_given(_DEFAULTS)
        from mlflow.tracking import MlflowClient

        folder = run.run_dir.parent.resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        # Only an experiment's place for files; nothing is put there, but MLflow's default is the working folder.
        self._artifacts = None if uri else (folder / "mlartifacts").as_uri()
        uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
        self._shown_uri = re.sub(r"//[^/@]*@", "//", uri)  # a password is nobody's business
        with (
            FileLock(folder / ".mlflow.lock") if self._artifacts else contextlib.nullcontext(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", DeprecationWarning)  # of SQLAlchemy, for MLflow's developers
            self._client = MlflowClient(tracking_uri=uri)  # makes the tables of a new database
        self._held: dict[tuple[int, str], float] = {}  # what MLflow has already, by round and name
        found = self._found(run)
        self._run_id: str = found.info.run_id if found else self._create(run)
        if found:
            self._client.update_run(self._run_id, status="RUNNING")
            self._read_held(found)
        self._write_params(run.config, found.data.params if found else {})
        self._last_round = 0
        logger.info("Logging to MLflow at %s: run %s (%s).", self._shown_uri, run.name, self._run_id)

    def catch_up(self, rounds: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Add those rounds that the run of MLflow lacks."""
        for round_number, numbers in rounds:
            self.add(round_number, numbers)

    def add(self, round_number: int, numbers: Mapping[str, float]) -> None:
        """Add a round, unless MLflow has it as it is.

        MLflow takes nothing back: what is given again is there twice. A round that is run again has the numbers that it
        had, but for how long it took; where it has others, MLflow shows the later ones.
        """
        from mlflow.entities import Metric

        self._last_round = round_number
        now = int(1000 * time.time())
        metrics = [Metric(_name(key), float(value), now, round_number) for key, value in numbers.items()]
        lasting = [metric for metric in metrics if not metric.key.startswith("seconds/")]
        if any(self._held.get((round_number, metric.key)) != metric.value for metric in lasting):
            self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, best: Mapping[str, float] | None) -> None:
        """Say how the run has ended; its best numbers become metrics of the last round."""
        for key, value in (best or {}).items():
            self._client.log_metric(self._run_id, _name(key), value, step=self._last_round)
        self._client.set_terminated(self._run_id, "FAILED" if best is None else "FINISHED")

    def _found(self, run: LoggedRun) -> Any:
        """The run of MLflow that this one goes on with, None if there is none."""
        from mlflow.exceptions import MlflowException

        notes = run.remembered("mlflow")
        if notes.get("tracking-uri") != self._shown_uri:
            return None
        try:
            found = self._client.get_run(notes["run-id"])
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return found if found.info.lifecycle_stage == "active" else None

    def _create(self, run: LoggedRun) -> str:
        tags = {key: str(run.config[key]) for key in ("method", "profile", "dataset", "seed") if run.config.get(key)}
        tags |= {"mlflow.source.name": "mh-pfedhn", "run-dir": str(run.run_dir)}
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID") or self._experiment(
            os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.group
        )
        run_id: str = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        run.remember("mlflow", **{"tracking-uri": self._shown_uri, "run-id": run_id})
        return run_id

    def _experiment(self, name: str) -> str:
        """The id of the experiment of this name, which is made if it is missing."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        try:
            experiment: str = found.experiment_id if found else self._client.create_experiment(name, self._artifacts)
        except MlflowException:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            experiment = found.experiment_id  # another run has just made it
        return experiment

    def _read_held(self, found: Any) -> None:
        for key in found.data.metrics:
            history = self._client.get_metric_history(self._run_id, key)
            for metric in sorted(history, key=lambda metric: metric.timestamp):
                self._held[metric.step, key] = metric.value

    def _write_params(self, config: Mapping[str, object], held: Mapping[str, str]) -> None:
        """Write the settings that are not empty; those that differ from what is held, which stays, become tags."""
        from mlflow.entities import Param

        params = {_name(key): str(value) for key, value in config.items() if value != ""}
        new = [Param(key, value) for key, value in params.items() if key not in held]
        for start in range(0, len(new), _PARAMS_AT_ONCE):
            self._client.log_batch(self._run_id, params=new[start : start + _PARAMS_AT_ONCE])
        for key, value in params.items():
            if held.get(key, value) != value:
                self._client.set_tag(self._run_id, f"resumed with {key}", value)


def _name(key: str) -> str:
    """A key with the characters that MLflow takes: of the label "K = 239,856", for example, it takes "K 239856"."""
    return " ".join(re.sub(r"[^\w\-./: ]", "", key).split())
