"""From a comparison, a file or a mapping, to its runs: methods x settings x seeds, and grids of values to choose from.

Every mistake is found here, in all runs at once, before anything starts.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config import RUN_NAME, RUN_OPTIONS, Config
from common.config.loading import method_of, resolved
from common.config.profiles import Layer
from common.errors import UserError
from common.methods import owners
from common.options import Option, Value
from common.text import shown
from mh_pfedhn.comparing.source import Part, Source, checked_seeds, read_source
from mh_pfedhn.simulation import from_here, import_from_here

# The share of the training data on which the values of a grid are compared, unless the comparison says another.
VALIDATION = "validation-fraction"
_VALIDATION_SHARE = 0.2
# A run that is killed loses at most a tenth of its rounds, unless the comparison says other; but there are no more
# checkpoints than this, since that of a large hypernetwork takes as long as a round of a small simulation.
_CHECKPOINTS = 10
_ROUNDS_BETWEEN = 5

# What a comparison sets in every run, and why nobody else does.
_NOT_TO_BE_SET = {
    "run-name": "a comparison names its runs itself, and --name (in Python, name) its folder",
    "resume": "a comparison goes on by itself where it was interrupted",
    "profile": "use base to build on another file",
    "seed": "seeds (--seeds) is the list of them",
}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison; `method` and `setting` are its labels, for people."""

    method: str
    setting: str
    grid: Mapping[str, Value]  # by key, what it has of the values to choose from
    config: Config

    @property
    def name(self) -> str:
        """The run's name, and that of its folder."""
        return self.config.run_name

    @property
    def title(self) -> str:
        """What it is, for a line of the log: `fedavg, homogeneous, seed 1, client-lr 0.01`."""
        values = [f"{key} {value}" for key, value in self.grid.items()]
        return ", ".join([self.method, self.setting, f"seed {self.config.seed}", *values])

    def to_dict(self) -> dict[str, object]:
        """Its entry in `comparison.yaml`."""
        config = self.config
        return {
            "name": self.name,
            "method": self.method,
            "setting": self.setting,
            "seed": config.seed,
            "grid": dict(self.grid),
            "rounds": config.num_rounds,
        }


@dataclass(frozen=True)
class Plan:
    """What a comparison will run, in this order: one seed after the other, so that a whole table is there early."""

    name: str
    description: str
    target_accuracy: float | None
    folder: Path
    runs: Sequence[PlannedRun]
    notes: Sequence[str] = field(default_factory=tuple)  # what was decided for the user, a sentence each

    def to_dict(self) -> dict[str, object]:
        """What `comparison.yaml` holds."""
        target = {} if self.target_accuracy is None else {"target-accuracy": self.target_accuracy}
        chosen = {"choose-on": "validation"} if any(run.grid for run in self.runs) else {}
        runs = [run.to_dict() for run in self.runs]
        return {"name": self.name, "description": self.description, **target, **chosen, "runs": runs}


def make_plan(
    comparison: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Mapping[str, object],
    *,
    name: str = "",
    seeds: Sequence[object] | None = None,
    origin: str = "the command line",
) -> Plan:
    """The runs of a comparison: a file's path, the name of one in conf/, or what such a file would hold.

    `overrides` win over what it says for all runs, `seeds` are used in the place of its own; `origin` says where both
    are given. Raises UserError for the first mistake that is found.
    """
    import_from_here()
    given = None if seeds is None else checked_seeds(seeds, origin)
    return _Planner(read_source(comparison), Part("", overrides, origin), name, given).plan()


@dataclass(frozen=True)
class _Cell:
    """A method in a setting: the layers of its settings, and the axes of its grid with where each stands."""

    method: Part
    setting: Part
    base: Sequence[Layer]
    own: Sequence[Layer]  # later ones win
    axes: Mapping[str, tuple[str, Sequence[Value]]]

    def points(self) -> Iterator[dict[str, Value]]:
        """Each combination of the values of the axes; one without any values where there are no axes."""
        for values in itertools.product(*(values for _, values in self.axes.values())):
            yield dict(zip(self.axes, values, strict=True))

    def sets(self, key: str) -> bool:
        """Whether the comparison itself says this, and not only what it builds on."""
        return key in self.axes or any(key in layer.values for layer in self.own)

    @property
    def holds_back(self) -> bool:
        """Whether something says what share is held back for validation. A 0 below the comparison says nothing.

        It is what every run has that is no part of a comparison, and what the config.yaml of one writes down.
        """
        said = [layer for layer in self.base if VALIDATION in layer.values]
        of_base = said and RUN_OPTIONS[VALIDATION].checked(said[-1].values[VALIDATION], said[-1].origin)
        return self.sets(VALIDATION) or bool(of_base)


class _Planner:
    def __init__(self, source: Source, overrides: Part, name: str, seeds: Sequence[int] | None) -> None:
        self._source = source
        self._overrides = overrides
        self._name = name or source.name
        self._seeds = seeds
        self._notes: list[str] = []

    def plan(self) -> Plan:
        source = self._source
        if not RUN_NAME.fullmatch(self._name):
            raise UserError(
                f"{self._name!r} cannot be a comparison's name, which is that of a folder: give --name up to 100 "
                "letters, digits, dots, dashes or underscores, a letter or digit first."
            )
        for part in (source.whole, self._overrides, *source.settings.values()):
            self._check_own(part)
            if "method" in part.values and source.methods:
                raise UserError(f"method is set in {part.origin}, but methods says which are compared.")
            if isinstance(part.values.get("method"), list):
                raise UserError(f"method is a list in {part.origin}: put the names under methods.")
        for part in source.methods.values():
            self._check_own(part)
        cells = [cell for setting in source.settings.values() for cell in self._cells(setting)]
        seeds = list(self._seeds or source.seeds or [])
        runs = list(self._runs(cells, seeds))
        if seeds:
            runs.sort(key=lambda run: seeds.index(run.config.seed))
        folders = {run.config.results_dir for run in runs}
        if len(folders) > 1:
            raise UserError(
                f"results-dir differs between the runs ({', '.join(sorted(folders))}), but a comparison has one folder."
            )
        return Plan(self._name, source.description, source.target_accuracy, Path(folders.pop()), runs, self._notes)

    def _check_own(self, part: Part) -> None:
        for key, why in _NOT_TO_BE_SET.items():
            # A file that is no comparison but a profile may say the seed of its one run.
            is_profiles = key == "seed" and part is self._source.whole and self._source.seeds is None
            if key in part.values and (isinstance(part.values[key], list) or not is_profiles):
                raise UserError(f"{key} is set in {part.origin}, but {why}.")

    # Methods in settings --------------------------------------------------------------------------------------------

    def _cells(self, setting: Part) -> Iterator[_Cell]:
        source = self._source
        base = [*source.whole.base, *setting.base]
        methods = list(source.methods.values())
        if not methods:
            layers = [*base, *(Layer(part.origin, part.values) for part in (source.whole, setting, self._overrides))]
            found = method_of(layers)
            methods = [Part(found.name, {"method": found.name}, source.whole.origin)]
        options = {part.label: method_of([Layer(part.origin, part.values)]).options for part in methods}
        # A file that names no methods may be a profile, which serves others too.
        for part in (source.whole, setting, self._overrides) if source.methods else [self._overrides]:
            _check_served(part, options)
        for method in methods:
            # In this order the later wins: what is said of a method over what is said of a setting.
            own = [
                _served(part, options[method.label], options, strict=bool(source.methods))
                for part in (source.whole, setting)
            ]
            own += [Layer(method.origin, method.values, strict=True)]
            own += [_served(self._overrides, options[method.label], options, strict=True)]
            plain, axes = _split(own, RUN_OPTIONS | options[method.label])
            yield _Cell(method, setting, [*base, *method.base], plain, axes)

    # Runs -----------------------------------------------------------------------------------------------------------

    def _runs(self, cells: Sequence[_Cell], seeds: Sequence[int]) -> Iterator[PlannedRun]:
        has_grid = any(cell.axes for cell in cells)
        without = [f"{cell.method.label}, {cell.setting.label}" for cell in cells if not cell.holds_back]
        if has_grid and without:
            where = "all runs" if len(without) == len(cells) else "; ".join(without)
            self._notes.append(
                f"A grid is chosen from on validation data, never on test data: {VALIDATION} is set to "
                f"{_VALIDATION_SHARE:g} in {where}, where nothing else sets it."
            )
        taken: dict[str, PlannedRun] = {}
        for cell in cells:
            for number, point in enumerate(cell.points(), start=1):
                config = self._config(cell, point, has_grid)
                for run in self._seeded(cell, number if point else 0, point, config, seeds or [config.seed]):
                    if run.name in taken:
                        raise UserError(
                            f"{run.title} and {taken[run.name].title} would both be called {run.name}: use labels that "
                            "differ in their letters and digits."
                        )
                    taken[run.name] = run
                    yield run

    def _config(self, cell: _Cell, point: Mapping[str, Value], has_grid: bool) -> Config:
        """The settings of the runs of a method in a setting with these values of its grid, but for seed and name."""
        grid_layers = [Layer(cell.axes[key][0], {key: value}) for key, value in point.items()]
        is_lacking = has_grid and not cell.holds_back
        held_back = [Layer("the defaults of a grid", {VALIDATION: _VALIDATION_SHARE})] if is_lacking else []
        fixed = {"resume": "latest", "method": cell.method.values["method"], "run-name": "run"}
        profile = "+".join(filter(None, [self._source.whole.base_name, cell.setting.base_name])) or self._source.name
        layers = [*cell.base, *held_back, *cell.own, *grid_layers, Layer("the comparison", fixed)]
        where = f"{cell.method.label}, {cell.setting.label}"
        _check_mode(layers, where)
        config = resolved(layers, profile)
        if has_grid and not config.to_dict()[VALIDATION]:
            raise UserError(
                f"{VALIDATION} is 0 in {where}, but there is a grid, whose values are chosen on validation data: leave "
                f"it out ({_VALIDATION_SHARE:g}), or set a share above 0."
            )
        if not cell.sets("checkpoint-every"):
            between = max(_ROUNDS_BETWEEN, round(config.num_rounds / _CHECKPOINTS))
            config = dataclasses.replace(config, checkpoint_every=between)
        return config

    def _seeded(
        self, cell: _Cell, number: int, point: Mapping[str, Value], config: Config, seeds: Sequence[int]
    ) -> Iterator[PlannedRun]:
        """The runs with these settings; `number` is that of the point in the grid, 0 without one."""
        for seed in seeds:
            parts = [cell.method.label, cell.setting.label, str(seed), *([str(number)] if number else [])]
            run_name = "-".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-._") for part in parts)
            if not RUN_NAME.fullmatch(run_name):
                raise UserError(
                    f"The run of {cell.method.label}, {cell.setting.label}, seed {seed} would be called {run_name!r}, "
                    "which names no folder: use labels with Latin letters and digits, at most 40."
                )
            results = str(Path(config.results_dir) / self._name)
            own = dataclasses.replace(config, seed=seed, run_name=run_name, results_dir=results)
            yield PlannedRun(cell.method.label, cell.setting.label, point, from_here(own))


def _check_mode(layers: Sequence[Layer], where: str) -> None:
    modes = [RUN_OPTIONS["mode"].checked(each.values["mode"], each.origin) for each in layers if "mode" in each.values]
    if modes and modes[-1] != "train":
        raise UserError(f"mode is {modes[-1]!r} in {where}, but what is compared are runs in mode 'train'.")


def _split(
    layers: Sequence[Layer], options: Mapping[str, Option]
) -> tuple[list[Layer], dict[str, tuple[str, Sequence[Value]]]]:
    """The same layers without grids, and these: a list under a key that takes none. Later layers win here too."""
    axes: dict[str, tuple[str, Sequence[Value]]] = {}
    plain = []
    for layer in layers:
        values = {}
        for key, value in layer.values.items():
            axes.pop(key, None)
            option = options.get(key)
            if option and isinstance(value, list) and not option.rule.is_list:
                axes[key] = layer.origin, _axis(option, value, layer.origin)
            else:
                values[key] = value
        plain.append(dataclasses.replace(layer, values=values))
    return plain, axes


def _axis(option: Option, values: list[Any], origin: str) -> list[Value]:
    if not values:
        raise UserError(f"{option.key} is an empty list in {origin}, but a grid needs values.")
    checked = [option.checked(value, origin) for value in values]
    twice = [value for place, value in enumerate(checked) if value in checked[:place]]
    if twice:
        raise UserError(f"{option.key} has {shown(twice[0])} twice in its grid in {origin}: name each value once.")
    return checked


def _check_served(part: Part, options: Mapping[str, Mapping[str, Option]]) -> None:
    """Raise UserError for a setting that only methods have which are not compared."""
    known = set(RUN_OPTIONS).union(*options.values())
    for key in part.values:
        having = owners(key) if isinstance(key, str) and key not in known else []
        if having:
            raise UserError(
                f"No method that is compared has {key} ({part.origin}): it is a setting of {', '.join(having)}."
            )


def _served(part: Part, own: Mapping[str, Option], options: Mapping[str, Mapping[str, Option]], strict: bool) -> Layer:
    """The settings of a part less those that others of the methods compared have and this one lacks."""
    others = set().union(*options.values()) - set(own) - set(RUN_OPTIONS)
    values = {key: value for key, value in part.values.items() if key not in others}
    return Layer(part.origin, values, strict)
