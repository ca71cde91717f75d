"""The site that an operator brings: its model and data, built from what its YAML names, tried on a first batch."""

import functools
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from client_app.privacy import Ledger
from client_app.randomness import seeded
from client_app.samples import DatasetSamples, Inputs, Samples, TensorSamples, map_inputs
from client_app.site.factories import Factory, describe, kind_of, move_to
from client_app.site.first_batch import (
    default_correct,
    default_loss,
    dtype,
    length,
    shapes,
    structure,
    try_first_batch,
)
from client_app.site.site import GeneratedModel, Site
from client_app.site.site_file import Mistakes, SiteFile, read_keys, site_file_of
from client_app.training import CountCorrect, Criterion
from common.errors import UserError
from common.files import WriteError, check_writable
from common.models import build_model
from common.text import nearest


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
            foreign_methods=frozenset(file.methods),
            built_by={"factory": file.model.name, "args": dict(file.model.args)},
        )


def load_site(path: Path) -> PrivateSite:
    """Read a site's file, build its model and data, and try them on a first batch.

    Raises UserError with a sentence a line for every mistake that can be found.
    """
    path = path.absolute()
    mistakes = Mistakes(path)
    values = read_keys(path, mistakes)
    file = site_file_of(path, values)
    personal = splits = loss = correct = first_loss = None
    with mistakes.noted():
        _check_state_dir(file.state_dir)
        file.stored_client_key()
    with mistakes.noted():
        if file.privacy and file.privacy.ledger:
            Ledger(file.privacy.ledger).spent(file.privacy)
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


def build_personal(file: SiteFile, seed: int) -> GeneratedModel:
    """Build the private model at the initialisation of this seed, on the device. Raises UserError."""
    with seeded(seed, file.device):
        model = file.model.call()
    name = file.model.name
    if not isinstance(model, nn.Module):
        raise UserError(f"model: {name} returned something {kind_of(model)}, but must return a torch.nn.Module.")
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


def _check_state_dir(state_dir: Path) -> None:
    try:
        check_writable(state_dir)
    except WriteError as error:
        raise UserError(f"state-dir is {state_dir}, but {error}.") from error


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
        raise UserError(f"{wrong} {kind_of(content)}, but must be {right}{hint}.")
    try:
        empty = len(samples) == 0
        item = None if empty or isinstance(samples, TensorSamples) else content[0]
    except Exception as error:
        raise UserError(f"{wrong} {kind_of(content)}, which cannot be read: {describe(error)}.") from error
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
