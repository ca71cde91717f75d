"""Samples that a user's own code has loaded: what is taken as such, from a site and from a simulation alike."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from common.errors import UserError
from common.factories import describe, kind_of
from common.inputs import Inputs, is_inputs, length, shapes, structure, tensors_of

_RIGHT = "a pair of tensors (inputs, targets) or a torch Dataset of (input, target)"


@dataclass(frozen=True, eq=False)
class Tensors:
    """Samples in memory."""

    inputs: Inputs  # each tensor [n, ...]
    targets: Tensor  # [n, ...]

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Items:
    """Samples that are read one by one."""

    dataset: Any  # with __len__ and __getitem__; PyTorch's Dataset class is not a must

    def __len__(self) -> int:
        return len(self.dataset)


Split = Tensors | Items


def accepted(content: Any, what: str) -> Split:
    """The samples in what a user's function returned; `what` names it, to begin a sentence with.

    Raises UserError for what is neither a pair of tensors nor a Dataset, of different lengths, empty, or unreadable.
    """
    split: Split
    if isinstance(content, tuple | list):
        if len(content) != 2 or not is_inputs(content[0]) or not isinstance(content[1], Tensor):
            hint = "; torch.from_numpy makes tensors of arrays" if "ndarray" in structure(content) else ""
            raise UserError(f"{what} is {structure(content)}, but must be {_RIGHT}{hint}.")
        inputs, targets = content
        if len({length(tensor) for tensor in (*tensors_of(inputs), targets)}) != 1:
            raise UserError(
                f"{what} is of different lengths: inputs {shapes(inputs)}, targets {shapes(targets)}; both must have "
                "one row a sample."
            )
        split = Tensors(inputs, targets)
    elif hasattr(content, "__getitem__") and hasattr(content, "__len__") and not isinstance(content, Tensor | dict):
        split = Items(content)
    else:
        hint = "; one that is read by index, with a length" if isinstance(content, TorchDataset) else ""
        raise UserError(f"{what} is {kind_of(content)}, but must be {_RIGHT}{hint}.")
    try:
        empty = len(split) == 0
        item = None if empty or isinstance(split, Tensors) else split.dataset[0]
    except Exception as error:
        raise UserError(f"{what} is {kind_of(content)}, which cannot be read: {describe(error)}.") from error
    if empty:
        raise UserError(f"{what} is empty, but must hold at least one sample.")
    if item is not None and (not isinstance(item, tuple | list) or len(item) != 2):
        raise UserError(f"{what} is a Dataset whose first item is {structure(item)}, but must be (input, target).")
    return split
