"""A run's configuration: flat kebab-case keys, from a profile (conf/*.yaml) and overrides, checked before a run starts.

The same keys serve YAML profiles, `[tool.flwr.app.config]`, `flwr run -c` and `mh-pfedhn run -c`.
"""

import dataclasses
import difflib
import importlib.metadata
import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.variants import VARIANTS

PROFILES_DIR = Path(__file__).resolve().parent.parent / "conf"
DEFAULT_PROFILE = "quickstart"

METHODS = ("mh-pfedhn", "mh-pfedhn-g", "mh-pfedhn-gd", "local", "fedavg")
MODES = ("train", "adapt")
HEADS = ("by-tau", "by-architecture", "per-client", "none")
DOWNLOADS = ("dense", "half", "int8")
UPLOADS = (*DOWNLOADS, "topk")
SCHEDULES = ("joint", "per-client", "sequential")
REDUCTIONS = ("sum", "mean")
PARTITIONS = ("non-iid-1", "non-iid-2")
SITES = "sites"  # each site of a deployment brings its own data
DATASETS = ("fashion-mnist", "cifar10", "cifar100", "emnist-byclass", "tiny-imagenet", "parquet", "npz", SITES)
MODELS = ("lenet", "vgg8", "resnet10", "resnet12", "resnet18", "mlp", "squeezenet1_0", "squeezenet1_1")
AUTO = "auto"
MIN_NOISE_MULTIPLIER = 1e-3  # with less, epsilon is no number that says anything

# A run's name is the name of a folder, and of nothing outside it.
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_LISTS = ("models", "held-out-models", "keep-local", "freeze")  # keys that take a comma-separated list

# What a profile file may say beside the keys of Config.
_PROFILE_ONLY = ("base", "description")


@dataclass(frozen=True)
class _Rule:
    """What values an option takes."""

    help: str
    choices: tuple[str, ...] = ()
    minimum: float = -math.inf
    maximum: float = math.inf
    above: float = -math.inf  # exclusive lower bound
    words: tuple[str, ...] = ()  # words that a number option takes beside numbers


def _option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float = -math.inf,
    words: tuple[str, ...] = (),
) -> Any:
    rule = _Rule(help, choices, minimum, maximum, above, words)
    return dataclasses.field(default=default, metadata={"rule": rule})


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run. Field `num_rounds` is the key `num-rounds`; `load_config` makes checked instances."""

    profile: str = _option(DEFAULT_PROFILE, "the profile that these settings started from; several are joined by '+'")
    method: str = _option("mh-pfedhn", "which algorithm runs", choices=METHODS)
    mode: str = _option(
        "train",
        "train from the start, or adapt a trained hypernetwork (`resume`) to clients it has not seen",
        choices=MODES,
    )
    resume: str = _option(
        "",
        "go on from a checkpoint: latest, that of run-name if there is one; or a run folder or checkpoint file",
    )
    seed: int = _option(0, "all randomness follows from it", minimum=0, maximum=2**31 - 1)
    num_rounds: int = _option(100, "communication rounds", minimum=1)
    num_clients: int = _option(10, "clients of a simulation", minimum=1)
    participation: float = _option(1.0, "share of the registered clients that train in a round", above=0, maximum=1)

    dataset: str = _option(
        "", "where the images come from; sites: each site of a deployment brings data of its own", choices=DATASETS
    )
    data_dir: str = _option("data", "folder (or file) of the data set; a relative path starts at the working folder")
    partition: str = _option("non-iid-1", "how the data set is divided among simulated clients", choices=PARTITIONS)
    classes_per_client: int = _option(10, "classes that a client holds under non-iid-1", minimum=1)
    dirichlet_alpha: float = _option(0.01, "concentration of the Dirichlet distribution of non-iid-2", above=0)
    max_samples_per_class: int = _option(0, "keep at most so many samples of a class; 0 keeps all", minimum=0)
    models: str = _option(
        "lenet",
        "comma-separated architectures, dealt out to the clients in order; after a slash, which layers are generated",
        choices=(*MODELS, *VARIANTS),
    )

    held_out: int = _option(
        0,
        "clients of a simulation that hold data but stay out of training, the last ones; mode adapt adds them",
        minimum=0,
    )
    held_out_models: str = _option(
        "",
        "architectures of the held-out clients, as in models; empty deals them out of models",
        choices=(*MODELS, *VARIANTS),
    )
    keep_local: str = _option(
        "", "comma-separated patterns of parameter names that simulated clients train but keep to themselves"
    )
    freeze: str = _option("", "comma-separated patterns of parameter names that simulated clients leave as initialised")

    local_epochs: int = _option(2, "passes over its training data that a client makes in a round", minimum=1)
    batch_size: int = _option(64, "samples in a client's mini-batch", minimum=1)
    client_lr: float = _option(5e-3, "learning rate of a client's SGD", above=0)
    client_momentum: float = _option(0.9, "momentum of a client's SGD", minimum=0, maximum=1)
    client_weight_decay: float = _option(5e-4, "weight decay of a client's SGD", minimum=0)

    chunk_size: int | str = _option(
        AUTO,
        "N: values that the hypernetwork generates a chunk; auto: at most 3072, the smallest client has 64 chunks",
        minimum=1,
        words=(AUTO,),
    )
    embedding_dim: int = _option(64, "E: size of one embedding vector", minimum=1)
    embedding_init_std: float = _option(1.0, "standard deviation of the initial embeddings", minimum=0)
    hidden_dim: int = _option(128, "H: width of the hypernetwork's trunk", minimum=1)
    hidden_layers: int = _option(3, "depth of the hypernetwork's trunk", minimum=1)
    hn_lr: float = _option(1e-3, "learning rate of the hypernetwork's Adam", above=0)
    embedding_lr: float | str = _option(
        AUTO, "the same for embeddings; auto is hn-lr, and 0.1 in mode adapt", above=0, words=(AUTO,)
    )
    schedule: str = _option("joint", "how deltas become optimizer steps", choices=SCHEDULES)
    # With a global model the two kinds of steps share Adam's moments: the mean keeps their gradients of one size.
    reduction: str = _option("mean", "how a joint step combines clients", choices=REDUCTIONS)
    heads: str = _option("by-tau", "which clients share an output head of the hypernetwork", choices=HEADS)
    anchor: bool = _option(True, "clients add the generated weights to their architecture's seeded initialisation")
    head_init_scale: float | str = _option(
        AUTO, "factor on a head's initial weights; auto is 0.1 with the anchor, 1.0 without", above=0, words=(AUTO,)
    )

    global_model: str = _option("lenet", "the public model that mh-pfedhn-g and -gd train as well", choices=MODELS)
    gd_fraction: float = _option(
        1.0, "share of the simulated clients that deploy the global model", minimum=0, maximum=1
    )
    temperature: float = _option(15.0, "T: temperature of the distillation", above=0)
    distillation_coefficient: float = _option(
        0.01, "c: weight of the distillation; 1 - c is that of the cross-entropy", minimum=0, maximum=1
    )

    upload: str = _option("dense", "wire form of what clients send", choices=UPLOADS)
    download: str = _option("dense", "wire form of what the server sends", choices=DOWNLOADS)
    topk_fraction: float = _option(0.3, "share of the values, the largest, that upload topk sends", above=0, maximum=1)
    error_feedback: bool = _option(False, "clients keep what a lossy upload left out and add it to their next one")

    clipping_norm: float = _option(
        0.0,
        "C: simulated clients clip what they send to this norm and add Gaussian noise; 0: neither (sites decide for "
        "themselves)",
        minimum=0,
    )
    noise_multiplier: float = _option(
        1.0, "z: standard deviation of that noise in multiples of its sensitivity 2C", minimum=MIN_NOISE_MULTIPLIER
    )
    privacy_delta: float = _option(1e-5, "delta at which the epsilon of that noise is reported", above=0, maximum=0.5)

    deadline: float = _option(3600.0, "seconds after which an exchange ends without the missing replies", above=0)
    quorum: float = _option(1.0, "share of the cohort whose good replies end an exchange early", above=0, maximum=1)
    min_clients: int = _option(2, "clients that must be connected for a round to start", minimum=1)
    evaluate_every: int = _option(1, "rounds between evaluations", minimum=1)
    max_params: int = _option(100_000_000, "refuse clients with more parameters (K) than this", minimum=1)
    max_delta_norm: float = _option(
        10_000.0, "refuse a delta whose Euclidean norm is above this: enormous values would spoil a step", above=0
    )
    checkpoint_every: int = _option(
        50, "rounds between checkpoints; the last round has one too; 0 writes none", minimum=0
    )
    device: str = _option("auto", "auto uses CUDA where present", choices=("auto", "cpu", "cuda"))

    results_dir: str = _option("results", "where run folders go; a relative path starts at the working folder")
    run_name: str = _option("", "name of the run's folder; empty makes one from method, profile and time")

    @property
    def model_names(self) -> tuple[str, ...]:
        """The architectures of `models` in order."""
        return split(self.models)

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
        return self.model_names[client % len(self.model_names)]

    @property
    def resolved_head_init_scale(self) -> float:
        """`head-init-scale` as a number (DESIGN: 0.1 with the anchor, 1.0 without)."""
        if isinstance(self.head_init_scale, str):
            return 0.1 if self.anchor else 1.0
        return self.head_init_scale

    @property
    def resolved_embedding_lr(self) -> float:
        """`embedding-lr` as a number: in mode adapt embeddings are all that learns, and have a long way to go."""
        if isinstance(self.embedding_lr, str):
            return 0.1 if self.mode == "adapt" else self.hn_lr
        return self.embedding_lr

    @property
    def data_path(self) -> Path:
        """`data-dir` as an absolute path."""
        return project_dir() / Path(self.data_dir).expanduser()

    @property
    def results_path(self) -> Path:
        """`results-dir` as an absolute path."""
        return project_dir() / Path(self.results_dir).expanduser()

    @property
    def resume_path(self) -> Path:
        """`resume` as an absolute path."""
        return project_dir() / Path(self.resume).expanduser()

    def named(self) -> "Config":
        """The same settings with a `run-name`, made up from method, profile and time when none is set."""
        profile = re.sub(r"[^A-Za-z0-9]+", "-", Path(self.profile).stem)[:60]
        return dataclasses.replace(
            self, run_name=self.run_name or f"{self.method}-{profile}-{time.strftime('%Y%m%d-%H%M%S')}"
        )

    def to_dict(self) -> dict[str, bool | int | float | str]:
        """The settings under their kebab-case keys."""
        return {_kebab(name): value for name, value in dataclasses.asdict(self).items()}


@cache
def project_dir() -> Path:
    """Where relative paths start when Flower runs the app from its own copy: the checkout that pip installed editable.

    Without one, the folder of the process. `mh-pfedhn run` passes absolute paths, so it does not come to this there.
    """
    try:
        origin = json.loads(importlib.metadata.distribution("mh-pfedhn").read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:
        origin = {}
    if origin.get("dir_info", {}).get("editable"):
        return Path(urllib.request.url2pathname(urllib.parse.urlparse(origin["url"]).path))
    return Path.cwd()


def load_config(overrides: Mapping[str, object], *, origin: str = "the command line") -> Config:
    """Fill a Config from its profile (key `profile`) and these overrides, which win.

    An empty string means "as the profile says", as in `[tool.flwr.app.config]`. Raises UserError with one sentence
    that names the key, the value, where it stands, and what is valid.
    """
    given = {key: value for key, value in overrides.items() if value != ""}
    for key in given:
        _check_key(key, origin)
    profile = given.get("profile", DEFAULT_PROFILE)
    if not isinstance(profile, str):
        raise UserError(f"profile is {profile!r} in {origin}, but must be a name; known profiles: {_names()}.")
    values: dict[str, Any] = {}
    # Where every key is given, as `mh-pfedhn run` does, the profile adds nothing, and may be a file of another machine.
    if not {*_NEVER_EMPTY, "dataset", "run-name"} <= set(given):
        for name in profile.split("+"):
            values |= _load_profile(name.strip())
    values |= {key: _checked(key, value, origin) for key, value in given.items()}
    config = Config(**{_snake(key): value for key, value in values.items() if key not in _PROFILE_ONLY})
    config = dataclasses.replace(config, profile=profile)
    _check_together(config)
    if not config.dataset:
        raise UserError(
            f"profile {profile!r} sets hyperparameters but no data set: join it to one that does, "
            f"such as cifar100+{profile}, or set dataset to one of {', '.join(DATASETS)}."
        )
    return config


def split(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated value, without the blanks around them."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _check_together(config: Config) -> None:
    """Raise UserError for settings that contradict each other."""
    if config.held_out >= config.num_clients:
        raise UserError(f"held-out is {config.held_out}, but must be below num-clients, which is {config.num_clients}.")
    if config.held_out_models and not config.held_out:
        raise UserError("held-out-models is set, but held-out is 0: say how many clients are held out.")
    if config.mode == "adapt" and not config.resume:
        raise UserError("mode is 'adapt', so resume must name the run folder or checkpoint file to start from.")
    if config.mode == "adapt" and not config.method.startswith("mh-pfedhn"):
        raise UserError(f"mode is 'adapt', but method {config.method!r} has no hypernetwork that could adapt.")
    if config.mode == "adapt" and config.resume == "latest":
        raise UserError("resume is 'latest', but mode 'adapt' starts from another run: name its folder.")
    if config.dataset == SITES and config.clipping_norm:
        raise UserError(
            f"clipping-norm is {config.clipping_norm:g}, but dataset is 'sites', and each site decides how it protects "
            "what it sends: set privacy in its own file."
        )
    if config.resume == "latest" and not config.run_name:
        raise UserError("resume is 'latest', so run-name must say of which run.")


def profiles() -> Iterator[tuple[str, str]]:
    """Name and one-line description of every profile in conf/."""
    for path in sorted(PROFILES_DIR.glob("*.yaml")):
        yield path.stem, str(_read_yaml(path).get("description", ""))


def parse_overrides(items: list[str]) -> dict[str, object]:
    """Turn `key=value` words of a command line into overrides, values read as YAML scalars."""
    overrides: dict[str, object] = {}
    for item in items:
        key, separator, text = item.partition("=")
        if not separator:
            raise UserError(f"-c {item!r} is not of the form key=value, such as -c num-rounds=20.")
        _check_key(key, "the command line")
        overrides[key] = text if _RULES[key][0].type is str else _scalar(text)
    return overrides


def _scalar(text: str) -> object:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that is none
        return text
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as a string
        except ValueError:
            return value
    return value if isinstance(value, bool | int | float) else text


def _load_profile(name: str, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a profile: a name in conf/ or the path of a YAML file, over those of its `base`."""
    known = [known for known, _ in profiles()]
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROFILES_DIR / f"{name}.yaml"
    if name not in known and not (path == Path(name) and path.is_file()):
        others = f"known profiles: {', '.join(known)}; the path of a .yaml file works too"
        raise UserError(f"There is no profile {name!r}{_nearest(name, known)} ({others}).")
    if name in below:
        raise UserError(f"Profile {name!r} is its own base: {' -> '.join((*below, name))}.")
    content = _read_yaml(path)
    values: dict[str, Any] = {}
    bases = content.get("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"base is {bases!r} in {path}, but must be the name of a profile or a list of names.")
    for base in bases:
        # A file beside this one, or a name in conf/.
        beside = str(path.parent / base) if base.endswith((".yaml", ".yml")) else base
        values |= _load_profile(beside, (*below, name))
    for key, value in content.items():
        if key in _PROFILE_ONLY or value == "":
            continue
        if key == "profile":
            raise UserError(f"profile is set in {path}, which is one itself; use base to build on another.")
        _check_key(key, str(path))
        values[key] = _checked(key, value, str(path))
    return values


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text, a date that is none
        raise UserError(f"{path} is not readable as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold lines of the form key: value.")
    return content


def _check_key(key: object, origin: str) -> None:
    if key not in _RULES:
        hint = _nearest(str(key), list(_RULES)) or f"; known keys: {', '.join(sorted(_RULES))}."
        raise UserError(f"There is no key {key!r} ({origin}){hint}")


def _checked(key: str, value: object, origin: str) -> object:
    """The value in the type of its key, or UserError."""
    field, rule = _RULES[key]
    kinds = {part.strip() for part in str(field.type).replace("<class '", "").replace("'>", "").split("|")}
    if key in _LISTS and isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = ",".join(map(str, value))
    wrong = f"{key} is {value!r} in {origin}, but must be"
    if "bool" in kinds:
        if not isinstance(value, bool):
            raise UserError(f"{wrong} true or false.")
        return value
    if "int" in kinds or "float" in kinds:
        if isinstance(value, str) and value in rule.words:
            return value
        number = "a whole number" if "int" in kinds else "a number"
        expected = " ".join(filter(None, [number, _range(rule), "".join(f"or {word}" for word in rule.words)]))
        if isinstance(value, str) and "float" in kinds:
            # YAML 1.1 reads 1e-3 as a string.
            try:
                value = float(value)
            except ValueError:
                raise UserError(f"{wrong} {expected}.") from None
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise UserError(f"{wrong} {expected}.")
        if "int" in kinds and value != int(value):
            raise UserError(f"{wrong} {expected}.")
        if not (rule.minimum <= value <= rule.maximum and value > rule.above):
            raise UserError(f"{wrong} {expected}.")
        return int(value) if "int" in kinds else float(value)
    if isinstance(value, bool | int | float) and not rule.choices:
        value = str(value)  # a run named 7
    if not isinstance(value, str):
        raise UserError(f"{wrong} text.")
    if key == "run-name" and not RUN_NAME.fullmatch(value):
        raise UserError(f"{wrong} up to 100 letters, digits, dots, dashes or underscores, a letter or digit first.")
    if rule.choices:
        for word in value.split(",") if key in _LISTS else [value]:
            if word.strip() not in rule.choices:
                near = _nearest(word.strip(), list(rule.choices))
                several = "a comma-separated list of" if key in _LISTS else "one of"
                raise UserError(f"{wrong} {several} {', '.join(rule.choices)}{near or '.'}")
    return value


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _range(rule: _Rule) -> str:
    parts = []
    if rule.above > -math.inf:
        parts.append(f"above {rule.above:.12g}")
    if rule.minimum > -math.inf:
        parts.append(f"of at least {rule.minimum:.12g}")
    if rule.maximum < math.inf:
        parts.append(f"at most {rule.maximum:.12g}")
    return " and ".join(parts)


def _nearest(word: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _names() -> str:
    return ", ".join(name for name, _ in profiles())


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _snake(key: str) -> str:
    return key.replace("-", "_")


_RULES: dict[str, tuple[dataclasses.Field[Any], _Rule]] = {
    _kebab(field.name): (field, field.metadata["rule"]) for field in dataclasses.fields(Config)
}
KEYS = tuple(_RULES)
_NEVER_EMPTY = frozenset(key for key, (field, _) in _RULES.items() if field.default != "")


def keys_with_help() -> Iterator[tuple[str, object, str]]:
    """Every key with its default and what it sets."""
    for key, (field, rule) in _RULES.items():
        # The variants of the architectures would fill the screen; the profiles show them.
        plain = [choice for choice in rule.choices if choice not in VARIANTS]
        values = f" ({', '.join(plain)})" if plain else ""
        yield key, field.default if field.default != "" else '""', rule.help + values
