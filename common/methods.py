"""Finding the two halves of a method by its name; nothing else in `common` knows a method.

A built-in method is a module of the same name in `server_app/methods` and `client_app/methods`, with one class each.
One from outside is named as `package.module:Class`, its server half, whose attribute `client` names the client half.
Both are imported by name, so the two apps stay apart, and a new method is a file a side.
"""

import dataclasses
import importlib
import importlib.util
import inspect
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.options import Option, options_of
from common.text import kebab, nearest, shown, snake

_SERVER, _CLIENT = "server_app.methods", "client_app.methods"
_BASE = "base"  # the module of either package that says what a half is
_BASES = {_SERVER: "Method", _CLIENT: "ClientMethod"}


@dataclass(frozen=True, eq=False)
class Halves:
    """A method: its name, and the class of each half. Each class has its settings in the dataclass `Settings`."""

    name: str
    server: Any
    client: Any
    client_name: str  # what the server tells clients, who load nothing else by it: a built-in name or module:Class

    @cached_property
    def options(self) -> dict[str, Option]:
        """All settings of the method by their keys: those of the server half, then those of the client half.

        Raises UserError for one that nobody could set, or that the halves do not declare alike.
        """
        options: dict[str, Option] = {}
        for half in (self.server, self.client):
            for key, option in _declared(self.name, half.Settings).items():
                if options.setdefault(key, option) != option:
                    raise UserError(
                        f"Method {self.name!r} declares {key} in both of its halves, and not alike: put what both read "
                        "into one dataclass that both inherit."
                    )
        return options


@cache
def built_in() -> tuple[str, ...]:
    """Names of the methods that come with the project, sorted."""
    spec = importlib.util.find_spec(_SERVER)
    assert spec is not None
    folders = spec.submodule_search_locations or []
    modules = {path.stem for folder in folders for path in Path(folder).glob("[a-z]*.py")} - {_BASE}
    return tuple(sorted(kebab(module) for module in modules))


@cache
def find(name: str, origin: str = "") -> Halves:
    """The method of this name; built-in ones are taken in any case of letters.

    Raises UserError, which says that the name was given in `origin`, for a name that is none, and for a half from
    outside that is not what it should be.
    """
    place = f" in {origin}" if origin else ""
    if ":" in name:
        server = _from_outside(name, _SERVER, "method", place)
        client_name = getattr(server, "client", "")
        if not isinstance(client_name, str) or ":" not in client_name:
            raise UserError(
                f"method is {name!r}{place}, but does not say where its client half is: give the class an attribute "
                f'such as client = "{name.partition(":")[0]}_client:{server.__name__}".'
            )
        client = _from_outside(client_name, _CLIENT, f"The client half of {name}")
        return Halves(name, server, client, client_name)
    own = name.lower()
    if own not in built_in():
        given = shown(name) if name else "empty"
        raise UserError(
            f"method is {given}{place}, but must be one of {', '.join(built_in())}, or package.module:Class for one "
            f"from outside{nearest(name, built_in()) or '.'}"
        )
    return Halves(own, _built_in_half(own, _SERVER), _built_in_half(own, _CLIENT), own)


def find_client(name: str) -> Any:
    """The client half under a name that a server has told. The caller decides which names it takes."""
    return _from_outside(name, _CLIENT, "method") if ":" in name else _built_in_half(name, _CLIENT)


def owners(key: str) -> list[str]:
    """The built-in methods that have this setting."""
    return [name for name in built_in() if key in find(name).options]


def _declared(method: str, settings: type) -> dict[str, Option]:
    """The options of a half. Raises UserError for fields that would be none."""
    if "__dataclass_fields__" not in vars(settings):
        raise UserError(
            f"Method {method!r}: {settings.__qualname__} is no dataclass, so nobody could set what it holds: put "
            "@dataclass(frozen=True, kw_only=True) above it."
        )
    for field in dataclasses.fields(settings):
        if "rule" not in field.metadata:
            raise UserError(
                f"Method {method!r}: {settings.__qualname__}.{field.name} must be declared by option(default, help, "
                "...), or nobody could set it."
            )
    try:
        return options_of(settings)
    except UserError as error:
        raise UserError(f"Method {method!r}: {error}") from error


def _built_in_half(name: str, package: str) -> Any:
    module = importlib.import_module(f"{package}.{snake(name)}")
    base = _base(package)
    halves = [
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, base) and each.__module__ == module.__name__
    ]
    if len(halves) != 1:
        raise UserError(f"{module.__name__} must define one subclass of {base.__name__}, but defines {len(halves)}.")
    return halves[0]


def _from_outside(name: str, package: str, what: str, place: str = "") -> Any:
    wrong = f"{what} is {name!r}{place}, but"
    module_name, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise UserError(f"{wrong} must be of the form package.module:Class.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{wrong} module {module_name!r} cannot be imported ({said}): put its package into the working folder or "
            "install it in this environment."
        ) from error
    half, base = getattr(module, class_name, None), _base(package)
    if half is None:
        raise UserError(f"{wrong} {module_name} has no {class_name!r}{nearest(class_name, dir(module)) or '.'}")
    if not (inspect.isclass(half) and issubclass(half, base)):
        raise UserError(f"{wrong} must be a subclass of {base.__module__}.{base.__name__}.")
    if lacking := sorted(getattr(half, "__abstractmethods__", ())):
        raise UserError(f"{wrong} does not define {' and '.join(lacking)}.")
    return half


def _base(package: str) -> Any:
    return getattr(importlib.import_module(f"{package}.{_BASE}"), _BASES[package])
