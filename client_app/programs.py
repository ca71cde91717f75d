"""Personal models as programs: files that hold code and weights, and run where there is nothing but PyTorch."""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from client_app.personal import DESCRIPTION, About, Personal, load_weights
from client_app.training import forward
from common.errors import UserError
from common.factories import describe
from common.files import WriteError, write_bytes
from common.inputs import Inputs

_ROWS = 3  # of the batch that a program is made with; with 0 or 1 PyTorch takes the number for a part of the model
_TRIED = (1, 5)  # sizes of batches that a program is tried on


class OnImages(nn.Module):
    """A model with the normalisation of its images before it.

    Parameters
    ----------
    model: takes normalised images [n, C, H, W] float32.
    mean, std: of pixels from 0 to 1, one a channel.
    """

    mean: Tensor  # [1, C, 1, 1], of values 0 to 255
    std: Tensor  # [1, C, 1, 1]

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [n, C, H, W] uint8 to what the model makes of them."""
        outputs: Tensor = self.model((images.float() - self.mean) / self.std)
        return outputs


def write_program(
    personal: Personal, model: nn.Module, output: Path, form: str, built_by: str = f"its {DESCRIPTION} builds"
) -> None:
    """Write a program that runs with PyTorch alone, for batches of any size, on the CPU until it is moved.

    It takes raw images, [n, C, H, W] uint8, where the description has a normalisation; else the inputs that the model
    takes. The description is in the file, as an extra file under its own name.

    Parameters
    ----------
    personal: weights and description.
    model: built by what the description names.
    output: must not exist yet.
    form: one of FORMS.
    built_by: what built the model, for a sentence.

    Raises UserError for weights that do not fit the model, for a model that cannot be made a program, or whose program
    does not do what the model does, and for a file that is there already or cannot be written.
    """
    written = FORMS[form]
    if output.suffix != written.suffix:
        raise UserError(f"output is {output}, but a {form} file must end in {written.suffix}.")
    check_new(output)
    load_weights(personal, model, built_by)
    model = model.cpu().eval().requires_grad_(False)
    if "mean" in personal.about:
        model = OnImages(model, personal.about["mean"], personal.about["std"])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch says with every file that TorchScript is deprecated
            content = written.make(model, _example(personal.about, _ROWS), json.dumps(personal.about))
            program = written.load(io.BytesIO(content))
            strays = [rows for rows in _TRIED if not _agree(model, program, _example(personal.about, rows))]
    except Exception as error:
        raise UserError(
            f"The model of {personal.path} cannot be written as {form} ({describe(error)}): try another --format, or "
            "load its state_dict into the model that its own code builds."
        ) from error
    if strays:
        raise UserError(
            f"As {form} the model of {personal.path} gives other outputs for a batch of {strays[0]} than it should: "
            "what it does depends on the size of the batch or on chance. Load its state_dict into the model that its "
            "own code builds."
        )
    try:
        write_bytes(output, content)
    except WriteError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}.") from error


def check_new(output: Path) -> None:
    """Raise UserError for a file that is there already."""
    if output.exists():
        raise UserError(f"{output} exists already: choose another name, or remove it.")


def _exported(model: nn.Module, example: Inputs, content: str) -> bytes:
    batch = torch.export.Dim("batch", min=1)
    by_place, by_name = _arguments(example)
    sizes: Any = {name: {0: batch} for name in by_name} if by_name else tuple({0: batch} for _ in by_place)
    program = torch.export.export(model, by_place, by_name, dynamic_shapes=sizes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={DESCRIPTION: content})
    return buffer.getvalue()


def _traced(model: nn.Module, example: Inputs, content: str) -> bytes:
    by_place, by_name = _arguments(example)
    # What the traced program does is compared with the model below, with batches of other sizes.
    given: dict[str, Any] = {"example_kwarg_inputs": by_name} if by_name else {"example_inputs": by_place}
    program = torch.jit.trace(model, **given, check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(program, buffer, _extra_files={DESCRIPTION: content})
    return buffer.getvalue()


@dataclass(frozen=True)
class Form:
    """A kind of file that holds a program."""

    suffix: str
    make: Callable[[nn.Module, Inputs, str], bytes]
    load: Callable[[io.BytesIO], Callable[..., Any]]


# The first is the default: PyTorch has declared TorchScript deprecated, but C++ programs and old installations read it.
FORMS = {
    "torch-export": Form(".pt2", _exported, lambda file: torch.export.load(file).module()),
    "torchscript": Form(".pt", _traced, torch.jit.load),
}


def _arguments(inputs: Inputs) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The arguments with which `forward` calls a model, by place and by name."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def _agree(model: nn.Module, program: Callable[..., Any], inputs: Inputs) -> bool:
    by_place, by_name = _arguments(inputs)
    expected, found = forward(model, inputs), program(*by_place, **by_name)
    return expected.shape == found.shape and torch.allclose(expected, found, rtol=1e-3, atol=1e-4, equal_nan=True)


def _example(content: About, rows: int) -> Inputs:
    """A batch of what a program takes, made up."""
    if "mean" in content:
        return torch.randint(0, 256, (rows, *content["image-shape"]), dtype=torch.uint8, generator=_seeded())
    inputs = content["inputs"]
    if isinstance(inputs, list):
        return tuple(_made_up(each, rows) for each in inputs)
    if isinstance(inputs.get("dtype"), str):
        return _made_up(inputs, rows)
    return {name: _made_up(each, rows) for name, each in inputs.items()}


def _made_up(specification: About, rows: int) -> Tensor:
    shape, dtype = (rows, *specification["shape"]), getattr(torch, specification["dtype"])
    if dtype.is_floating_point:
        return torch.randn(shape, generator=_seeded()).to(dtype)
    return torch.zeros(shape, dtype=dtype)  # an index that every table has


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
