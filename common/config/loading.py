"""From profiles and overrides to a checked Config; every mistake is one sentence that names key, value and place."""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from common import methods
from common.config.profiles import PROFILE_ONLY, Layer, canonical, method_layer, names, profile_layers, recorded
from common.config.run import (
    BY_CLIENT,
    DEFAULT_PROFILE,
    METHOD_SETTINGS,
    RUN_NAME,
    RUN_OPTIONS,
    SITES,
    Config,
)
from common.errors import UserError
from common.methods import Halves
from common.options import Option, Value
from common.settings import Noised
from common.text import nearest, shown, snake, split
from common.variants import VARIANTS

# Where all of these are given, as `mh-pfedhn run` does, a profile adds nothing, and may be a file of another machine.
_COMPLETE = {key for key, option in RUN_OPTIONS.items() if option.default != ""} | {
    "dataset",
    "run-name",
    METHOD_SETTINGS,
}

# No setting of a method can be called so.
_RESERVED = {*RUN_OPTIONS, *PROFILE_ONLY, METHOD_SETTINGS}

# How the data of simulated clients are split: a real site decides that for itself.
_OF_SIMULATED_DATA = ("min-samples", "test-fraction", "validation-fraction")


def load_config(overrides: Mapping[str, object], *, origin: str = "the command line") -> Config:
    """Fill a Config from its profile (key `profile`) and these overrides, which win.

    A setting that the run's method does not have is refused among the overrides; a profile may hold such settings,
    since it serves several methods. Raises UserError with one sentence that names the key, the value, where it stands,
    and what is valid.
    """
    profile = overrides.get("profile", DEFAULT_PROFILE)
    if not isinstance(profile, str):
        raise UserError(
            f"profile is {shown(profile)} in {origin}, but must be a name; known profiles: {', '.join(names())}."
        )
    profile = canonical(profile)
    complete = set(overrides) >= _COMPLETE
    layers = [] if complete else profile_layers(profile)
    profile = profile if complete else recorded(profile)
    layers.append(Layer(origin, _unpacked(overrides, origin), strict=True))
    return resolved(layers, profile, complete=complete)


def resolved(layers: Sequence[Layer], profile: str, *, complete: bool = False) -> Config:
    """The Config of these layers, which `profile` stands for; where they are `complete`, nothing is added to them.

    Raises UserError, as `load_config`.
    """
    method = method_of(layers)
    if not complete:
        layers = [*method_layer(method.name), *layers]
    values: dict[str, Value] = {}
    for layer in layers:
        values |= _checked(layer, method)
    values |= {"profile": profile, "method": method.name}
    config = Config(
        **{snake(key): values[key] for key in RUN_OPTIONS if key in values},  # type: ignore[arg-type]
        method_settings={key: values.get(key, option.default) for key, option in method.options.items()},
    )
    _check_together(config)
    return config


def load_run_config(run_config: Mapping[str, object]) -> Config:
    """The Config of what Flower hands to its apps, in which an empty string means "as the profile says".

    Flower takes no key that `[tool.flwr.app.config]` does not list, so all stand there, and nearly all are empty.
    """
    return load_config({key: value for key, value in run_config.items() if value != ""}, origin="the run config")


def parse_overrides(items: Iterable[str]) -> dict[str, object]:
    """Turn `key=value` words of a command line into overrides, values read as YAML scalars.

    Which keys there are depends on the method, so that is `load_config`'s to check.
    """
    try:
        return dict(map(_pair, items))
    except ValueError as error:
        raise UserError(f"-c {error}, such as -c num-rounds=20; a profile stands before -c.") from error


def keys_with_help() -> Iterator[tuple[str, str, object, str]]:
    """Every key: the methods that have it (empty: every run), its name, default, and what it sets.

    A key that methods declare in different ways comes once for each of them.
    """
    for key, option in RUN_OPTIONS.items():
        yield "", key, *_described(option)
    having: dict[Option, list[str]] = {}
    for name in methods.built_in():
        for option in methods.find(name).options.values():
            having.setdefault(option, []).append(name)
    for option, of in having.items():
        yield ", ".join(of), option.key, *_described(option)


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
    wrong = f"{METHOD_SETTINGS} is {shown(packed)} in {origin}, but must be"
    if not isinstance(packed, str):
        raise UserError(f"{wrong} text such as 'hn-lr=0.001 anchor=true'.")
    try:
        is_json = packed.lstrip().startswith("{")
        settings: dict[str, object] = json.loads(packed) if is_json else dict(map(_pair, shlex.split(packed)))
    except ValueError as error:
        raise UserError(f"{wrong} JSON or text such as 'hn-lr=0.001 anchor=true': {error}.") from error
    for key in settings:
        if key in _RESERVED:
            raise UserError(
                f"{METHOD_SETTINGS} holds {key} in {origin}, which is a key of every run: set it beside "
                f"{METHOD_SETTINGS}."
            )
    return settings | {key: value for key, value in given.items() if key != METHOD_SETTINGS}


def method_of(layers: Sequence[Layer]) -> Halves:
    """The method that the last of these layers names, or the usual one. Raises UserError."""
    name, origin = Config.method, ""
    for layer in layers:
        if "method" in layer.values:
            name, origin = layer.values["method"], layer.origin
            if name != "":  # to which `find` has the better answer
                name = str(RUN_OPTIONS["method"].checked(name, origin))
            if ":" not in name:
                methods.find(name, origin)  # also where a later layer has another
    method = methods.find(name, origin)
    for key in method.options:
        if key in _RESERVED:
            raise UserError(f"Method {method.name!r} declares {key}, which is a key of every run: rename it.")
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
        else:
            _check_left_out(key, value, layer.origin, method, strict)
    name = values.get("run-name")
    if name and not RUN_NAME.fullmatch(str(name)):
        raise UserError(
            f"run-name is {shown(name)} in {layer.origin}, but must be up to 100 letters, digits, dots, dashes or "
            "underscores, a letter or digit first."
        )
    return values


def _check_left_out(key: object, value: object, origin: str, method: Halves, strict: bool) -> None:
    """Raise UserError unless this is a good setting of another method, where such may stand."""
    if key == METHOD_SETTINGS:
        raise UserError(
            f"{METHOD_SETTINGS} is set in {origin}, but is for Flower's run config: put the settings under their own "
            "keys."
        )
    having = methods.owners(key) if isinstance(key, str) else []
    if not having:
        known = sorted([*RUN_OPTIONS, *method.options])
        others = [other for name in methods.built_in() for other in methods.find(name).options]
        hint = nearest(key, [*known, *others]) if isinstance(key, str) else ""
        raise UserError(f"There is no key {shown(key)} ({origin}){hint or '; known keys: ' + ', '.join(known) + '.'}")
    if strict:
        raise UserError(f"Method {method.name!r} has no {key} ({origin}): it is a setting of {', '.join(having)}.")
    errors = []
    for name in having:
        try:
            methods.find(name).options[str(key)].checked(value, origin)
        except UserError as error:
            errors.append(error)
    if len(errors) == len(having):
        raise errors[0]


def _check_together(config: Config) -> None:
    """Raise UserError for settings that contradict each other."""
    _check_division(config)
    if config.num_clients and config.held_out >= config.num_clients:
        raise UserError(f"held-out is {config.held_out}, but must be below num-clients, which is {config.num_clients}.")
    if config.held_out_models and not config.held_out:
        raise UserError("held-out-models is set, but held-out is 0: say how many clients are held out.")
    if config.mode == "adapt" and not config.resume:
        raise UserError("mode is 'adapt', so resume must name the run folder or checkpoint file to start from.")
    if config.mode == "adapt" and not config.halves.server.adapts:
        raise UserError(f"mode is 'adapt', but method {config.method!r} has nothing frozen that could adapt.")
    if config.mode == "adapt" and config.resume == "latest":
        raise UserError("resume is 'latest', but mode 'adapt' starts from another run: name its folder.")
    clipping_norm = config.settings(Noised).clipping_norm
    if config.dataset == SITES and clipping_norm:
        raise UserError(
            f"clipping-norm is {clipping_norm:g}, but dataset is 'sites', and each site "
            "decides how it protects what it sends: set privacy in its own file."
        )
    if config.evaluate_after_training and clipping_norm:
        raise UserError(
            f"evaluate-after-training is true, but clipping-norm is {clipping_norm:g}, and a client that adds noise "
            "does not tell how a model does that was trained without it: leave one of the two out."
        )
    for key, name in (("loss", config.loss), ("correct", config.correct)):
        if config.dataset == SITES and name:
            raise UserError(
                f"{key} is {shown(name)}, but dataset is 'sites', and each site has its own: set {key} in its own file."
            )
    if "none" in split(config.log_to) and set(split(config.log_to)) != {"none"}:
        raise UserError(f"log-to is {config.log_to!r}, but none stands alone: leave it out, or the others.")
    if config.resume == "latest" and not config.run_name:
        raise UserError("resume is 'latest', so run-name must say of which run.")
    if not config.dataset:
        raise UserError(
            f"dataset is empty: join profile {config.profile!r} to one that comes with a data set, such as "
            f"cifar100+{config.profile}, or set dataset to {RUN_OPTIONS['dataset'].valid}."
        )


def _check_division(config: Config) -> None:
    """Raise UserError for settings of a division that another setting leaves nothing to do."""
    for key in _OF_SIMULATED_DATA:
        value = getattr(config, snake(key))
        if config.dataset == SITES and value != RUN_OPTIONS[key].default:
            raise UserError(
                f"{key} is {value:g}, but dataset is 'sites', and each site splits its own data: leave {key} out."
            )
    if config.num_clients == 0 and config.partition != BY_CLIENT:
        raise UserError(
            f"num-clients is 0, which stands for all owners of samples, but partition is {config.partition!r}: set "
            f"num-clients to a number above 0, or partition to {BY_CLIENT}."
        )
    if config.min_samples and config.partition == "non-iid-1":
        raise UserError(
            f"min-samples is {config.min_samples}, but partition is 'non-iid-1', which gives every client its classes "
            "once and has no draw to repeat: leave min-samples out, or choose another partition."
        )


def _pair(item: str) -> tuple[str, Any]:
    """Key and value of `key=value`. Raises ValueError for text of another form."""
    key, separator, text = item.partition("=")
    if not separator:
        raise ValueError(f"{shown(item)} is not of the form key=value")
    is_text = key in RUN_OPTIONS and RUN_OPTIONS[key].kinds == {str}
    return key, text if is_text else _scalar(text)


def _scalar(text: str) -> Any:
    """A value of the command line as YAML reads it, if that is a number, true or false, and else as it is."""
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
