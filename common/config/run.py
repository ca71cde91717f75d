"""The settings that every run has, whatever its method: who takes part, with which data and models, for how long."""

import dataclasses
import importlib.metadata
import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from common.methods import Halves, find
from common.options import Value, option, options_of
from common.text import snake, split
from common.variants import VARIANTS

DEFAULT_PROFILE = "quickstart"
MODES = ("train", "adapt")
BY_CLIENT = "by-client"  # the clients are the owners that the data set itself names
PARTITIONS = ("non-iid-1", "non-iid-2", BY_CLIENT)
SITES = "sites"  # each site of a deployment brings its own data
SINKS = ("tensorboard", "mlflow", "wandb", "none")
DATASETS = ("fashion-mnist", "cifar10", "cifar100", "emnist-byclass", "tiny-imagenet", "parquet", "npz", SITES)
MODELS = ("lenet", "vgg8", "resnet10", "resnet12", "resnet18", "mlp", "squeezenet1_0", "squeezenet1_1")
METHOD_SETTINGS = "method-settings"  # the key under which the settings of a method travel through Flower
RUNS = "runs"  # the key under which Flower is told of a file with several runs (`common/config/batch.py`)

# A run's name is the name of a folder, and of nothing outside it.
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run: the settings below, and those of its method under their keys. `load_config` makes checked instances."""

    profile: str = option(DEFAULT_PROFILE, "the profile that these settings started from; several are joined by '+'")
    method: str = option(
        "mh-pfedhn", "which algorithm runs; package.module:Class takes one from outside", fixed="training"
    )
    mode: str = option(
        "train",
        "train from the start, or adapt a trained hypernetwork (`resume`) to clients it has not seen",
        choices=MODES,
        fixed="training",
    )
    resume: str = option(
        "",
        "go on from a checkpoint: latest, that of run-name if there is one; or a run folder or checkpoint file",
    )
    seed: int = option(0, "all randomness follows from it", minimum=0, maximum=2**31 - 1, fixed="always")
    num_rounds: int = option(100, "communication rounds", minimum=1)
    num_clients: int = option(
        10,
        "clients of a simulation; 0 with partition by-client: all owners of samples",
        minimum=0,
        maximum=1_000_000,
        fixed="simulation",
    )
    participation: float = option(1.0, "share of the registered clients that train in a round", above=0, maximum=1)

    dataset: str = option(
        "",
        "where the data come from; sites: each site of a deployment brings its own; module:name: a function of yours",
        choices=DATASETS,
        own="a function of your own",
        fixed="simulation",
    )
    data_dir: str = option("data", "folder (or file) of the data set; a relative path starts at the working folder")
    partition: str = option(
        "non-iid-1",
        "how the data set is divided among simulated clients; by-client: each owner of samples is one",
        choices=PARTITIONS,
        fixed="simulation",
    )
    classes_per_client: int = option(10, "classes that a client holds under non-iid-1", minimum=1, fixed="simulation")
    dirichlet_alpha: float = option(
        0.01, "concentration of the Dirichlet distribution of non-iid-2", above=0, fixed="simulation"
    )
    min_samples: int = option(
        0,
        "fewest samples of a client: by-client leaves out owners with fewer, non-iid-2 draws until all have as many; 0 "
        "is no limit, and the paper's in non-iid-2",
        minimum=0,
        fixed="simulation",
    )
    test_fraction: float = option(
        0.25,
        "share of a simulated client's samples that it tests on, unless the data have a split of their own",
        above=0,
        maximum=0.9,
        fixed="simulation",
    )
    validation_fraction: float = option(
        0.0,
        "share of a simulated client's training samples that is held back, to choose settings on",
        minimum=0,
        maximum=0.9,
        fixed="simulation",
    )
    max_samples_per_class: int = option(
        0, "keep at most so many samples of a class; 0 keeps all", minimum=0, fixed="simulation"
    )
    models: str = option(
        "lenet",
        "comma-separated architectures, dealt out to the clients in order; after a slash, which layers are generated; "
        "module:name: a function of yours",
        choices=(*MODELS, *VARIANTS),
        own="one of your own",
        is_list=True,
        fixed="simulation",
    )
    held_out: int = option(
        0,
        "clients of a simulation that hold data but stay out of training, the last ones; mode adapt adds them",
        minimum=0,
        fixed="simulation",
    )
    held_out_models: str = option(
        "",
        "architectures of the held-out clients, as in models; empty deals them out of models",
        choices=(*MODELS, *VARIANTS),
        own="one of your own",
        is_list=True,
    )
    keep_local: str = option(
        "",
        "comma-separated patterns of parameter names that simulated clients train but keep to themselves",
        is_list=True,
        fixed="simulation",
    )
    freeze: str = option(
        "",
        "comma-separated patterns of parameter names that simulated clients leave as initialised",
        is_list=True,
        fixed="simulation",
    )
    loss: str = option(
        "",
        "module:name of a function (outputs, targets) -> mean loss for simulated clients; empty: cross-entropy",
        own="a function (outputs, targets) of your own",
        fixed="simulation",
    )
    correct: str = option(
        "",
        "module:name of a function (outputs, targets) -> number of correct answers; empty: those of the right class",
        own="a function (outputs, targets) of your own",
        fixed="simulation",
    )

    deadline: float = option(3600.0, "seconds after which an exchange ends without the missing replies", above=0)
    quorum: float = option(1.0, "share of those asked whose good replies end an exchange early", above=0, maximum=1)
    give_up_after: int = option(
        3, "rounds in a row without one good training update after which the run ends", minimum=1
    )
    min_clients: int = option(2, "clients that must be connected for a round to start", minimum=1)
    evaluate_every: int = option(1, "rounds between evaluations", minimum=1)
    evaluate_after_training: bool = option(
        False, "test what is deployed also after one local epoch, which is undone then"
    )
    max_params: int = option(100_000_000, "refuse clients with more parameters (K) than this", minimum=1)
    max_samples: int = option(
        10_000_000,
        "refuse clients that say they have more training samples, or more test samples, than this",
        minimum=1,
    )
    max_client_weight: float = option(
        0.5,
        "largest share that one site has of the weight of a mean over clients, whatever its samples; simulated clients "
        "have no limit",
        above=0,
        maximum=1,
    )
    checkpoint_every: int = option(
        50, "rounds between checkpoints; the last round has one too; 0 writes none", minimum=0
    )
    device: str = option("auto", "auto uses CUDA where present", choices=("auto", "cpu", "cuda"))

    results_dir: str = option("results", "where run folders go; a relative path starts at the working folder")
    run_name: str = option("", "name of the run's folder; empty makes one from method, profile and time")
    log_to: str = option(
        "tensorboard",
        "comma-separated places that the server sends a run's numbers to, besides its folder; mlflow and wandb where "
        "they are installed",
        choices=SINKS,
        is_list=True,
    )

    method_settings: Mapping[str, Value] = dataclasses.field(default_factory=dict, hash=False)  # by key, complete

    def settings(self, of: type[S]) -> S:
        """The method's settings as an instance of one of its dataclasses, or of a group in `common/settings.py`.

        What the method does not have keeps the group's default.
        """
        given = {snake(key): self.method_settings[key] for key in options_of(of) if key in self.method_settings}
        return of(**given)

    @property
    def halves(self) -> Halves:
        """The two classes of the method."""
        return find(self.method)

    @property
    def own_code(self) -> tuple[str, ...]:
        """The names, each module:name, of the user's own code that a simulation runs."""
        named = (self.method, self.dataset, *split(self.models), *split(self.held_out_models), self.loss, self.correct)
        return tuple(name for name in named if ":" in name)

    @property
    def num_nodes(self) -> int:
        """How many clients take part in a simulation: the held-out ones do in mode adapt only."""
        return self.num_clients if self.mode == "adapt" else self.num_clients - self.held_out

    def num_parts(self, num_nodes: int) -> int:
        """Into how many parts the data set of a simulation with so many nodes is divided."""
        return num_nodes if self.mode == "adapt" else num_nodes + self.held_out

    def model_of(self, client: int, num_parts: int) -> str:
        """The architecture of simulated client number `client` of `num_parts`, the last of which are held out."""
        held_out = client - (num_parts - self.held_out)
        if held_out >= 0 and self.held_out_models:
            names = split(self.held_out_models)
            return names[held_out % len(names)]
        names = split(self.models)
        return names[client % len(names)]

    @property
    def data_path(self) -> Path:
        """`data-dir` as an absolute path."""
        return project_dir() / Path(self.data_dir).expanduser()

    @property
    def results_path(self) -> Path:
        """`results-dir` as an absolute path."""
        return project_dir() / Path(self.results_dir).expanduser()

    @property
    def run_dir(self) -> Path:
        """Where the run's files go, as an absolute path; it has a `run-name`."""
        return self.results_path / self.run_name

    @property
    def resume_path(self) -> Path:
        """`resume` as an absolute path."""
        return project_dir() / Path(self.resume).expanduser()

    def named(self) -> "Config":
        """The same settings with a `run-name`, made up from method, profile and time when none is set."""
        method, profile = self.method.rpartition(":")[2], Path(self.profile).stem
        parts = [re.sub(r"[^A-Za-z0-9]+", "-", part)[:60] for part in (method, profile)]
        return dataclasses.replace(
            self, run_name=self.run_name or f"{'-'.join(parts)}-{time.strftime('%Y%m%d-%H%M%S')}"
        )

    def to_dict(self) -> dict[str, Value]:
        """All settings under their keys, those of the method as well."""
        return self._own() | dict(self.method_settings)

    def to_run_config(self) -> dict[str, Value]:
        """The same for Flower, which only takes keys that `pyproject.toml` lists: the method's travel inside one."""
        return self._own() | {METHOD_SETTINGS: json.dumps(dict(self.method_settings))}

    def _own(self) -> dict[str, Value]:
        return {key: getattr(self, snake(key)) for key in RUN_OPTIONS}


RUN_OPTIONS = options_of(Config)


@cache
def project_dir() -> Path:
    """Where relative paths start when Flower runs the app from its own copy: the checkout that pip installed editable.

    Without one, the folder of the process. `mh-pfedhn run` passes absolute paths, so it does not come to this there.
    """
    try:
        origin: dict[str, Any] = json.loads(
            importlib.metadata.distribution("mh-pfedhn").read_text("direct_url.json") or "{}"
        )
    except importlib.metadata.PackageNotFoundError:
        origin = {}
    if origin.get("dir_info", {}).get("editable"):
        return Path(urllib.request.url2pathname(urllib.parse.urlparse(origin["url"]).path))
    return Path.cwd()
