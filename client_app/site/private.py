"""The site that an operator brings: its model and data, built from what its YAML names, tried on a first batch."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from client_app.privacy import Ledger
from client_app.samples import Samples, samples_of
from client_app.site.first_batch import default_correct, default_loss, function_on, try_first_batch
from client_app.site.model_checks import generated
from client_app.site.site import GeneratedModel, Site
from client_app.site.site_file import Mistakes, SiteFile, read_keys, site_file_of
from client_app.training import CountCorrect, Criterion
from common.data.acceptance import accepted
from common.errors import UserError
from common.factories import Factory
from common.files import WriteError, check_writable
from common.inputs import structure
from common.models import build_model, model_from
from common.seeding import seeded


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
    model = model_from(file.model, seed, file.device)
    return generated(model.to(file.device), "model", file.keep_local, file.freeze)


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
    return samples_of(accepted(content, f"data: the {which} split that {factory.name} returned"), device)


def _function(factory: Factory | None, device: torch.device, default: Callable[..., Any]) -> Callable[..., Any]:
    return function_on(factory, device) if factory else default
