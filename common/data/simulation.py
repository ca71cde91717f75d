"""The data set of a simulation, divided among its clients; server and clients derive the same from the config."""

import dataclasses

from common.config import SITES, Config, project_dir
from common.data.datasets import Dataset, open_dataset
from common.data.partition import ClientIndices, partition, smallest_client_rule
from common.errors import UserError


def located(config: Config, dataset: Dataset) -> Config:
    """The same settings with the folders that are used, as absolute paths: they lead there from any working folder.

    Data that come with the project, or with the system, lie elsewhere than `data-dir` says.
    """
    given, found = config.data_path, dataset.origin
    data_path = given if found.is_relative_to(given) else found.parent
    return dataclasses.replace(config, data_dir=str(data_path), results_dir=str(config.results_path))


def divide(config: Config, num_partitions: int) -> tuple[Dataset, list[ClientIndices]]:
    """Open the data set (labels only, no image is decoded) and divide it among so many clients.

    Raises UserError for data that is missing or cannot be divided so.
    """
    if config.dataset == SITES:
        raise UserError(
            "dataset is 'sites', so each site brings its own model and data (mh-pfedhn site run), and nothing can be "
            "simulated: name the server with --superlink, or choose a data set."
        )
    dataset = open_dataset(
        config.dataset,
        config.data_path,
        project_dir=project_dir(),
        max_samples_per_class=config.max_samples_per_class,
        seed=config.seed,
    )
    parts = partition(
        dataset.labels,
        dataset.num_classes,
        num_partitions,
        config.partition,
        classes_per_client=config.classes_per_client,
        dirichlet_alpha=config.dirichlet_alpha,
        min_samples=smallest_client_rule(config.dataset, num_partitions),
        seed=config.seed,
    )
    return dataset, parts
