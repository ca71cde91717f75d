"""Data of a user's own: what the function returns that `dataset: module:name` names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from common.data.acceptance import Split, Tensors, accepted
from common.data.sources.base import Rows, numbered_owners, read_split
from common.errors import UserError
from common.factories import IN_THE_WORKING_FOLDER, Factory, describe
from common.inputs import InputShape, is_inputs, length, shape_of, shapes, structure, tensors_of
from common.seeding import seeded
from common.text import nearest, shown

_FORM = (
    'a dictionary {"inputs": …, "targets": …}, or {"dataset": …} with a torch Dataset, and where there are such, '
    '"owners", "split" and "class_names"'
)
_KEYS = ("inputs", "targets", "dataset", "owners", "split", "class_names")
# As wherever else the data do not follow from the run's seed: another split would mix test samples into training.
_SEED = 0
# Of classes. Whole numbers above it are something else, and a count for each would fill the memory.
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True, eq=False)
class OwnData:
    """All clients' samples, and what is known of each."""

    split: Split
    input_shape: InputShape  # of one sample
    targets: Tensor | None  # [n, ...]; None: they are known only to a Dataset, item by item
    labels: Tensor | None  # [n] int64; None: the targets are no classes
    class_names: tuple[str, ...]  # () without classes
    owners: Rows | None  # [n], places in `owner_names`
    owner_names: tuple[str, ...]
    is_test: NDArray[np.bool_] | None  # [n]


@dataclass(frozen=True, eq=False)
class OwnSource:
    """Which of the samples are in a data set. Nothing is copied, whatever is left out and whoever has a part.

    Where they are images, uint8 [n, C, H, W], it is a source of images as those of files are.
    """

    split: Split
    rows: Tensor | None = None  # [k] int64, of all samples; None: all of them

    @property
    def is_images(self) -> bool:
        """Whether the inputs are uint8 images, which are normalised."""
        inputs = self.split.inputs if isinstance(self.split, Tensors) else None
        return isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.dim() == 4

    @property
    def known_targets(self) -> Tensor | None:
        """The targets of all samples; None: they are known only to a Dataset."""
        return self.split.targets if isinstance(self.split, Tensors) else None

    @property
    def num_bytes(self) -> int:
        """See ImageSource: all samples, whichever are used. What a Dataset holds is unknown, and counts as nothing."""
        if not isinstance(self.split, Tensors):
            return 0
        return sum(tensor.nbytes for tensor in (*tensors_of(self.split.inputs), self.split.targets))

    def read(self, rows: Rows) -> Tensor:
        """See ImageSource."""
        assert isinstance(self.split, Tensors)
        assert isinstance(self.split.inputs, Tensor)
        return self.split.inputs[self.rows_of(torch.from_numpy(rows))]

    def keep(self, rows: Rows) -> "OwnSource":
        """See ImageSource."""
        return OwnSource(self.split, self.rows_of(torch.from_numpy(rows)))

    def once(self) -> "OwnSource":
        """See ImageSource."""
        return self

    def rows_of(self, indices: Tensor) -> Tensor:
        """The rows [k] int64, of all samples, of these samples of the data set."""
        return indices if self.rows is None else self.rows[indices]


def load_own(name: str, data_dir: Path) -> OwnData:
    """Call a user's function, and look at what it returns.

    Args:
        name: `module:name`. The function is called without arguments, or with `data_dir` if it has such a parameter.
        data_dir: the data folder, which need not be there.

    Raises:
        UserError: the function cannot be imported, fails, or returns something else; a sentence that says what.
    """
    factory = Factory("dataset", name, remedy=IN_THE_WORKING_FOLDER)
    given = {"data_dir": data_dir} if factory.takes("data_dir") else {}
    with seeded(_SEED):
        content = Factory(factory.key, name, given, factory.remedy).call()
    returned = f"dataset: what {name} returned"
    values = _values(content, returned)
    if "dataset" in values:
        split = accepted(values["dataset"], f"{returned} under dataset")
    else:
        split = accepted((values["inputs"], values["targets"]), returned)
    targets = _targets(values.get("targets"), split, returned)
    labels = None if targets is None else _labels(targets, returned)
    owners: Rows | None = None
    owner_names: tuple[str, ...] = ()
    if "owners" in values:
        where = f"{returned} under owners"
        owners, owner_names = numbered_owners(_one_a_sample(values["owners"], len(split), where), where)
    is_test = None
    if "split" in values:
        where = f"{returned} under split"
        is_test = read_split(_one_a_sample(values["split"], len(split), where), where)
    return OwnData(
        split,
        _input_shape(split, returned),
        targets,
        labels,
        _class_names(values.get("class_names"), labels, returned),
        owners,
        owner_names,
        is_test,
    )


def _values(content: Any, returned: str) -> dict[str, Any]:
    """What the dictionary holds, less what is None."""
    if not isinstance(content, Mapping):
        raise UserError(f"{returned} is {structure(content)}, but must be {_FORM}.")
    for key in content:
        if key not in _KEYS:
            hint = nearest(str(key), _KEYS) or "."
            raise UserError(f"{returned} has a key {shown(key)}, but must be {_FORM}{hint}")
    values = {str(key): value for key, value in content.items() if value is not None}
    if "dataset" in values and "inputs" in values:
        raise UserError(f"{returned} has both inputs and dataset, but must be {_FORM}.")
    if isinstance(values.get("dataset"), tuple | list):
        # Where a site returns samples, such a thing is a pair of tensors.
        raise UserError(f"{returned} under dataset is {structure(values['dataset'])}, but must be a torch Dataset.")
    lacking = [key for key in ("inputs", "targets") if key not in values and "dataset" not in values]
    if lacking:
        raise UserError(f"{returned} has no {' and no '.join(lacking)}, but must be {_FORM}.")
    return values


def _targets(targets: Any, split: Split, returned: str) -> Tensor | None:
    """All targets, if they are known; those given beside a Dataset say what is in it, without reading it."""
    if isinstance(split, Tensors):
        return split.targets
    if targets is None:
        return None
    targets = torch.as_tensor(targets) if isinstance(targets, list | np.ndarray) else targets
    if not isinstance(targets, Tensor) or length(targets) != len(split):
        raise UserError(
            f"{returned} under targets is {structure(targets)}, but beside a Dataset of {len(split)} samples it must "
            f"be a tensor of as many."
        )
    return targets


def _labels(targets: Tensor, returned: str) -> Tensor | None:
    """The targets as classes, if they are such: one whole number, or flag, a sample."""
    if targets.dim() != 1 or targets.is_floating_point() or targets.is_complex():
        return None
    labels = targets.to("cpu", torch.int64)
    outside = ((labels < 0) | (labels >= _MOST_CLASSES)).nonzero()
    if len(outside):
        sample = int(outside[0])
        raise UserError(
            f"{returned} has the target {int(labels[sample])} for sample {sample}: whole numbers are classes, from 0 "
            f"and below {_MOST_CLASSES:,}; return targets that are something else as floats."
        )
    return labels


def _class_names(names: Any, labels: Tensor | None, returned: str) -> tuple[str, ...]:
    if labels is None:
        if names is not None:
            raise UserError(
                f"{returned} has class_names, but its targets are no classes: those are whole numbers, one a sample."
            )
        return ()
    num_classes = int(labels.max()) + 1
    if names is None:
        return tuple(str(label) for label in range(num_classes))
    if isinstance(names, str) or not all(isinstance(name, str) for name in names) or len(names) < num_classes:
        raise UserError(
            f"{returned} under class_names is {shown(names)}, but must be a list of {num_classes} or more texts, one a "
            "class."
        )
    return tuple(names)


def _one_a_sample(values: Any, count: int, where: str) -> NDArray[Any]:
    """Texts, whole numbers or flags as an array [n]."""
    try:
        array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except ValueError as error:  # lists of different lengths
        raise UserError(f"{where} cannot be read: {describe(error)}.") from error
    if array.dtype == object and all(isinstance(value, str) for value in array.flat):  # a column of pandas'
        array = array.astype(np.str_)
    if array.shape != (count,):
        raise UserError(
            f"{where} has the shape {list(array.shape)}, but must be one value a sample: text or numbers [{count}]."
        )
    return array


def _input_shape(split: Split, returned: str) -> InputShape:
    if isinstance(split, Tensors):
        return shape_of(split.inputs)
    try:
        inputs = default_collate([split.dataset[0][0]])
    except Exception as error:
        raise UserError(
            f"{returned} under dataset has a first input that makes no batch: {describe(error)}."
        ) from error
    if not is_inputs(inputs):
        raise UserError(
            f"{returned} under dataset has the first input {shapes(inputs)}, but must have a tensor, or a tuple or "
            "dictionary of tensors."
        )
    return shape_of(inputs)
