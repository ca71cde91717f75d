"""Clients that are the owners of samples: who is one, whose samples they have, and what is refused."""

import numpy as np
import pytest
import torch
from writers import write

from common.config import load_config
from common.data.simulation import count_owners, divide
from common.errors import UserError

WRITTEN = write()
NAMES = list(WRITTEN.sizes)  # writer-00 has 5 samples, writer-05 has 40
NO_OWNERS = "does not say whose its samples are: add {} with text or a whole number for each sample"


@pytest.fixture(params=["npz", "parquet"])
def kind(request):
    return request.param


def write_file(written, path, kind, *beside):
    write_it = {"npz": written.write_npz, "parquet": written.write_parquet}[kind]
    return write_it(path / f"writers.{kind}", *beside)


@pytest.fixture
def config(tmp_path, kind):
    """Settings of a run by-client on the writers' file; further arguments are those of the run."""

    def config(split=False, written=WRITTEN, **settings):
        owners = {"npz": "owners", "parquet": "client"}[kind]
        path = write_file(written, tmp_path, kind, owners, *(["split"] if split else []))
        given = {"dataset": kind, "data-dir": str(path), "partition": "by-client", "num-clients": 6}
        return load_config(given | {key.replace("_", "-"): value for key, value in settings.items()})

    return config


def rows_of(part):
    return torch.cat([part.train, part.validation, part.test])


def test_each_owner_is_a_client_with_its_own_samples_in_the_order_of_names(config):
    division = divide(config(), 6)
    assert list(division.owners) == NAMES
    assert division.left_out == 0
    for name, part in zip(NAMES, division.parts, strict=True):
        assert set(WRITTEN.owners[rows_of(part)]) == {name}
        assert len(rows_of(part).unique()) == WRITTEN.sizes[name]
        assert len(part.test) == WRITTEN.sizes[name] // 4
        assert len(part.validation) == 0
    largest = division.parts[5].train
    assert not torch.equal(largest, largest.sort().values)
    assert torch.equal(division.dataset.read_images(largest)[:, 0], torch.from_numpy(WRITTEN.images[largest]))


def test_the_datas_own_split_is_the_test_part(config):
    division = divide(config(split=True, validation_fraction=0.2), 6)
    for part in division.parts:
        assert WRITTEN.is_test[part.test].all()
        assert not WRITTEN.is_test[torch.cat([part.train, part.validation])].any()
        assert len(part.validation) == max(int(0.2 * (len(part.train) + len(part.validation)) + 1e-9), 1)
    assert sum(len(rows_of(part)) for part in division.parts) == len(WRITTEN.labels)


def test_fewer_clients_are_drawn_from_the_seed_and_keep_their_split(config):
    everybody = divide(config(), 6)
    drawn = {seed: divide(config(seed=seed), 3) for seed in range(5)}
    assert len({division.owners for division in drawn.values()}) > 1
    for division in drawn.values():
        assert list(division.owners) == sorted(set(division.owners))
        assert len(division.owners) == 3
    for name, part in zip(drawn[0].owners, drawn[0].parts, strict=True):
        assert torch.equal(part.train, everybody.parts[NAMES.index(name)].train)
    assert not torch.equal(divide(config(seed=1), 6).parts[5].train, everybody.parts[5].train)


def test_held_out_clients_are_drawn_too_and_come_last(config):
    divisions = [divide(config(held_out=2, seed=seed), 6) for seed in range(5)]
    for division in divisions:
        assert sorted(division.owners) == NAMES
        assert list(division.owners[:4]) == sorted(division.owners[:4])
    assert len({division.owners[4:] for division in divisions}) > 1


def test_owners_with_few_samples_are_left_out_and_counted(config):
    settings = config(min_samples=13)
    assert count_owners(settings) == 4
    division = divide(settings, 4)
    assert (list(division.owners), division.left_out) == (NAMES[2:], 2)
    assert count_owners(config(min_samples=12)) == 5
    assert count_owners(config(num_clients=0)) == 6


def test_owners_of_whose_samples_none_were_kept_are_no_clients(config):
    settings = config(max_samples_per_class=1)
    found = count_owners(settings)
    assert 1 <= found <= 4
    with pytest.raises(UserError, match=rf"has {found} owners; set num-clients to {found} or fewer"):
        divide(settings, 6)


def test_more_clients_than_owners_are_refused_with_their_number(config):
    with pytest.raises(UserError, match=r"cannot be 7 clients: .*writers\.\w+ has 6 owners; set num-clients to 6 or"):
        divide(config(), 7)
    with pytest.raises(UserError, match=r"has 4 owners with at least 13 samples \(min-samples\); set num-clients to 4"):
        divide(config(min_samples=13), 6)
    with pytest.raises(UserError, match=r"min-samples is 41, but the largest owner in .* has 40 samples"):
        divide(config(min_samples=41), 6)


def test_an_owner_that_cannot_be_split_is_refused_by_name(config):
    lonely, two = write(smallest=1), write(smallest=2)
    with pytest.raises(
        UserError, match=r"Owner 'writer-00' in .* has 1 sample, but a client needs 2, one to train and"
    ):
        divide(config(written=lonely), 6)
    assert len(divide(config(written=lonely, min_samples=2), 5).parts) == 5
    with pytest.raises(UserError, match=r"has 2 samples, but .* needs 3, .*: min-samples=3 leaves out"):
        divide(config(written=two, validation_fraction=0.1), 6)
    own_split = r"'writer-00' in .* has 0 training samples and 1 test sample by the data's own split"
    with pytest.raises(UserError, match=own_split):
        divide(config(written=lonely, split=True), 6)


def test_a_share_of_test_samples_is_refused_where_the_data_have_their_own(config):
    with pytest.raises(UserError, match=r"test-fraction is 0\.5, but .* says itself which samples are for testing"):
        divide(config(split=True, test_fraction=0.5), 6)


def test_data_without_owners_are_refused_with_what_to_add(tmp_path, kind):
    settings = {"dataset": kind, "data-dir": str(write_file(WRITTEN, tmp_path, kind)), "partition": "by-client"}
    wanted = {"npz": "an array owners", "parquet": "a column client"}[kind]
    with pytest.raises(UserError, match=NO_OWNERS.format(wanted)):
        divide(load_config(settings), 6)
    with pytest.raises(UserError, match=r"add them in files of your own \(dataset: npz or parquet\)"):
        divide(load_config({"partition": "by-client"}), 6)


def test_other_partitions_use_neither_owners_nor_split(config):
    settings = {"classes_per_client": 4, "partition": "non-iid-1"}
    division = divide(config(**settings), 3)
    assert division.owners == ()
    assert len({*WRITTEN.owners[rows_of(division.parts[0])]}) > 1
    with_split = divide(config(split=True, **settings), 3)
    assert all(torch.equal(a.test, b.test) for a, b in zip(division.parts, with_split.parts, strict=True))


def test_owners_that_are_numbers_come_in_their_order(tmp_path):
    owners, path = np.array([10, 9, 10, 9, 100, 100]), tmp_path / "numbers.npz"
    np.savez(path, images=np.zeros((6, 2, 2), np.uint8), labels=np.arange(6) % 2, owners=owners)
    settings = {"dataset": "npz", "data-dir": str(path), "partition": "by-client"}
    assert divide(load_config(settings), 3).owners == ("9", "10", "100")
