"""Division of a labelled data set among simulated clients: non-IID_1 and non-IID_2 of section 4.1 of the paper.

non-IID_1 (quantity-based label imbalance): every client holds a fixed number of classes. non-IID_2 (distribution-based
label imbalance): every class is spread over the clients by a Dirichlet draw. Both work on labels alone; clients that
the data themselves have are in `natural.py`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data.splits import ClientIndices, Fractions
from common.errors import UserError

# CIFAR-100 with 200 clients and alpha 0.01 needs about 25,000 draws of under 1 ms; one that fails four times as long
# needs other settings.
MAX_DIRICHLET_DRAWS = 100_000


def partition(
    labels: Tensor,
    num_classes: int,
    num_clients: int,
    scheme: str,
    *,
    classes_per_client: int,
    dirichlet_alpha: float,
    min_samples: int,
    fractions: Fractions,
    seed: int,
) -> list[ClientIndices]:
    """Divide a data set among clients; each client's share is then split into what it trains and tests on.

    No sample goes to two clients. The result depends on the arguments alone, not on any global random state.

    Args:
        labels: [n] int64, each in 0..num_classes-1.
        num_classes: number of classes; a class may be absent from `labels`.
        num_clients: number of clients, at least 1.
        scheme: "non-iid-1" or "non-iid-2".
        classes_per_client: non-iid-1: classes that each client draws without replacement. A class drawn by nobody is
            left out, and a client gets nothing of a class that has fewer samples than clients that drew it.
        dirichlet_alpha: non-iid-2: concentration, > 0; the smaller, the fewer clients share a class.
        min_samples: non-iid-2: the draw is repeated until every client has more than this many samples.
        fractions: of each client's samples.
        seed: of every random choice, >= 0.

    Raises:
        UserError: the scheme is unknown, the division is impossible or was not found within MAX_DIRICHLET_DRAWS
            draws, or a client got fewer samples than the parts of a split need.
    """
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(labels.numpy() == label)) for label in range(num_classes)]
    class_sizes = np.array([len(rows) for rows in by_class], dtype=np.int64)
    if scheme == "non-iid-1":
        counts = _label_quantity_counts(class_sizes, num_clients, classes_per_client, rng)
    elif scheme == "non-iid-2":
        counts = _dirichlet_counts(class_sizes, num_clients, dirichlet_alpha, min_samples, rng)
    else:
        raise UserError(f"partition is {scheme!r}, but must be 'non-iid-1' or 'non-iid-2'.")

    totals = counts.sum(axis=1)
    if totals.min() < fractions.parts:
        remedy = "raise classes-per-client" if scheme == "non-iid-1" else "raise dirichlet-alpha"
        raise UserError(
            f"partition {scheme!r} gives client {totals.argmin()} only {totals.min()} of {len(labels)} samples, but "
            f"each of the {num_clients} clients needs {fractions.parts}, {fractions.purposes}: lower num-clients, "
            f"{remedy}, or use more samples (max-samples-per-class)."
        )
    ends = counts.cumsum(axis=0)  # [clients, classes]
    starts = ends - counts
    parts = []
    for client in range(num_clients):
        shares = [rows[start:end] for rows, start, end in zip(by_class, starts[client], ends[client], strict=True)]
        parts.append(fractions.split(rng.permutation(np.concatenate(shares))))
    return parts


def smallest_client_rule(dataset: str, num_clients: int) -> int:
    """Return the paper's `min_samples` of non-IID_2: 10 for EMNIST, 15 for CIFAR-100 beyond 100 clients, else 30."""
    if dataset == "emnist-byclass":
        return 10
    if dataset == "cifar100" and num_clients > 100:
        return 15
    return 30


def class_counts(labels: Tensor, parts: Sequence[ClientIndices], num_classes: int) -> NDArray[np.int64]:
    """Count each client's samples of each class, those of all its parts together.

    Args:
        labels: [n] int64, labels of the data set that `parts` divides.
        parts: the clients' shares.
        num_classes: number of classes.

    Returns:
        [clients, classes] int64.
    """
    counts = [
        torch.bincount(labels[torch.cat([part.train, part.validation, part.test])], minlength=num_classes)
        for part in parts
    ]
    return torch.stack(counts).numpy()


def _label_quantity_counts(
    class_sizes: NDArray[np.int64], num_clients: int, classes_per_client: int, rng: np.random.Generator
) -> NDArray[np.int64]:  # [clients, classes]
    num_classes = len(class_sizes)
    if not 1 <= classes_per_client <= num_classes:
        raise UserError(
            f"classes-per-client is {classes_per_client}, but the data set has {num_classes} classes: "
            f"set it to 1..{num_classes}."
        )
    weights = np.zeros((num_clients, num_classes))
    for client in range(num_clients):
        chosen = rng.choice(num_classes, size=classes_per_client, replace=False)
        weights[client, chosen] = rng.uniform(0.4, 0.6, size=classes_per_client)
    counts = np.zeros((num_clients, num_classes), dtype=np.int64)
    for label, size in enumerate(class_sizes):
        choosers = np.flatnonzero(weights[:, label])
        if len(choosers) == 0:
            continue
        shares = weights[choosers, label] / weights[choosers, label].sum()
        counts[choosers, label] = np.floor(shares * size).astype(np.int64)
        # A fixed receiver of the remainders, such as the first client, would collect those of all its classes.
        counts[rng.choice(choosers), label] += size - counts[:, label].sum()
    return counts


def _dirichlet_counts(
    class_sizes: NDArray[np.int64], num_clients: int, alpha: float, min_samples: int, rng: np.random.Generator
) -> NDArray[np.int64]:  # [clients, classes]
    total = int(class_sizes.sum())
    if num_clients * (min_samples + 1) > total:
        raise UserError(
            f"{total} samples cannot give each of {num_clients} clients more than {min_samples}: lower num-clients to "
            f"{total // (min_samples + 1)} or use more samples (max-samples-per-class)."
        )
    best = -1
    for _ in range(MAX_DIRICHLET_DRAWS):
        shares = rng.dirichlet(np.full(num_clients, alpha), size=len(class_sizes))  # [classes, clients]
        ends = np.floor(shares.cumsum(axis=1) * class_sizes[:, None]).astype(np.int64)
        ends[:, -1] = class_sizes  # the last sum is 1 but for rounding
        counts = np.diff(ends, axis=1, prepend=0).T
        smallest = int(counts.sum(axis=1).min())
        if smallest > min_samples:
            return counts
        best = max(best, smallest)
    raise UserError(
        f"partition 'non-iid-2' found no division in {MAX_DIRICHLET_DRAWS} draws: the smallest of {num_clients} "
        f"clients got {best} samples at best, but must have more than {min_samples}; lower num-clients or raise "
        f"dirichlet-alpha (now {alpha:g})."
    )
