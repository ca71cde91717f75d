"""A model's generated parameters as one flat float32 vector (theta_i of the paper, section 3.2)."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn


class ParameterVector:
    """View of the parameters of a model whose names match `include` and not `exclude`, in the model's own order.

    Buffers (such as batch-norm running statistics) are never part of it.

    Parameters
    ----------
    model: the model; its parameters are read and written in place.
    include, exclude: shell-style patterns of parameter names, such as `features.*`.

    Raises ValueError for a pattern that matches no parameter, and when nothing is left; TypeError for a selected
    parameter that is not floating point.
    """

    def __init__(self, model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> None:
        parameters = dict(model.named_parameters())
        for pattern in (*include, *exclude):
            if not any(fnmatchcase(name, pattern) for name in parameters):
                raise ValueError(f"pattern {pattern!r} matches no parameter; the model has {', '.join(parameters)}")
        chosen = {
            name: parameter
            for name, parameter in parameters.items()
            if any(fnmatchcase(name, pattern) for pattern in include)
            and not any(fnmatchcase(name, pattern) for pattern in exclude)
        }
        if not chosen:
            raise ValueError(f"include {tuple(include)} and exclude {tuple(exclude)} leave no parameter")
        for name, parameter in chosen.items():
            if not parameter.is_floating_point():
                raise TypeError(f"parameter {name!r} is {parameter.dtype}, but only floating point can be generated")
        self.names = tuple(chosen)
        self._parameters = list(chosen.values())
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self.size = sum(self._sizes)  # K

    def read(self) -> Tensor:
        """Copy the parameters into a vector [K] float32, on the model's device."""
        with torch.no_grad():
            return torch.cat([parameter.flatten().float() for parameter in self._parameters])

    def write(self, vector: Tensor) -> None:
        """Copy a vector [K] into the parameters. Raises ValueError for another shape."""
        if vector.shape != (self.size,):
            raise ValueError(f"vector has shape {tuple(vector.shape)}, but the model takes ({self.size},)")
        with torch.no_grad():
            for parameter, values in zip(self._parameters, vector.split(self._sizes), strict=True):
                parameter.copy_(values.view_as(parameter))
