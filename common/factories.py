"""A user's own Python, named as `module:name`: importing it, calling it, and saying what went wrong.

A site's file names its model and data so, and the settings of a simulation those of its clients.
"""

import functools
import importlib
import importlib.util
import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.text import nearest

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

# Where a module of the user's may lie, to end the sentence about one that is not found.
BESIDE_THE_FILE = "put it beside this file or install it in this environment"
IN_THE_WORKING_FOLDER = "put it into the working folder, or on PYTHONPATH for flwr run, or install it"


@dataclass(frozen=True)
class Factory:
    """What stands under one key. All methods raise UserError with one sentence that begins with the key."""

    key: str
    name: str  # module:name
    args: Mapping[str, Any] = field(default_factory=dict)
    remedy: str = BESIDE_THE_FILE

    def call(self, **given: object) -> Any:
        """Call it with what is given, by position and in this order, and with its args by name."""
        target = self._target()
        self._check_args(target, *given)
        try:
            return target(*given.values(), **self.args)
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

    def takes(self, parameter: str) -> bool:
        """Whether it has a parameter of this name."""
        try:
            return parameter in inspect.signature(self._target()).parameters
        except ValueError:  # some of what is written in C does not say what it takes
            return False

    def _target(self) -> Callable[..., Any]:
        module_name, _, name = self.name.partition(":")
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{self.key}: module {module_name!r} cannot be imported ({describe(error)}): {self.remedy}."
            ) from error
        target: Any = module
        for part in name.split("."):
            if not hasattr(target, part):
                where = f"module {module_name!r} ({getattr(module, '__file__', None) or 'no file'})"
                raise UserError(f"{self.key}: there is no {name!r} in {where}{nearest(part, dir(target)) or '.'}")
            target = getattr(target, part)
        if not callable(target):
            raise UserError(f"{self.key}: {self.name} is {kind_of(target)}, but must be a function or a class.")
        return target  # type: ignore[no-any-return]

    def _check_args(self, target: Callable[..., Any], *arguments: str) -> None:
        try:
            signature = inspect.signature(target)
        except ValueError:
            return
        try:
            signature.bind(*arguments, **self.args)
        except TypeError as error:
            what = f"{self.name}{signature}"
            if self.args:
                called = f", called with ({', '.join(arguments)})" if arguments else ""
                what = f"its args ({', '.join(map(str, self.args))}) do not fit {what}{called}"
            else:
                what += f" cannot be called with ({', '.join(arguments)})"
            raise UserError(f"{self.key}: {what}: {error}.") from error


def describe(error: BaseException) -> str:
    """Type and message of an error, and the line of the user's own code that it came from, if any did."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*_not_the_users(), "<"))
    ]
    where = f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}{where}"


def kind_of(value: object) -> str:
    """What kind of thing a value is."""
    return f"of type {type(value).__name__}"


@functools.cache
def _not_the_users() -> tuple[str, ...]:
    """The folders of this project's code, of PyTorch's, and of the import system's."""
    here = Path(__file__).parent.parent
    ours = [here / package for package in ("common", "client_app", "server_app", "mh_pfedhn")]
    torch = importlib.util.find_spec("torch")  # not imported: this module must be light
    theirs = [Path(str(torch.origin)).parent] if torch else []
    return tuple(f"{folder}/" for folder in [*ours, *theirs, Path(importlib.__file__).parent])
