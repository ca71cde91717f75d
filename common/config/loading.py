"""From profiles and overrides to a checked Config; every mistake is one sentence that names key, value and place."""

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from common import methods
from common.config.profiles import Layer, method_layer, names, profile_layers
from common.config.run import DATASETS, DEFAULT_PROFILE, METHOD_SETTINGS, RUN_NAME, RUN_OPTIONS, SITES, Config
from common.errors import UserError
from common.methods import Halves
from common.options import Option, Value
from common.text import nearest, snake
from common.variants import VARIANTS

# Where all of these are given, as `mh-pfedhn run` does, a profile adds nothing, and may be a file of another machine.
_COMPLETE = {key for key, option in RUN_OPTIONS.items() if option.default != ""} | {
    "dataset",
    "run-name",
    METHOD_SETTINGS,
}


def load_config(overrides: Mapping[str, object], *, origin: str = "the command line") -> Config:
    """Fill a Config from its profile (key `profile`) and these overrides, which win.

    An empty string means "as the profile says", as in `[tool.flwr.app.config]`. A setting that the run's method does
    not have is refused among the overrides; a profile may hold such settings, since it serves several methods. Raises
    UserError with one sentence that names the key, the value, where it stands, and what is valid.
    """
    given = {key: value for key, value in overrides.items() if value != ""}
    profile = given.get("profile", DEFAULT_PROFILE)
    if not isinstance(profile, str):
        raise UserError(
            f"profile is {profile!r} in {origin}, but must be a name; known profiles: {', '.join(names())}."
        )
    complete = set(given) >= _COMPLETE
    layers = [] if complete else profile_layers(profile)
    layers.append(Layer(origin, _unpacked(given, origin), strict=True))
    method = _method(layers)
    if not complete:
        layers[:0] = method_layer(method.name)
    values: dict[str, Value] = {}
    for layer in layers:
        values |= _checked(layer, method)
    config = Config(
        **{snake(key): values[key] for key in RUN_OPTIONS if key in values},  # type: ignore[arg-type]
        method_settings={key: values.get(key, option.default) for key, option in method.options.items()},
    )
    config = dataclasses.replace(config, profile=profile, method=method.name)
    _check_together(config)
    if not config.dataset:
        raise UserError(
            f"profile {profile!r} sets hyperparameters but no data set: join it to one that does, "
            f"such as cifar100+{profile}, or set dataset to one of {', '.join(DATASETS)}."
        )
    return config


def parse_overrides(items: list[str]) -> dict[str, object]:
    """Turn `key=value` words of a command line into overrides, values read as YAML scalars.

    Which keys there are depends on the method, so that is `load_config`'s to check.
    """
    overrides: dict[str, object] = {}
    for item in items:
        key, separator, text = item.partition("=")
        if not separator:
            raise UserError(f"-c {item!r} is not of the form key=value, such as -c num-rounds=20.")
        is_text = key in RUN_OPTIONS and RUN_OPTIONS[key].kinds == {str}
        overrides[key] = text if is_text else _scalar(text)
    return overrides


def keys_with_help() -> Iterator[tuple[str, str, object, str]]:
    """Every key: the methods that have it (empty: every run), its name, default, and what it sets."""
    for key, option in RUN_OPTIONS.items():
        yield "", key, *_described(option)
    every = {name: methods.find(name).options for name in methods.built_in()}
    for key in dict.fromkeys(key for options in every.values() for key in options):
        having = [name for name, options in every.items() if key in options]
        yield ", ".join(having), key, *_described(every[having[0]][key])


def _described(option: Option) -> tuple[object, str]:
    rule = option.rule
    # The variants of the architectures would fill the screen; the profiles show them.
    plain = [choice for choice in rule.choices if choice not in VARIANTS]
    values = f" ({', '.join(plain)})" if plain else ""
    source = f" [{rule.source}]" if rule.source else ""
    return option.default if option.default != "" else '""', rule.help + values + source


def _unpacked(given: Mapping[str, object], origin: str) -> dict[str, object]:
    """The same with the method's settings, which travel through Flower as one text, under their own keys."""
    packed = given.get(METHOD_SETTINGS, "")
    if not isinstance(packed, str):
        raise UserError(
            f"{METHOD_SETTINGS} is {packed!r} in {origin}, but must be text such as 'hn-lr=0.001 anchor=true'."
        )
    try:
        settings = json.loads(packed) if packed.startswith("{") else parse_overrides(shlex.split(packed))
    except ValueError as error:
        raise UserError(f"{METHOD_SETTINGS} is {packed!r} in {origin}, which cannot be read: {error}.") from error
    return settings | {key: value for key, value in given.items() if key != METHOD_SETTINGS}


def _method(layers: list[Layer]) -> Halves:
    """The method that the last of these layers names."""
    name, origin = Config.method, ""
    for layer in layers:
        if "method" in layer.values:
            name, origin = str(RUN_OPTIONS["method"].checked(layer.values["method"], layer.origin)), layer.origin
    try:
        method = methods.find(name)
    except UserError as error:
        raise UserError(
            str(error).replace("method is", f"method in {origin} is", 1) if origin else str(error)
        ) from error
    for key in method.options:
        if key in RUN_OPTIONS:
            raise UserError(f"Method {method.name!r} declares {key}, which is a setting of every run: rename it.")
    return method


def _checked(layer: Layer, method: Halves) -> dict[str, Value]:
    """The values of a layer in the types of their keys, less those of other methods."""
    # A file that names its method is held to it; one that does not serves any method.
    strict = layer.strict or str(layer.values.get("method", "")).lower() == method.name.lower()
    values = {}
    for key, value in layer.values.items():
        option = RUN_OPTIONS.get(key) or method.options.get(key)
        if option:
            values[key] = option.checked(value, layer.origin)
            continue
        having = methods.owners(key) if isinstance(key, str) else []
        if not having:
            known = [*RUN_OPTIONS, *method.options]
            hint = nearest(str(key), known) or f"; known keys: {', '.join(sorted(known))}."
            raise UserError(f"There is no key {key!r} ({layer.origin}){hint}")
        if strict:
            raise UserError(
                f"Method {method.name!r} has no {key} ({layer.origin}): it is a setting of {', '.join(having)}."
            )
        methods.find(having[0]).options[key].checked(value, layer.origin)
    name = values.get("run-name")
    if name and not RUN_NAME.fullmatch(str(name)):
        raise UserError(
            f"run-name is {name!r} in {layer.origin}, but must be up to 100 letters, digits, dots, dashes or "
            "underscores, a letter or digit first."
        )
    return values


def _check_together(config: Config) -> None:
    """Raise UserError for settings that contradict each other."""
    if config.held_out >= config.num_clients:
        raise UserError(f"held-out is {config.held_out}, but must be below num-clients, which is {config.num_clients}.")
    if config.held_out_models and not config.held_out:
        raise UserError("held-out-models is set, but held-out is 0: say how many clients are held out.")
    if config.mode == "adapt" and not config.resume:
        raise UserError("mode is 'adapt', so resume must name the run folder or checkpoint file to start from.")
    if config.mode == "adapt" and not config.halves.server.adapts:
        raise UserError(f"mode is 'adapt', but method {config.method!r} has nothing frozen that could adapt.")
    if config.mode == "adapt" and config.resume == "latest":
        raise UserError("resume is 'latest', but mode 'adapt' starts from another run: name its folder.")
    if config.dataset == SITES and config.method_settings.get("clipping-norm"):
        raise UserError(
            f"clipping-norm is {config.method_settings['clipping-norm']:g}, but dataset is 'sites', and each site "
            "decides how it protects what it sends: set privacy in its own file."
        )
    if config.resume == "latest" and not config.run_name:
        raise UserError("resume is 'latest', so run-name must say of which run.")


def _scalar(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that is none
        return text
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as a string
        except ValueError:
            return value
    return value if isinstance(value, bool | int | float) else text
