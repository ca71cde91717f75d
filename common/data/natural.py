"""Natural clients: each owner of samples in the files, such as a writer or a hospital, is a client."""

from collections.abc import Sequence

import numpy as np

from common.data.datasets import Dataset
from common.data.sources.base import Rows
from common.data.splits import ClientIndices, Fractions
from common.errors import UserError
from common.text import shown


def owners_with(dataset: Dataset, min_samples: int) -> tuple[Rows, int]:
    """Find the owners that can be clients.

    Args:
        dataset: with owners.
        min_samples: training and test samples together that an owner must have; 0 asks for none.

    Returns:
        [k] places in `owner_names` of those with so many samples, in order, and how many others have some.

    Raises UserError for data without owners, and where none has so many samples.
    """
    if dataset.owners is None:
        raise UserError(
            f"partition is 'by-client', but {dataset.origin} does not say whose its samples are: add "
            f"{_where(dataset)}, or choose another partition."
        )
    sizes = np.bincount(dataset.owners.numpy(), minlength=len(dataset.owner_names))
    found = np.flatnonzero(sizes >= max(min_samples, 1))
    if len(found) == 0:
        raise UserError(
            f"min-samples is {min_samples}, but the largest owner in {dataset.origin} has {sizes.max()} samples."
        )
    return found, int((sizes > 0).sum()) - len(found)


def draw_owners(found: Rows, num_clients: int, held_out: int, seed: int) -> Rows:
    """Draw who takes part, and who of them is held out, from the seed; both in the order of `found`, the latter last.

    Args:
        found: [k] owners, at least `num_clients`.
        num_clients: how many take part, those that are held out as well.
        held_out: how many of them are held out.
        seed: of the draw, >= 0.
    """
    drawn = np.random.default_rng(seed).permutation(found)[:num_clients]
    trained = num_clients - held_out
    return np.concatenate([np.sort(drawn[:trained]), np.sort(drawn[trained:])])


def split_by_owner(dataset: Dataset, owners: Rows, fractions: Fractions, seed: int) -> list[ClientIndices]:
    """Give each of these owners its own samples, split as the data say or, where they do not, by `fractions`.

    How one owner's samples are split depends on the seed and that owner alone, whoever else takes part.

    Raises UserError for an owner that has no sample for one of the parts.
    """
    assert dataset.owners is not None
    order = np.argsort(dataset.owners.numpy(), kind="stable")
    starts, ends = (np.searchsorted(dataset.owners.numpy()[order], owners, side) for side in ("left", "right"))
    parts = []
    for owner, start, end in zip(owners, starts, ends, strict=True):
        rows = np.random.default_rng([seed, owner]).permutation(order[start:end])
        if dataset.is_test is None:
            if len(rows) < fractions.parts:
                raise UserError(
                    f"{_name(dataset, owner)} has {_samples(len(rows))}, but a client needs {fractions.parts}, "
                    f"{fractions.purposes}: min-samples={fractions.parts} leaves out owners with fewer."
                )
            parts.append(fractions.split(rows))
        else:
            is_test = dataset.is_test.numpy()[rows]
            training, test = rows[~is_test], rows[is_test]
            if len(training) < fractions.parts - 1 or len(test) == 0:
                raise UserError(
                    f"{_name(dataset, owner)} has {_samples(len(training), 'training')} and "
                    f"{_samples(len(test), 'test')} by the data's own split, but a client needs {fractions.purposes}: "
                    "split the samples of each owner, or take the split out and set test-fraction."
                )
            parts.append(fractions.split_training(training, test))
    return parts


def names_of(dataset: Dataset, owners: Rows) -> Sequence[str]:
    """The names of these owners."""
    return [dataset.owner_names[owner] for owner in owners]


def _where(dataset: Dataset) -> str:
    """Where owners stand in the files of this kind, or in those of a kind that has them."""
    places = {"npz": "an array owners", "parquet": "a column client"}
    if dataset.name in places:
        return f"{places[dataset.name]} with text or a whole number for each sample"
    return "them in files of your own (dataset: npz or parquet)"


def _name(dataset: Dataset, owner: int) -> str:
    return f"Owner {shown(dataset.owner_names[owner])} in {dataset.origin}"


def _samples(count: int, kind: str = "") -> str:
    return f"{count} {f'{kind} ' if kind else ''}sample{'' if count == 1 else 's'}"
