"""What lies beside a personal model's weights, so that they can be loaded without this package.

`personal-model.json` says which code builds the model, what goes into it and where it comes from.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from client_app.samples import Samples
from client_app.site.site import Site
from client_app.store import PERSONAL_MODEL, State
from common.errors import UserError
from common.evaluation import Evaluation
from common.factories import Factory, describe
from common.instructions import Instructions
from common.models import MODELS, build_model

About = dict[str, Any]

DESCRIPTION = f"{PERSONAL_MODEL}.json"
_BY_PLACE = ("input_shape", "num_classes")  # what a factory of `models` is called with


def about(site: Site, instructions: Instructions, evaluation: Evaluation | None) -> About:
    """What `personal-model.json` holds, of a model whose run is over: text, numbers, and lists and maps of them.

    `inputs` are shape and type of what the model takes, without the dimension of the batch: of its one tensor, or of
    each in a list or a map. Where `mean` and `std` are given, of pixels from 0 to 1, these are normalised images.
    """
    content: About = {
        "run-name": instructions.run_name,
        "method": instructions.method,
        "round": instructions.server_round - 1,  # the one that led to the model
        **site.built_by,
        "inputs": _specification(site.train),
    }
    if evaluation:
        content |= {"test-accuracy": evaluation.accuracy, "test-samples": evaluation.total}
    return content


@dataclass(frozen=True)
class Personal:
    """What a finished run has left of a personal model."""

    path: Path  # of the weights
    state: State
    about: About


def read_personal(folder: Path) -> Personal:
    """Read the two files that a client has in its folder of a finished run. Raises UserError for a damaged one."""
    path = folder / f"{PERSONAL_MODEL}.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's reader answers damage with whatever its parts raise
        raise UserError(f"{path} is damaged: restore it from a backup, or run again.") from error
    try:
        content = json.loads((folder / DESCRIPTION).read_text())
        if not {"inputs", "run-name"} <= content.keys():
            raise KeyError("inputs")
    except Exception as error:
        raise UserError(f"{folder / DESCRIPTION} is missing or damaged: restore it, or run again.") from error
    return Personal(path, state, content)


def build_described(content: About) -> nn.Module:
    """Build the model that a description names: a public architecture, or what a user's function returns.

    Raises UserError when it cannot be built.
    """
    if "factory" in content:
        args = content.get("args", {})
        by_name = args if isinstance(args, Mapping) else {}
        by_place = {} if isinstance(args, Mapping) else dict(zip(_BY_PLACE, map(_as_shape, args), strict=True))
        model = Factory("factory", str(content["factory"]), by_name).call(**by_place)
        if not isinstance(model, nn.Module):
            raise UserError(f"factory: {content['factory']} did not return a torch.nn.Module.")
        return model
    name = content.get("architecture")
    if name not in MODELS:
        raise UserError(f"{DESCRIPTION} names architecture {name!r}, but must name one of {', '.join(MODELS)}.")
    channels, height, width = content["image-shape"]
    return build_model(name, (channels, height, width), content["num-classes"], seed=0)


def load_weights(personal: Personal, model: nn.Module, built_by: str) -> None:
    """Load the weights into a model. Raises UserError when they do not fit; `built_by` says what built it."""
    try:
        model.load_state_dict(personal.state, strict=True)
    except Exception as error:
        raise UserError(
            f"{personal.path} does not fit the model that {built_by} ({describe(error)}): was the model changed since?"
        ) from error


def _specification(samples: Samples) -> Any:
    """Shape and type of the first sample's inputs, in the structure in which the model takes them."""
    inputs, _ = samples.batch(torch.arange(1, device=samples.device))
    if isinstance(inputs, Mapping):
        return {name: _shape_and_type(tensor) for name, tensor in inputs.items()}
    if isinstance(inputs, tuple | list):
        return [_shape_and_type(tensor) for tensor in inputs]
    return _shape_and_type(inputs)


def _shape_and_type(tensor: Tensor) -> About:
    return {"shape": list(tensor.shape[1:]), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _as_shape(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_shape(each) for name, each in value.items()}
    return tuple(map(_as_shape, value)) if isinstance(value, list) else value
