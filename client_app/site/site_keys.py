"""The keys that a site's YAML may have, and what may stand under each.

A check takes the value as YAML gives it and returns it in the form that is used. Its ValueError says what the value
must be, to end a sentence with.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from common.device import resolve_device
from common.errors import ProtocolError, UserError
from common.factories import NAME
from common.schema import Label
from common.settings import MIN_NOISE_MULTIPLIER
from common.text import nearest


def _factory(value: object) -> tuple[str, dict[str, Any]]:
    form = 'a mapping such as {factory: "hospital.nets:build", args: {width: 32}}'
    if not isinstance(value, dict):
        raise ValueError(form)
    for key in value:
        if key not in ("factory", "args"):
            raise ValueError(f"{form}: there is no key {key!r} in it{nearest(str(key), ['factory', 'args'])}")
    name, args = value.get("factory"), value.get("args") or {}
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{form}: its factory is module:name")
    if not isinstance(args, dict) or not all(isinstance(key, str) for key in args):
        raise ValueError(f"{form}: its args are a mapping from names to values")
    return name, args


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise ValueError('a list of patterns of parameter names such as ["head.*"]')
    return tuple(value)


def label(value: object) -> str:
    """A client key or the label of a group."""
    try:
        return Label().check("label", value)
    except ProtocolError:
        raise ValueError("text of 1 to 64 letters, digits, dots, dashes and underscores (a number in quotes)") from None


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != 3 or not all(type(each) is int and each > 0 for each in value):
        raise ValueError("a list of channels, height and width such as [3, 32, 32]")
    return tuple(value)


def _classes(value: object) -> int:
    if type(value) is not int or value < 2:
        raise ValueError("a whole number of at least 2")
    return value


def _seed(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError("a whole number from 0 to 2147483647")
    return value


def _folder(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("the path of a folder; a relative one starts at the folder of this file")
    return value


def _device(value: object) -> torch.device:
    if value not in ("auto", "cpu", "cuda"):
        raise ValueError("auto, cpu or cuda")
    try:
        return resolve_device(str(value))
    except UserError:
        raise ValueError("auto or cpu, because PyTorch finds no CUDA device on this machine") from None


def _methods(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) and NAME.fullmatch(each) for each in value):
        raise ValueError(
            'a list of methods from outside this project, package.module:Class, such as ["lab.fed:Method"]'
        )
    return tuple(value)


def _privacy(value: object) -> dict[str, float]:
    """Keyword arguments of `Privacy`."""
    form = "a mapping such as {clipping-norm: 1.0, noise-multiplier: 1.0, delta: 1e-5, max-epsilon: 50}"
    if not isinstance(value, dict):
        raise ValueError(form)
    for key in value:
        if key not in _PRIVACY:
            raise ValueError(f"{form}: there is no key {key!r} in it{nearest(str(key), list(_PRIVACY))}")
    for key in ("clipping-norm", "noise-multiplier"):
        if key not in value:
            raise ValueError(f"{form}: its {key} is missing")
    for key, number in value.items():
        least, below = _PRIVACY[key]
        if isinstance(number, bool) or not isinstance(number, int | float) or not least <= number < below:
            within = f"of at least {least:g}" + (f" and below {below:g}" if below < math.inf else "")
            raise ValueError(f"{form}: its {key} is a number {within}")
    return {key.replace("-", "_"): float(number) for key, number in value.items()}


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < math.inf:
        raise ValueError("a number of seconds of at least 1")
    return float(value)


# Key -> least value, and the one that is too much.
_PRIVACY = {
    "clipping-norm": (1e-6, math.inf),
    "noise-multiplier": (MIN_NOISE_MULTIPLIER, math.inf),
    "delta": (1e-20, 1.0),
    "max-epsilon": (1e-6, math.inf),
}

KEYS: dict[str, Callable[[object], Any]] = {
    "model": _factory,
    "data": _factory,
    "loss": _factory,
    "correct": _factory,
    "keep-local": _patterns,
    "freeze": _patterns,
    "group": label,
    "deploy-global": _flag,
    "input-shape": _shape,
    "num-classes": _classes,
    "state-dir": _folder,
    "seed": _seed,
    "device": _device,
    "client-key": label,
    "privacy": _privacy,
    "methods": _methods,
    "request-limit": _seconds,
}
# Of the keys that may be missing.
EXAMPLES = {
    "model": 'model: {factory: "hospital.nets:build"}',
    "data": 'data: {factory: "hospital.data:load"}',
    "state-dir": "state-dir: /var/lib/site",
    "input-shape": "input-shape: [3, 32, 32]",
    "num-classes": "num-classes: 100",
}
