"""The site that an operator brings: its own model and data, named in one YAML file. Every mistake in it is told apart.

The file's keys are those of `_KEYS`; a complete example is in `examples/site`.
"""

import contextlib
import functools
import math
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from client_app.factories import NAME, Factory, a, describe, move_to, nearest
from client_app.first_batch import default_correct, default_loss, dtype, length, shapes, structure, try_first_batch
from client_app.privacy import Ledger, Privacy
from client_app.randomness import seeded
from client_app.samples import DatasetSamples, Inputs, Samples, TensorSamples, map_inputs
from client_app.site import GeneratedModel, Site
from client_app.training import CountCorrect, Criterion
from common import protocol
from common.config import MIN_NOISE_MULTIPLIER
from common.device import resolve_device
from common.errors import ProtocolError, UserError
from common.models import ImageShape, build_model


@dataclass(frozen=True)
class SiteFile:
    """What the YAML says, as far as it is needed once model and data are there."""

    path: Path
    model: Factory
    keep_local: tuple[str, ...]
    freeze: tuple[str, ...]
    group: str
    deploy_global: bool
    input_shape: ImageShape
    num_classes: int
    state_dir: Path
    seed: int | None
    device: torch.device
    client_key: str  # empty: the one in state-dir
    privacy: Privacy | None  # of what is sent

    def run_folder(self, run_name: str) -> Path:
        """Where this site keeps its files of a run."""
        return self.state_dir / "runs" / run_name

    def stored_client_key(self) -> str:
        """The key that the server knows this site by; empty before the first start. Raises UserError for a bad one."""
        if self.client_key:
            return self.client_key
        path = self._key_path
        try:
            key = path.read_text().strip() if path.exists() else ""
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({describe(error)}): put the client key back.") from error
        if path.exists():
            try:
                _label(key)
            except ValueError as error:
                raise UserError(f"{path} holds {key[:80]!r}, but must hold {error}.") from error
        return key

    def claim_client_key(self) -> str:
        """The same; at the first start a random one is made and kept."""
        key = self.stored_client_key()
        if not key:
            key = str(uuid.uuid4())
            temporary = self._key_path.with_suffix(".tmp")
            self.state_dir.mkdir(parents=True, exist_ok=True)
            temporary.write_text(f"{key}\n")
            os.replace(temporary, self._key_path)
        return key

    @property
    def _key_path(self) -> Path:
        return self.state_dir / "client-key"


class PrivateSite:
    """A site's data, and its model, which is built again when a run has another seed; `load_site` makes it."""

    def __init__(
        self,
        file: SiteFile,
        personal: GeneratedModel,
        splits: tuple[Samples, Samples],
        loss: Criterion,
        correct: CountCorrect,
        first_loss: float,
    ) -> None:
        self.file = file
        self.train, self.test = splits
        self.loss = loss
        self.first_loss = first_loss  # of the first training samples, at the initialisation
        self._correct = correct
        self._personal = personal
        self._personal_seed = file.seed or 0
        self._site: Site | None = None
        self._site_seed = self._personal_seed

    @property
    def personal(self) -> GeneratedModel:
        """The model, at the initialisation of the last run or, before any, of the file's seed."""
        return self._personal

    def for_seed(self, seed: int | None = None) -> Site:
        """The site in a run of this seed, with its model at the initialisation that follows from it.

        Without a seed, any will do: that of the run before. Raises UserError when the model cannot be built.
        """
        seed = self._site_seed if seed is None else seed
        if self._site is None or seed != self._site_seed:
            self._site = self._in_run(seed)
            self._site_seed = seed
        return self._site

    def _in_run(self, seed: int) -> Site:
        file = self.file
        own_seed = seed if file.seed is None else file.seed
        if own_seed != self._personal_seed:
            self._personal = build_personal(file, own_seed)
            self._personal_seed = own_seed

        @functools.cache
        def build_global(name: str) -> GeneratedModel:
            # From the run's seed in any case: all clients must start it at the same weights.
            return GeneratedModel(build_model(name, file.input_shape, file.num_classes, seed).to(file.device))

        return Site(
            key=file.claim_client_key(),
            personal=self._personal,
            train=self.train,
            test=self.test,
            group=file.group,
            build_global=build_global if file.deploy_global else None,
            loss=self.loss,
            correct=self._correct,
            privacy=file.privacy,
        )


def load_site(path: Path) -> PrivateSite:
    """Read a site's file, build its model and data, and try them on a first batch.

    Raises UserError with a sentence a line for every mistake that can be found.
    """
    path = path.absolute()
    mistakes = _Mistakes(path)
    values = _read(path, mistakes)
    file = _site_file(path, values)
    personal = splits = loss = correct = first_loss = None
    with mistakes.noted():
        _check_state_dir(file.state_dir)
        file.stored_client_key()
    with mistakes.noted():
        if file.privacy and file.privacy.ledger:
            Ledger(file.privacy.ledger)
    if "model" in values:
        with mistakes.noted():
            personal = build_personal(file, file.seed or 0)
    if "data" in values:
        with mistakes.noted():
            splits = _build_data(values["data"], file)
    with mistakes.noted():
        loss = _function(values.get("loss"), file.device, default_loss)
    with mistakes.noted():
        correct = _function(values.get("correct"), file.device, default_correct)
    if personal is None or splits is None or loss is None or correct is None:
        raise mistakes.error()
    with mistakes.noted(), seeded(0, file.device):
        sizes = (file.input_shape, file.num_classes) if file.deploy_global else None
        first_loss = try_first_batch(personal.model, splits, loss, correct, sizes)
    if mistakes.sentences or first_loss is None:
        raise mistakes.error()
    return PrivateSite(file, personal, splits, loss, correct, first_loss)


def read_site_file(path: Path) -> SiteFile:
    """Read a site's file without building anything. Raises UserError with a sentence a line for every mistake."""
    mistakes = _Mistakes(path.absolute())
    values = _read(path.absolute(), mistakes)
    if mistakes.sentences:
        raise mistakes.error()
    return _site_file(path.absolute(), values)


def build_personal(file: SiteFile, seed: int) -> GeneratedModel:
    """Build the private model at the initialisation of this seed, on the device. Raises UserError."""
    with seeded(seed, file.device):
        model = file.model.call()
    name = file.model.name
    if not isinstance(model, nn.Module):
        raise UserError(f"model: {name} returned something {a(model)}, but must return a torch.nn.Module.")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    lazy = [each for each, tensor in tensors.items() if is_lazy(tensor)]
    if lazy:
        raise UserError(
            f"model: {lazy[0]!r} has no size yet, because its layer is lazy: let {name} run the model on one batch, or "
            "give the layer its size."
        )
    parameters = dict(model.named_parameters())
    if not parameters:
        raise UserError(f"model: the model that {name} returned has no parameters, so there is nothing to generate.")
    for each, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise UserError(f"model: parameter {each!r} is {dtype(parameter)}, but must be floating point.")
        if not parameter.requires_grad and not _matches(each, file.freeze):
            raise UserError(
                f"model: parameter {each!r} has requires_grad False: list it under freeze, or let it train."
            )
    other_state = [key for key, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if other_state:
        raise UserError(f"model: {other_state[0]!r} of its state_dict is not a tensor, so the state cannot be kept.")
    for key, patterns in (("keep-local", file.keep_local), ("freeze", file.freeze)):
        for pattern in patterns:
            if not any(fnmatchcase(each, pattern) for each in parameters):
                raise UserError(
                    f"{key}: pattern {pattern!r} matches no parameter{nearest(pattern, list(parameters))}; the model "
                    f"has {', '.join(parameters)}."
                )
    if all(_matches(each, file.keep_local + file.freeze) for each in parameters):
        raise UserError("keep-local, freeze: together they match every parameter, so there is nothing to generate.")
    return GeneratedModel(model.to(file.device), file.keep_local, file.freeze)


# The YAML itself


class _Mistakes:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        self.sentences.append(f"{self._path}: {sentence.replace('?.', '?')}")  # a hint is a question

    def error(self) -> UserError:
        return UserError("\n".join(self.sentences))

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note a UserError of the block, and go on after it."""
        try:
            yield
        except UserError as error:
            self.add(str(error))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read(path: Path, mistakes: _Mistakes) -> dict[str, Any]:
    """The values of the keys that are right; the others are mistakes."""
    try:
        content = yaml.load(path.read_text(), _Loader)  # a SafeLoader
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not readable as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold lines of the form key: value, with the keys {', '.join(_KEYS)}.")
    # So that the site's own modules, beside the file, can be imported.
    if sys.path[0] != str(path.parent):
        sys.path.insert(0, str(path.parent))
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in _KEYS:
            hint = nearest(str(key), list(_KEYS)) or f"; known keys: {', '.join(_KEYS)}"
            mistakes.add(f"there is no key {key!r}{hint}.")
            continue
        try:
            values[key] = _KEYS[key](value)
        except ValueError as error:
            mistakes.add(f"{key} is {_short(value)}, but must be {error}.")
    needed = ["model", "data", "state-dir"]
    if values.get("deploy-global"):
        needed += ["input-shape", "num-classes"]
    for key in needed:
        if key not in content:
            because = " with deploy-global" if key not in needed[:3] else ""
            mistakes.add(f"{key} is missing, but must be given{because}: {_EXAMPLES[key]}.")
    for key in ("model", "data", "loss", "correct"):
        if key in values:
            values[key] = Factory(key, *values[key])
    return values


def _site_file(path: Path, values: Mapping[str, Any]) -> SiteFile:
    """With something in the place of what is missing or wrong, which is known by then."""
    state_dir = path.parent / Path(values.get("state-dir", ".")).expanduser()
    privacy = values.get("privacy")
    return SiteFile(
        path=path,
        model=values.get("model", Factory("model", "", {})),
        keep_local=values.get("keep-local", ()),
        freeze=values.get("freeze", ()),
        group=values.get("group", ""),
        deploy_global=values.get("deploy-global", False) and {"input-shape", "num-classes"} <= values.keys(),
        input_shape=values.get("input-shape", (0, 0, 0)),
        num_classes=values.get("num-classes", 0),
        state_dir=state_dir,
        seed=values.get("seed"),
        device=values.get("device", resolve_device("auto")),
        client_key=values.get("client-key", ""),
        privacy=Privacy(**privacy, ledger=state_dir / "privacy.json") if privacy else None,
    )


def _factory(value: object) -> tuple[str, dict[str, Any]]:
    form = 'a mapping such as {factory: "hospital.nets:build", args: {width: 32}}'
    if not isinstance(value, dict):
        raise ValueError(form)
    for key in value:
        if key not in ("factory", "args"):
            raise ValueError(f"{form}: there is no key {key!r} in it{nearest(str(key), ['factory', 'args'])}")
    name, args = value.get("factory"), value.get("args") or {}
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{form}: its factory is module:name")
    if not isinstance(args, dict) or not all(isinstance(key, str) for key in args):
        raise ValueError(f"{form}: its args are a mapping from names to values")
    return name, args


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise ValueError('a list of patterns of parameter names such as ["head.*"]')
    return tuple(value)


def _label(value: object) -> str:
    try:
        # The protocol's own check is the one that counts.
        content = protocol.encode_registration(protocol.Registration("-", 1, 0, value if value else "?"))  # type: ignore[arg-type]
        protocol.decode_registration(content)
    except (ProtocolError, TypeError, ValueError):
        raise ValueError("text of 1 to 64 letters, digits, dots, dashes and underscores (a number in quotes)") from None
    return str(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != 3 or not all(type(each) is int and each > 0 for each in value):
        raise ValueError("a list of channels, height and width such as [3, 32, 32]")
    return tuple(value)


def _classes(value: object) -> int:
    if type(value) is not int or value < 2:
        raise ValueError("a whole number of at least 2")
    return value


def _seed(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError("a whole number from 0 to 2147483647")
    return value


def _folder(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("the path of a folder; a relative one starts at the folder of this file")
    return value


def _device(value: object) -> torch.device:
    if value not in ("auto", "cpu", "cuda"):
        raise ValueError("auto, cpu or cuda")
    try:
        return resolve_device(str(value))
    except UserError:
        raise ValueError("auto or cpu, because PyTorch finds no CUDA device on this machine") from None


def _privacy(value: object) -> dict[str, float]:
    """Keyword arguments of `Privacy`."""
    form = "a mapping such as {clipping-norm: 1.0, noise-multiplier: 1.0, delta: 1e-5, max-epsilon: 50}"
    if not isinstance(value, dict):
        raise ValueError(form)
    for key in value:
        if key not in _PRIVACY:
            raise ValueError(f"{form}: there is no key {key!r} in it{nearest(str(key), list(_PRIVACY))}")
    for key in ("clipping-norm", "noise-multiplier"):
        if key not in value:
            raise ValueError(f"{form}: its {key} is missing")
    for key, number in value.items():
        least, below = _PRIVACY[key]
        if isinstance(number, bool) or not isinstance(number, int | float) or not least <= number < below:
            within = f"of at least {least:g}" + (f" and below {below:g}" if below < math.inf else "")
            raise ValueError(f"{form}: its {key} is a number {within}")
    return {key.replace("-", "_"): float(number) for key, number in value.items()}


# Key -> least value, and the one that is too much.
_PRIVACY = {
    "clipping-norm": (1e-6, math.inf),
    "noise-multiplier": (MIN_NOISE_MULTIPLIER, math.inf),
    "delta": (1e-20, 1.0),
    "max-epsilon": (1e-6, math.inf),
}

_KEYS: dict[str, Callable[[object], Any]] = {
    "model": _factory,
    "data": _factory,
    "loss": _factory,
    "correct": _factory,
    "keep-local": _patterns,
    "freeze": _patterns,
    "group": _label,
    "deploy-global": _flag,
    "input-shape": _shape,
    "num-classes": _classes,
    "state-dir": _folder,
    "seed": _seed,
    "device": _device,
    "client-key": _label,
    "privacy": _privacy,
}
_EXAMPLES = {
    "model": 'model: {factory: "hospital.nets:build"}',
    "data": 'data: {factory: "hospital.data:load"}',
    "state-dir": "state-dir: /var/lib/site",
    "input-shape": "input-shape: [3, 32, 32]",
    "num-classes": "num-classes: 100",
}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_state_dir(state_dir: Path) -> None:
    existing = next(folder for folder in (state_dir, *state_dir.parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"state-dir is {state_dir}, but {existing} is a file and must be a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"state-dir is {state_dir}, but this user may not write to {existing}.")


# Data and functions


def _build_data(factory: Factory, file: SiteFile) -> tuple[Samples, Samples]:
    # Not from the run's seed: a split that changed from run to run would mix test samples into training.
    with seeded(file.seed or 0, file.device):
        content = factory.call()
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise UserError(f"data: {factory.name} returned something {structure(content)}, but must return (train, test).")
    training, test = content
    return _split(training, "train", factory, file.device), _split(test, "test", factory, file.device)


def _split(content: Any, which: str, factory: Factory, device: torch.device) -> Samples:
    wrong = f"data: the {which} split that {factory.name} returned is"
    right = "a pair of tensors (inputs, targets) or a torch Dataset of (input, target)"
    samples: Samples
    if isinstance(content, tuple | list):
        if len(content) != 2 or not _is_inputs(content[0]) or not isinstance(content[1], Tensor):
            hint = "; torch.from_numpy makes tensors of arrays" if "ndarray" in structure(content) else ""
            raise UserError(f"{wrong} {structure(content)}, but must be {right}{hint}.")
        inputs, targets = content
        lengths = {length(tensor) for tensor in (*_tensors(inputs), targets)}
        if len(lengths) != 1:
            raise UserError(
                f"{wrong} of different lengths: inputs {shapes(inputs)}, targets {shapes(targets)}; both must have "
                "one row a sample."
            )
        samples = TensorSamples(map_inputs(inputs, lambda tensor: tensor.to(device)), targets.to(device))
    elif hasattr(content, "__getitem__") and hasattr(content, "__len__") and not isinstance(content, Tensor | dict):
        samples = DatasetSamples(content, device)
    else:
        hint = "; one that is read by index, with a length" if isinstance(content, torch.utils.data.Dataset) else ""
        raise UserError(f"{wrong} {a(content)}, but must be {right}{hint}.")
    try:
        empty = len(samples) == 0
        item = None if empty or isinstance(samples, TensorSamples) else content[0]
    except Exception as error:
        raise UserError(f"{wrong} {a(content)}, which cannot be read: {describe(error)}.") from error
    if empty:
        raise UserError(f"{wrong} empty, but must hold at least one sample.")
    if item is not None and (not isinstance(item, tuple | list) or len(item) != 2):
        raise UserError(f"{wrong} a Dataset whose first item is {structure(item)}, but must be (input, target).")
    return samples


def _function(factory: Factory | None, device: torch.device, default: Callable[..., Any]) -> Callable[..., Any]:
    return move_to(factory.function_of("outputs", "targets"), device) if factory else default


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_inputs(value: object) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(each, Tensor) for each in value.values())
    if isinstance(value, tuple | list):
        return bool(value) and all(isinstance(each, Tensor) for each in value)
    return isinstance(value, Tensor)


def _tensors(inputs: Inputs) -> list[Tensor]:
    if isinstance(inputs, Mapping):
        return list(inputs.values())
    return list(inputs) if isinstance(inputs, tuple | list) else [inputs]
