"""What a process opens, decodes and keeps of a simulation's data, and what a run writes down of it."""

import os
from pathlib import Path

import pytest
import torch
from writers import write

from common.config import load_config
from common.data import simulation
from common.data.simulation import divide, forget_data_sets, located


@pytest.fixture(autouse=True)
def _nothing_is_open():
    forget_data_sets()
    yield
    forget_data_sets()


@pytest.fixture
def opened(monkeypatch):
    """The data sets that were opened."""
    names, really = [], simulation.open_dataset

    def note(name, *arguments, **options):
        names.append(name)
        return really(name, *arguments, **options)

    monkeypatch.setattr(simulation, "open_dataset", note)
    return names


@pytest.fixture
def settings(tmp_path):
    path = write().write_npz(tmp_path / "writers.npz", "owners")
    return {"dataset": "npz", "data-dir": str(path), "classes-per-client": 4, "num-clients": 3}


def test_one_file_is_opened_once_for_all_seeds_methods_and_partitions(settings, opened):
    for changes in ({}, {"seed": 1}, {"method": "local"}, {"partition": "by-client"}, {"max-samples-per-class": 9}):
        divide(load_config(settings | changes), 3)
    assert opened == ["npz"]


def test_a_file_that_has_changed_is_opened_again(settings, opened):
    config = load_config(settings | {"partition": "by-client"})
    assert simulation.count_owners(config) == 6
    path = Path(settings["data-dir"])
    write(num_writers=4).write_npz(path, "owners")
    os.utime(path, (1, 1))
    assert simulation.count_owners(config) == 4
    assert opened == ["npz", "npz"]


def test_samples_that_are_kept_are_chosen_by_the_seed_and_keep_label_and_owner(settings):
    whole = divide(load_config(settings), 3).dataset
    few = [divide(load_config(settings | {"max-samples-per-class": 3, "seed": seed}), 3).dataset for seed in (0, 0, 1)]
    first, again, other = (each.read_images(torch.arange(12)) for each in few)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    everything = whole.read_images(torch.arange(len(whole.labels)))
    for image, label, owner in zip(first, few[0].labels, few[0].owners, strict=True):
        row = int((everything == image).all(dim=(1, 2, 3)).nonzero()[0])
        assert (whole.labels[row], whole.owners[row]) == (label, owner)


def test_images_of_ones_own_are_normalised_by_what_trained_clients_train_on(settings):
    settings = settings | {"held-out": 1, "validation-fraction": 0.3}
    division = divide(load_config(settings), 3)
    rows = torch.cat([part.train for part in division.parts[:2]])
    pixels = division.dataset.read_images(rows).double() / 255
    assert division.normalisation.mean == pytest.approx((pixels.mean().item(),), rel=1e-9)
    assert division.normalisation.std == pytest.approx((pixels.std(correction=0).item(),), rel=1e-9)
    adapting = load_config(settings | {"mode": "adapt", "resume": "before"})
    assert divide(adapting, 3).normalisation == division.normalisation
    assert divide(load_config(settings | {"seed": 1}), 3).normalisation != division.normalisation


def test_known_data_sets_keep_the_published_numbers():
    division = divide(load_config({"max-samples-per-class": 30}), 5)
    assert (division.normalisation.mean, division.normalisation.std) == ((0.2190,), (0.3318,))


def test_a_run_writes_down_how_many_all_owners_are(settings):
    config = load_config(settings | {"partition": "by-client", "num-clients": 0})
    assert located(config, divide(config, 6)).num_clients == 6
    few = load_config(settings)
    assert located(few, divide(few, 3)).num_clients == 3
