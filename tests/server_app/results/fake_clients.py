"""In the place of MLflow's and Weights & Biases' clients: what a sink needs of them, in memory."""

import itertools
import types
from typing import ClassVar


class MlflowException(Exception):
    def __init__(self, message, error_code="INTERNAL_ERROR"):
        super().__init__(message)
        self.error_code = error_code


class Metric:
    def __init__(self, key, value, timestamp, step):
        self.key, self.value, self.timestamp, self.step = key, value, timestamp, step


class Param:
    def __init__(self, key, value):
        self.key, self.value = key, value


class MlflowClient:
    """As MLflow's, it refuses to change a param, adds whatever metric it is given, and takes 100 params at once."""

    stores: ClassVar = {}
    down = False

    def __init__(self, tracking_uri):
        self.experiments, self.runs = self.stores.setdefault(tracking_uri, ({}, {}))

    def __getattribute__(self, name):
        if not name.startswith("_") and name not in ("stores", "down", "runs", "experiments") and self.down:
            raise MlflowException("no route to host")
        return super().__getattribute__(name)

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def create_experiment(self, name, artifact_location):
        self.experiments[name] = types.SimpleNamespace(experiment_id=str(len(self.experiments)), name=name)
        return self.experiments[name].experiment_id

    def search_runs(self, experiment_ids):
        return [run for run in self.runs.values() if run.info.experiment_id in experiment_ids]

    def create_run(self, experiment_id, run_name, tags):
        info = types.SimpleNamespace(
            run_id=f"run-{len(self.runs)}",
            experiment_id=experiment_id,
            run_name=run_name,
            status="RUNNING",
            lifecycle_stage="active",
        )
        data = types.SimpleNamespace(params={}, metrics={}, tags=dict(tags))
        self.runs[info.run_id] = types.SimpleNamespace(info=info, data=data, history=[])
        return self.runs[info.run_id]

    def get_run(self, run_id):
        if run_id not in self.runs:
            raise MlflowException("no such run", "RESOURCE_DOES_NOT_EXIST")
        return self.runs[run_id]

    def delete_run(self, run_id):
        self.runs[run_id].info.lifecycle_stage = "deleted"

    def update_run(self, run_id, status):
        self.runs[run_id].info.status = status

    def log_batch(self, run_id, metrics=(), params=()):
        run = self.runs[run_id]
        assert len(params) <= 100
        for param in params:
            if run.data.params.setdefault(param.key, param.value) != param.value:
                raise MlflowException(f"{param.key} has a value already")
        run.history += metrics
        run.data.metrics |= {metric.key: metric.value for metric in metrics}

    def log_metric(self, run_id, key, value, step):
        self.log_batch(run_id, metrics=[Metric(key, value, 0, step)])

    def get_metric_history(self, run_id, key):
        return [metric for metric in self.runs[run_id].history if metric.key == key]

    def set_tag(self, run_id, key, value):
        self.runs[run_id].data.tags[key] = value

    def set_terminated(self, run_id, status):
        self.runs[run_id].info.status = status


def mlflow_modules():
    """By name, what is imported of MLflow."""
    client = type("FreshClient", (MlflowClient,), {"stores": {}, "down": False})
    return {
        "mlflow": types.ModuleType("mlflow"),
        "mlflow.tracking": types.SimpleNamespace(MlflowClient=client),
        "mlflow.entities": types.SimpleNamespace(Metric=Metric, Param=Param),
        "mlflow.exceptions": types.SimpleNamespace(MlflowException=MlflowException),
    }


class Wandb(types.ModuleType):
    """Keeps the runs that were begun, with all that they were given."""

    def __init__(self):
        super().__init__("wandb")
        self.runs = []
        self._numbers = itertools.count()

    def init(self, **given):
        run = types.SimpleNamespace(
            given=given,
            url=None,
            dir=f"{given['dir']}/wandb/{next(self._numbers)}/files",
            lines=[],
            summary={},
            ended=None,
        )
        run.log = lambda numbers, step, commit: run.lines.append((step, numbers))
        run.finish = lambda exit_code: setattr(run, "ended", exit_code)
        self.runs.append(run)
        return run
