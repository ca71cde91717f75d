import hashlib

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.data import partition as partition_module
from common.data.partition import class_counts, partition, smallest_client_rule
from common.data.splits import ClientIndices, Fractions
from common.errors import UserError


def divide(labels, num_classes, num_clients, scheme, **changes):
    arguments = {"classes_per_client": 2, "dirichlet_alpha": 0.5, "min_samples": 2, "seed": 0}
    arguments |= {"fractions": Fractions()} | changes
    return partition(labels, num_classes, num_clients, scheme, **arguments)


def balanced_labels(num_classes, per_class):
    return torch.arange(num_classes).repeat(per_class)


def same(parts, others):
    return all(
        torch.equal(part.train, other.train) and torch.equal(part.test, other.test)
        for part, other in zip(parts, others, strict=True)
    )


def assert_disjoint_and_split(parts, num_samples):
    rows = torch.cat([torch.cat([part.train, part.test]) for part in parts])
    assert rows.dtype == torch.int64
    assert len(rows.unique()) == len(rows)
    assert len(rows) == 0 or (rows.min() >= 0 and rows.max() < num_samples)
    for part in parts:
        total = len(part.train) + len(part.test)
        assert len(part.train) >= 1
        assert len(part.test) == max(total // 4, 1)


label_quantity_cases = st.integers(2, 12).flatmap(
    lambda num_classes: st.tuples(
        st.just(num_classes),
        st.integers(1, num_classes),  # classes a client
        st.integers(1, 12),  # clients
        st.integers(40, 120),  # samples a class
        st.integers(0, 2**32 - 1),
    )
)


@settings(max_examples=80, deadline=None)
@given(label_quantity_cases)
def test_label_quantity_gives_shares_within_the_bounds_of_the_draw(case):
    num_classes, classes_per_client, num_clients, per_class, seed = case
    labels = balanced_labels(num_classes, per_class)
    parts = divide(
        labels,
        num_classes,
        num_clients,
        "non-iid-1",
        classes_per_client=classes_per_client,
        seed=seed,
        min_samples=9999,
    )
    assert_disjoint_and_split(parts, len(labels))
    counts = class_counts(labels, parts, num_classes)
    assert counts.shape == (num_clients, num_classes)
    assert ((counts > 0).sum(axis=1) == classes_per_client).all()
    for of_class in counts.T:
        got = of_class[of_class > 0]
        choosers = len(got)
        if choosers == 0:
            continue
        assert got.sum() == per_class
        lowest = 0.4 / (0.4 + 0.6 * (choosers - 1)) * per_class
        highest = 0.6 / (0.6 + 0.4 * (choosers - 1)) * per_class
        assert (got > lowest - 1).all()
        # Rounding down leaves less than one sample a chooser, and a single chooser gets them all.
        assert (got <= highest).sum() >= choosers - 1
        assert got.max() < highest + choosers


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 80), min_size=1, max_size=8),  # samples of each class
    st.integers(1, 8),
    st.floats(0.3, 5.0),
    st.integers(0, 2**32 - 1),
)
def test_dirichlet_divides_every_sample_and_respects_the_smallest_client(class_sizes, num_clients, alpha, seed):
    assume(sum(class_sizes) >= 20 * num_clients)
    labels = torch.repeat_interleave(torch.arange(len(class_sizes)), torch.tensor(class_sizes))
    try:
        parts = divide(
            labels, len(class_sizes), num_clients, "non-iid-2", dirichlet_alpha=alpha, min_samples=3, seed=seed
        )
    except UserError:
        assume(False)  # a rare draw, tested below
    assert_disjoint_and_split(parts, len(labels))
    counts = class_counts(labels, parts, len(class_sizes))
    assert counts.sum(axis=0).tolist() == class_sizes
    assert counts.sum(axis=1).min() > 3


def test_dirichlet_shares_have_the_mean_and_variance_of_the_distribution():
    alpha, num_clients, num_classes, per_class = 0.5, 5, 400, 1000
    labels = balanced_labels(num_classes, per_class)
    parts = divide(labels, num_classes, num_clients, "non-iid-2", dirichlet_alpha=alpha)
    shares = class_counts(labels, parts, num_classes) / per_class
    assert shares.mean() == pytest.approx(1 / num_clients)
    variance = (1 / num_clients) * (1 - 1 / num_clients) / (num_clients * alpha + 1)
    assert shares.var() == pytest.approx(variance, rel=0.1)


def test_remainders_of_a_client_that_draws_everything_do_not_pile_up_on_one_client():
    labels = balanced_labels(300, 29)
    parts = divide(labels, 300, 10, "non-iid-1", classes_per_client=300)
    totals = class_counts(labels, parts, 300).sum(axis=1)
    assert totals.max() < 1.15 * totals.mean()


def test_clients_share_of_one_class_is_random_not_the_first_rows():
    labels = torch.zeros(1000, dtype=torch.int64)
    first, second = divide(labels, 1, 2, "non-iid-1", classes_per_client=1)
    for part in (first, second):
        assert part.train.float().mean() == pytest.approx(500, abs=60)
        assert not torch.equal(part.train, part.train.sort().values)


@pytest.mark.parametrize("scheme", ["non-iid-1", "non-iid-2"])
def test_seed_alone_decides(scheme):
    labels = balanced_labels(10, 50)
    first = divide(labels, 10, 5, scheme, seed=3)
    np.random.seed(1)  # noqa: NPY002 (the global state must not matter)
    torch.manual_seed(1)
    assert same(first, divide(labels, 10, 5, scheme, seed=3))
    assert not same(first, divide(labels, 10, 5, scheme, seed=4))


def test_client_with_two_samples_gets_one_to_train_and_one_to_test():
    (part,) = divide(torch.tensor([0, 0]), 1, 1, "non-iid-1", classes_per_client=1)
    assert sorted(part.train.tolist() + part.test.tolist()) == [0, 1]
    assert len(part.train) == 1


def test_class_that_nobody_draws_is_unused():
    labels = balanced_labels(4, 20)
    parts = divide(labels, 4, 1, "non-iid-1", classes_per_client=1)
    assert sorted(class_counts(labels, parts, 4)[0]) == [0, 0, 0, 20]


def test_class_counts_by_hand():
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    parts = [
        ClientIndices(torch.tensor([0, 1]), torch.tensor([], dtype=torch.int64), torch.tensor([2])),
        ClientIndices(torch.tensor([5]), torch.tensor([4]), torch.tensor([3])),
    ]
    counts = class_counts(labels, parts, 4)
    assert counts.tolist() == [[1, 2, 0, 0], [0, 0, 3, 0]]
    assert counts.dtype == np.int64


@pytest.mark.parametrize(
    ("dataset", "num_clients", "expected"),
    [("emnist-byclass", 200, 10), ("cifar100", 100, 30), ("cifar100", 101, 15), ("cifar10", 200, 30)],
)
def test_smallest_client_rule(dataset, num_clients, expected):
    assert smallest_client_rule(dataset, num_clients) == expected


def test_unknown_scheme_names_the_valid_ones():
    with pytest.raises(UserError, match=r"'by-size'.*'non-iid-1' or 'non-iid-2'"):
        divide(balanced_labels(2, 10), 2, 2, "by-size")


@pytest.mark.parametrize("classes_per_client", [0, 4])
def test_impossible_number_of_classes_names_the_range(classes_per_client):
    with pytest.raises(UserError, match=rf"classes-per-client is {classes_per_client}, .* 3 classes: set it to 1\.\.3"):
        divide(balanced_labels(3, 10), 3, 2, "non-iid-1", classes_per_client=classes_per_client)


def test_client_without_enough_samples_says_what_to_change():
    with pytest.raises(
        UserError, match=r"only [01] of 3 samples, but each of the 3 .* lower num-clients, raise classes"
    ):
        divide(balanced_labels(1, 3), 1, 3, "non-iid-1", classes_per_client=1)


def test_a_validation_part_takes_a_sample_more():
    two = torch.tensor([0, 0])
    assert len(divide(two, 1, 1, "non-iid-1", classes_per_client=1)) == 1
    with pytest.raises(UserError, match=r"only 2 of 2 .* needs 3, one to train, one to validate and one to test"):
        divide(two, 1, 1, "non-iid-1", classes_per_client=1, fractions=Fractions(validation=0.1))


# Of the rows that partitions gave before there were validation parts and other shares of test samples.
BEFORE = {
    ("non-iid-1", 0): "92bc6def6ce5bf616864d551584476f1af8fbb9a262f70c1bcb8482a3c894ec1",
    ("non-iid-1", 5): "422781840cbb44fc55877754b6e83d9a9884c5f74ecca9c6570483ff17cae6a7",
    ("non-iid-2", 0): "8e3499991713841ae0d4e4848575e6b52b42bf6e650b316e80c84e57c62956f3",
    ("non-iid-2", 5): "a5597a0b71d500f65bf1c326c87047f13d1e1e06e7d5c7d7cd98af38ee509d95",
}


@pytest.mark.parametrize(("scheme", "seed"), BEFORE)
def test_partitions_of_earlier_versions_are_as_they_were(scheme, seed):
    labels = torch.arange(3000) * 7 % 13
    parts = divide(labels, 13, 11, scheme, classes_per_client=3, dirichlet_alpha=0.3, min_samples=30, seed=seed)
    digest = hashlib.sha256()
    for part in parts:
        assert len(part.validation) == 0
        digest.update(part.train.numpy().tobytes() + b"|" + part.test.numpy().tobytes() + b";")
    assert digest.hexdigest() == BEFORE[scheme, seed]


@pytest.mark.parametrize("scheme", ["non-iid-1", "non-iid-2"])
def test_fractions_change_how_a_clients_samples_are_split_and_not_whose_they_are(scheme):
    labels = balanced_labels(10, 50)
    before = divide(labels, 10, 5, scheme)
    after = divide(labels, 10, 5, scheme, fractions=Fractions(test=0.4, validation=0.25))
    for old, new in zip(before, after, strict=True):
        rows = torch.cat([new.test, new.validation, new.train])
        assert torch.equal(rows, torch.cat([old.test, old.train]))
        assert len(new.test) == 2 * len(rows) // 5
        assert len(new.validation) == (len(rows) - len(new.test)) // 4


def test_too_few_samples_for_the_smallest_client_fails_at_once(monkeypatch):
    monkeypatch.setattr(partition_module, "MAX_DIRICHLET_DRAWS", 0)
    with pytest.raises(
        UserError, match=r"30 samples cannot give each of 10 clients more than 3: lower num-clients to 7"
    ):
        divide(balanced_labels(3, 10), 3, 10, "non-iid-2", min_samples=3)


def test_redraw_cap_says_what_was_reached_and_what_to_change(monkeypatch):
    monkeypatch.setattr(partition_module, "MAX_DIRICHLET_DRAWS", 7)
    message = r"in 7 draws: the smallest of 20 clients got \d samples at best, .* more than 9; .*alpha \(now 0\.01\)"
    with pytest.raises(UserError, match=message):
        divide(balanced_labels(2, 200), 2, 20, "non-iid-2", dirichlet_alpha=0.01, min_samples=9)
