"""What a model takes as a batch: a tensor, several, or several by name; its shape, and how sentences describe it."""

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from torch import Tensor

from common.factories import kind_of

# A batch as the model takes it: `model(inputs)`, `model(*inputs)` or `model(**inputs)`.
Inputs = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]

Shape = tuple[int, ...]
ImageShape = tuple[int, int, int]  # channels, height, width


class ShapesByName(dict[str, Shape]):
    """The shapes of several inputs by their names. It can be a key, as the shape of a single tensor can: do not change
    it.
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


# Of one sample's input: of its tensor, or in the structure of its tensors.
InputShape = Shape | tuple[Shape, ...] | ShapesByName


def is_inputs(value: object) -> bool:
    """Whether a model can take this as a batch."""
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(each, Tensor) for each in value.values())
    if isinstance(value, tuple | list):
        return bool(value) and all(isinstance(each, Tensor) for each in value)
    return isinstance(value, Tensor)


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """All tensors of a batch."""
    if isinstance(inputs, Mapping):
        return list(inputs.values())
    return list(inputs) if isinstance(inputs, tuple | list) else [inputs]


def map_inputs(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The same structure with every tensor changed."""
    if isinstance(inputs, Mapping):
        return {name: change(tensor) for name, tensor in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(change(tensor) for tensor in inputs)
    return change(inputs)


def shape_of(inputs: Inputs) -> InputShape:
    """The shape of one sample's input. `inputs` is a batch: each tensor has one row a sample."""
    if isinstance(inputs, Mapping):
        return ShapesByName((name, tuple(tensor.shape[1:])) for name, tensor in inputs.items())
    if isinstance(inputs, tuple | list):
        return tuple(tuple(tensor.shape[1:]) for tensor in inputs)
    return tuple(inputs.shape[1:])


def is_image_shape(shape: InputShape) -> TypeGuard[ImageShape]:
    """Whether inputs of this shape are images [C, H, W]."""
    return isinstance(shape, tuple) and len(shape) == 3 and all(isinstance(size, int) for size in shape)


def length(tensor: Tensor) -> int:
    """Rows of a tensor; -1 for a number without dimensions."""
    return len(tensor) if tensor.dim() else -1


def dtype(tensor: Tensor) -> str:
    """Name of a tensor's type, such as float32."""
    return str(tensor.dtype).removeprefix("torch.")


def shapes(inputs: Any) -> str:
    """Shape and type of a tensor, or of each in a structure."""
    if isinstance(inputs, Mapping):
        return "{" + ", ".join(f"{name}: {shapes(each)}" for name, each in inputs.items()) + "}"
    if isinstance(inputs, tuple | list):
        return "(" + ", ".join(shapes(each) for each in inputs) + ")"
    return f"{list(inputs.shape)} {dtype(inputs)}" if isinstance(inputs, Tensor) else type(inputs).__name__


def structure(value: Any) -> str:
    """What a value is made of, as far as a sentence can tell."""
    if isinstance(value, tuple | list):
        return f"of type {type(value).__name__} ({', '.join(type(each).__name__ for each in value[:6])})"
    if isinstance(value, Tensor):
        return f"of type Tensor, {shapes(value)}"
    return kind_of(value)
