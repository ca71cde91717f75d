"""The data set of a simulation, divided among its clients; server and clients derive the same from the config."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from common.config import BY_CLIENT, SITES, Config, project_dir
from common.data.datasets import Dataset, open_dataset
from common.data.natural import draw_owners, names_of, owners_with, split_by_owner
from common.data.normalisation import Normalisation, measure
from common.data.partition import partition, smallest_client_rule
from common.data.sources.base import files_at
from common.data.splits import ClientIndices, Fractions
from common.errors import UserError

# That a process keeps open: one, and another for runs that are compared on two.
_DATA_SETS = 2


@dataclass(frozen=True)
class DivisionKey:
    """All that a division follows from: in runs that agree in it every client has the same samples."""

    dataset: str
    data_path: Path
    max_samples_per_class: int
    partition: str
    classes_per_client: int
    dirichlet_alpha: float
    min_samples: int
    test_fraction: float
    validation_fraction: float
    held_out: int
    seed: int
    num_parts: int  # clients, those that are held out as well


@dataclass(frozen=True, eq=False)
class Division:
    """A data set and each client's part of it, those of clients that are held out last."""

    dataset: Dataset
    parts: list[ClientIndices]
    held_out: int = 0
    owners: tuple[str, ...] = ()  # names of the clients' owners, in order; none if clients are made up
    left_out: int = 0  # owners with fewer samples than min-samples

    @cached_property
    def normalisation(self) -> Normalisation:
        """As published, or measured on what the clients that are not held out train on.

        Raises UserError for an image that cannot be decoded.
        """
        dataset, trained = self.dataset, self.parts[: len(self.parts) - self.held_out]
        if dataset.normalisation:
            return dataset.normalisation
        rows = torch.cat([part.train for part in trained]).numpy()
        return measure(dataset.source, dataset.image_shape, rows)


def division_key(config: Config, num_parts: int) -> DivisionKey:
    """What the division of this run's data among so many clients follows from."""
    of_config = {field.name for field in dataclasses.fields(DivisionKey)} - {"num_parts"}
    return DivisionKey(**{name: getattr(config, name) for name in of_config}, num_parts=num_parts)


def divide(config: Config, num_parts: int) -> Division:
    """Open the data set (labels only, no image is decoded) and divide it among so many clients.

    Raises UserError for data that is missing or cannot be divided so.
    """
    return divide_by(division_key(config, num_parts))


def divide_by(key: DivisionKey) -> Division:
    """The same for what a division follows from."""
    dataset = _limited(key.dataset, key.data_path, key.max_samples_per_class, key.seed)
    fractions = Fractions(key.test_fraction, key.validation_fraction)
    if key.partition == BY_CLIENT:
        return _divide_by_owner(key, dataset, fractions)
    parts = partition(
        dataset.labels,
        dataset.num_classes,
        key.num_parts,
        key.partition,
        classes_per_client=key.classes_per_client,
        dirichlet_alpha=key.dirichlet_alpha,
        # The paper's rule names a number that every client must have more than.
        min_samples=key.min_samples - 1 if key.min_samples else smallest_client_rule(key.dataset, key.num_parts),
        fractions=fractions,
        seed=key.seed,
    )
    return Division(dataset, parts, key.held_out)


def count_owners(config: Config) -> int:
    """How many clients a simulation has in which every owner of samples is one. Raises UserError as `divide`."""
    dataset = _limited(config.dataset, config.data_path, config.max_samples_per_class, config.seed)
    return len(owners_with(dataset, config.min_samples)[0])


def located(config: Config, division: Division) -> Config:
    """The same settings with what was found: folders as absolute paths, which lead there from any working folder, and
    the number of clients where that is all owners.

    Data that come with the project, or with the system, lie elsewhere than `data-dir` says.
    """
    given, found = config.data_path, division.dataset.origin
    data_path = given if found.is_relative_to(given) else found.parent
    return dataclasses.replace(
        config,
        data_dir=str(data_path),
        results_dir=str(config.results_path),
        num_clients=config.num_clients or len(division.parts),
    )


def forget_data_sets() -> None:
    """Close the files that this process has open."""
    _opened.cache_clear()


def _divide_by_owner(key: DivisionKey, dataset: Dataset, fractions: Fractions) -> Division:
    found, left_out = owners_with(dataset, key.min_samples)
    if key.num_parts > len(found):
        enough = f" with at least {key.min_samples} samples (min-samples)" if left_out else ""
        raise UserError(
            f"There cannot be {key.num_parts} clients: {dataset.origin} has {len(found)} owners{enough}; set "
            f"num-clients to {len(found)} or fewer, or to 0, which takes them all."
        )
    if dataset.is_test is not None and key.test_fraction != Config.test_fraction:
        raise UserError(
            f"test-fraction is {key.test_fraction:g}, but {dataset.origin} says itself which samples are for testing: "
            "leave test-fraction out, or take the split out of the files."
        )
    owners = draw_owners(found, key.num_parts, key.held_out, key.seed)
    parts = split_by_owner(dataset, owners, fractions, key.seed)
    return Division(dataset, parts, key.held_out, tuple(names_of(dataset, owners)), left_out)


def _limited(name: str, data_path: Path, max_samples_per_class: int, seed: int) -> Dataset:
    if name == SITES:
        raise UserError(
            "dataset is 'sites', so each site brings its own model and data (mh-pfedhn site run), and nothing can be "
            "simulated: name the server with --superlink, or choose a data set."
        )
    dataset = _opened(name, data_path, _stamp(data_path))
    return dataset.limited(max_samples_per_class, seed) if max_samples_per_class else dataset


@lru_cache(maxsize=_DATA_SETS)
def _opened(name: str, data_path: Path, stamp: tuple[tuple[Path, int, int], ...]) -> Dataset:
    """The whole data set, opened once a process for all seeds and divisions, and again when `stamp` has changed."""
    return open_dataset(name, data_path, project_dir=project_dir())


def _stamp(data_path: Path) -> tuple[tuple[Path, int, int], ...]:
    """Tells a user's own files from those that were there before under the same names, as in a notebook."""
    files = [file for suffix in (".npz", ".parquet") for file in files_at(data_path, suffix)]
    return tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
