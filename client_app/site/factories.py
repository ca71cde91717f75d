"""A site's own Python, named in its YAML as `module:name`: importing it, calling it, and saying what went wrong."""

import functools
import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import client_app
import common
from common.errors import UserError
from common.text import nearest

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

_NOT_THE_SITES = tuple(str(Path(str(package.__file__)).parent) for package in (torch, client_app, common, importlib))


@dataclass(frozen=True)
class Factory:
    """What stands under one key. All methods raise UserError with one sentence that begins with the key."""

    key: str
    name: str  # module:name
    args: Mapping[str, Any]

    def call(self, *arguments: Any) -> Any:
        """Call it with these arguments, and with its args."""
        target = self._target()
        self._check_args(target, *map(str, arguments))
        try:
            return target(*arguments, **self.args)
        except (Exception, SystemExit) as error:
            raise UserError(f"{self.key}: {self.name} raised {describe(error)}.") from error

    def function_of(self, *arguments: str) -> Callable[..., Any]:
        """The function itself, with its args bound; a class is called with them, and what it makes is the function."""
        target = self._target()
        if inspect.isclass(target):
            made = self.call()
            if not callable(made):
                raise UserError(f"{self.key}: a {self.name} cannot be called with ({', '.join(arguments)}).")
            return made  # type: ignore[no-any-return]
        self._check_args(target, *arguments)
        return functools.partial(target, **self.args)

    def _target(self) -> Callable[..., Any]:
        module_name, _, name = self.name.partition(":")
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{self.key}: module {module_name!r} cannot be imported ({describe(error)}): put it beside this file "
                "or install it in this environment."
            ) from error
        target: Any = module
        for part in name.split("."):
            if not hasattr(target, part):
                where = f"module {module_name!r} ({getattr(module, '__file__', None) or 'no file'})"
                raise UserError(f"{self.key}: there is no {name!r} in {where}{nearest(part, dir(target))}.")
            target = getattr(target, part)
        if not callable(target):
            raise UserError(f"{self.key}: {self.name} is {kind_of(target)}, but must be a function or a class.")
        return target  # type: ignore[no-any-return]

    def _check_args(self, target: Callable[..., Any], *arguments: str) -> None:
        try:
            signature = inspect.signature(target)
        except ValueError:  # some of what is written in C does not say what it takes
            return
        try:
            signature.bind(*arguments, **self.args)
        except TypeError as error:
            called = f", called with ({', '.join(arguments)})" if arguments else ""
            given = ", ".join(map(str, self.args)) or "none"
            raise UserError(
                f"{self.key}: its args ({given}) do not fit {self.name}{signature}{called}: {error}."
            ) from error


def move_to(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The function, on the device when it is a module, such as a loss with class weights."""
    return function.to(device) if isinstance(function, nn.Module) else function


def describe(error: BaseException) -> str:
    """Type and message of an error, and the line of the site's own code that it came from, if any did."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*_NOT_THE_SITES, "<"))
    ]
    where = f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}{where}"


def kind_of(value: object) -> str:
    """What kind of thing a value is."""
    return f"of type {type(value).__name__}"
