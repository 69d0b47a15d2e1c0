"""Reads and checks the YAML file of a comparison before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from varrl_lightning.comparison.recipe_trees import DECIDED, leaves
from varrl_lightning.comparison.spec_types import check_types
from varrl_lightning.configuration.files import find_config, read_mapping
from varrl_lightning.errors import ConfigError, did_you_mean

AXES = {"time": "seconds", "images": "images", "updates": "updates"}
"""What recipes can be compared at, each with the key of its budget."""
CHOSEN_BY = ("word_accuracy", "ned", "reward")
"""What validation prompts are measured by; all but the reward need one that reads words."""
T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """A recipe: one way to train.

    Args:
        config: its configuration file, over the spec's `base`.
        overrides: changes to the configuration, by dotted key.
        label: its name in tables and in the figure.
        beyond: learning rates that it is tuned at besides the grid's, with as many prompts as the grid's fewest: for a recipe whose
            best point lies on the grid's edge.
        learning_rate: the one that it is trained at, untuned.
        tuned_as: the recipe of `learning_rates_from` whose point it takes; the one of its own name when None.
    """

    config: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None
    beyond: tuple[float, ...] = ()
    learning_rate: float | None = None
    tuned_as: str | None = None


@dataclass(frozen=True)
class Prompts:
    """Prompt files of all recipes; no two may share words (texts, where no reward reads).

    Args:
        train, validation, test: as in a configuration's `data`.
        curve: how many of the validation prompts, evenly spaced, a point of the curve is measured on.
        choice: how many of them, evenly spaced, choices are made on at the end of a run; all when None.
    """

    train: str
    validation: str
    test: str
    curve: int = 100
    choice: int | None = None


@dataclass(frozen=True)
class Grid:
    """The points that recipes are tuned at: every learning rate with every number of prompts per update, the same for all."""

    prompts_per_update: tuple[int, ...]
    learning_rates: tuple[float, ...] = ()

    @property
    def points(self) -> list[tuple[int, float]]:
        """All points: prompts per update, learning rate."""
        return [(prompts, rate) for prompts in self.prompts_per_update for rate in self.learning_rates]


@dataclass(frozen=True)
class Tuning:
    """The runs of the grid.

    Args:
        axes: their budget, on one axis: `{time: {seconds: 200}}`, `{images: {images: 6000}}` or `{updates: {updates: 200}}`.
        seeds: of the runs at each point.
        curve_points: readings of the curve, evenly spaced in a run.
    """

    axes: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    curve_points: int = 4


@dataclass(frozen=True)
class Seeds:
    """The seeds of final runs.

    Args:
        default: of every recipe.
        most: in place of them, for the recipes in `most_for` and for the one with the highest mean measure on validation after the
            runs of the default seeds on the first axis.
        most_for: recipes.
    """

    default: tuple[int, ...]
    most: tuple[int, ...] = ()
    most_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Final:
    """The runs that are compared, at each recipe's best point.

    Args:
        axes: budgets: `time: {seconds: 600}`, `images: {images: 6000}`, `updates: {updates: 200}`. `fewest` in place of a number of
            images or updates is that of the recipe with fewest within the seconds. They run in this order.
        seeds: a list, or `default`, `most` and `most_for`.
        curve_points: readings of the curve, evenly spaced in a run.
    """

    axes: Mapping[str, Mapping[str, Any]]
    seeds: Seeds
    curve_points: int = 15


@dataclass(frozen=True)
class Timing:
    """How costs are measured: in rounds, in each of which all recipes take turns.

    Args:
        rounds: of all recipes.
        warm_up: updates of a turn that are not measured.
        updates: measured ones of a turn, rounded up to full cycles of the recipe.
    """

    rounds: int = 5
    warm_up: int = 1
    updates: int = 4


@dataclass(frozen=True)
class Spec:
    """The description of a comparison.

    Args:
        recipes: by name.
        prompts: the same for all.
        grid: points of tuning, and numbers of prompts per update.
        final: the runs that are compared.
        tuning: the runs of the grid; None where every recipe's learning rate is given.
        base: a configuration file under those of the recipes.
        warmup: of every recipe's schedule, in updates; None leaves the recipe's own. The schedule's `total` or `T_max` is the
            number of updates of the run.
        learning_rates_from: choices.json of another comparison, which has the recipes' best points.
        timing: how costs are measured.
        measure: the metric of the validation prompts that the best point maximises, one of `CHOSEN_BY`.
        baseline: the recipe that the others are compared with; the first one when None.
        pairs: further pairs to compare, the second with the first as its baseline's.
        margin: a pair's first is not inferior when the lower bound of its difference is above minus this.
        threads: of a run.
        workers: runs side by side.
        output: the folder of all results.
    """

    recipes: Mapping[str, Recipe]
    prompts: Prompts
    grid: Grid
    final: Final
    tuning: Tuning | None = None
    base: str | None = None
    warmup: int | None = None
    learning_rates_from: str | None = None
    timing: Timing = Timing()
    measure: str = "word_accuracy"
    baseline: str | None = None
    pairs: tuple[Any, ...] = ()
    margin: float = 0.02
    threads: int = 1
    workers: int = 1
    output: str = "runs/comparison"

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        names = list(self.recipes)
        _check(len(names) >= 2, f"recipes must name at least two, got {names}")
        self._check_names()
        _check(min(self.threads, self.workers) >= 1, f"threads and workers must be at least 1, got {self.threads}, {self.workers}")
        self._check_numbers()
        _check(
            self.measure in CHOSEN_BY,
            f"measure {self.measure!r} is none of validation prompts.{did_you_mean(self.measure, CHOSEN_BY)} There are: "
            f"{', '.join(CHOSEN_BY)}",
        )
        if self.tuning is not None:
            _check_axes("tuning", self.tuning.axes)
            _check(len(self.tuning.axes) == 1, f"tuning.axes must have one axis, got {', '.join(self.tuning.axes)}")
            _check_seeds("tuning.seeds", self.tuning.seeds)
        _check_axes("final", self.final.axes)
        self._check_final_seeds()
        several = len(self.grid.prompts_per_update) > 1
        _check(
            not (several and "updates" in self.final.axes),
            "final.axes.updates compares updates of the same prompts: give grid.prompts_per_update one number, "
            f"got {list(self.grid.prompts_per_update)}",
        )
        for name, recipe in self.recipes.items():
            self._check_recipe(name, recipe)
        self._check_tuning()

    def _check_names(self) -> None:
        named = [("baseline", self.baseline)] if self.baseline is not None else []
        named += [("final.seeds.most_for", name) for name in self.final.seeds.most_for]
        for pair in self.pairs:
            good = isinstance(pair, (list, tuple)) and len(pair) == 2 and pair[0] != pair[1]
            _check(good, f"pairs must list pairs of two recipes, got {pair!r}")
            named += [("pairs", name) for name in pair]
        for where, name in named:
            _check(
                name in self.recipes,
                f"{where}: {name!r} is no recipe.{did_you_mean(str(name), self.recipes)} There are: {', '.join(self.recipes)}",
            )

    def _check_numbers(self) -> None:
        for name, count in (("curve", self.prompts.curve), ("choice", 1 if self.prompts.choice is None else self.prompts.choice)):
            _check(isinstance(count, int) and count >= 1, f"prompts.{name} must be a number of prompts, at least 1, got {count!r}")
        timing = self.timing
        good = timing.warm_up >= 0 and min(timing.updates, timing.rounds) >= 1
        _check(good, f"timing needs rounds and updates to measure, got {timing}")
        for name, values in (("learning_rates", self.grid.learning_rates), ("prompts_per_update", self.grid.prompts_per_update)):
            good = len(set(values)) == len(values) and all(value > 0 for value in values)
            _check(good, f"grid.{name} must list different numbers above 0, got {list(values)}")
        _check(len(self.grid.prompts_per_update) > 0, "grid.prompts_per_update must list at least one number of prompts")
        _check(self.warmup is None or self.warmup >= 0, f"warmup must be a number of updates, at least 0, got {self.warmup}")
        _check(self.margin > 0, f"margin must be above 0, got {self.margin}")
        for name, points in (
            ("final", self.final.curve_points),
            ("tuning", 1 if self.tuning is None else self.tuning.curve_points),
        ):
            _check(points >= 1, f"{name}.curve_points must be at least 1, got {points}")

    def _check_final_seeds(self) -> None:
        seeds = self.final.seeds
        _check_seeds("final.seeds", seeds.default)
        if seeds.most:
            _check_seeds("final.seeds.most", seeds.most)
            more = set(seeds.default) < set(seeds.most)
            _check(more, f"final.seeds.most must have the default ones and more, got {list(seeds.most)}")
        _check(bool(seeds.most) or not seeds.most_for, "final.seeds.most_for names recipes, but final.seeds.most has no seeds")

    def _check_recipe(self, name: str, recipe: Recipe) -> None:
        where = f"recipes.{name}"
        _check(bool(recipe.config or self.base), f"{where}: give it a config, or give a base for all recipes")
        new = not set(recipe.beyond) & set(self.grid.learning_rates)
        _check(new, f"{where}.beyond must list learning rates that the grid does not have, got {list(recipe.beyond)}")
        for key in leaves(recipe.overrides):
            _check(key not in DECIDED, f"{where}.overrides: {key} follows {DECIDED.get(key)}, the same for all recipes")
        if recipe.learning_rate is not None:
            _check(recipe.learning_rate > 0, f"{where}.learning_rate must be above 0, got {recipe.learning_rate}")
        given = recipe.learning_rate is not None or self.learning_rates_from is not None
        tuned = self.tuning is not None and bool(self.grid.learning_rates)
        _check(
            given or tuned,
            f"{where} has no learning rate: give `tuning` and grid.learning_rates, or learning_rates_from, or its learning_rate",
        )
        _check(not (given and recipe.beyond), f"{where}.beyond is for tuning, but its learning rate is given")
        one = len(self.grid.prompts_per_update) == 1
        _check(one or recipe.learning_rate is None, f"{where}.learning_rate is given: grid.prompts_per_update must be one number")

    def _check_tuning(self) -> None:
        """Refuse what would be dropped, since each recipe's learning rate comes from elsewhere."""
        if self.tuning is not None and not any(map(self.is_tuned, self.recipes)):
            source = "the recipes" if self.learning_rates_from is None else f"learning_rates_from ({self.learning_rates_from})"
            raise ValueError(f"tuning would do nothing: all learning rates come from {source}; leave out one of the two")
        if self.learning_rates_from is not None:
            own = all(recipe.learning_rate is not None for recipe in self.recipes.values())
            _check(not own, "learning_rates_from would do nothing: every recipe has its learning_rate; leave out one of them")
        for name, recipe in self.recipes.items():
            used = self.learning_rates_from is not None and recipe.learning_rate is None
            _check(
                recipe.tuned_as is None or used,
                f"recipes.{name}.tuned_as names a recipe of learning_rates_from, which does not give the learning rate of {name}; "
                "leave it out",
            )

    @property
    def rival(self) -> str:
        """The recipe that the others are compared with."""
        return self.baseline or next(iter(self.recipes))

    def is_tuned(self, recipe: str) -> bool:
        """Whether the recipe's point is searched here."""
        return self.recipes[recipe].learning_rate is None and self.learning_rates_from is None

    def points(self, recipe: str) -> list[tuple[int, float]]:
        """The points at which a recipe is tuned: prompts per update, learning rate; none where it is given."""
        if not self.is_tuned(recipe):
            return []
        fewest = min(self.grid.prompts_per_update)
        return [*self.grid.points, *((fewest, rate) for rate in self.recipes[recipe].beyond)]

    def label(self, recipe: str) -> str:
        """A recipe's name in tables and in the figure."""
        return self.recipes[recipe].label or recipe


def read_spec(path: str | Path, output: str | None = None) -> Spec:
    """Read the comparison that a YAML file describes.

    Raises:
        ConfigError: on a file that is missing or malformed, an unknown or missing key, or a value out of its range.
    """
    file = find_config(str(path))
    tree = read_mapping(file, f"the keys of a comparison, {', '.join(_names(Spec))}")
    tree = tree | ({} if output is None else {"output": output})
    parts = {"prompts": Prompts, "grid": Grid, "tuning": Tuning, "timing": Timing}
    given = {name: value for name, value in tree.items() if value is not None or name not in parts}
    values = {name: _built(parts[name], value, name) if name in parts else value for name, value in given.items()}
    if isinstance(recipes := tree.get("recipes"), dict):
        values["recipes"] = {
            name: _built(Recipe, {} if value is None else value, f"recipes.{name}") for name, value in recipes.items()
        }
    if isinstance(final := tree.get("final"), dict):
        seeds = final.get("seeds")
        seeds = {"default": seeds} if isinstance(seeds, list) else seeds
        final = final | ({"seeds": _built(Seeds, seeds, "final.seeds")} if "seeds" in final else {})
    if "final" in tree:
        values["final"] = _built(Final, final, "final")
    return _built(Spec, values, str(file))


def _built(kind: type[T], values: Any, where: str) -> T:
    """Build a dataclass from a mapping, its lists as tuples; every error names the place."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a mapping with {', '.join(_names(kind))}; got {values!r:.80}")
    for key in values:
        if key not in _names(kind):
            raise ConfigError(
                f"{where}: unknown key {key!r}.{did_you_mean(str(key), _names(kind))} Known keys: {', '.join(_names(kind))}."
            )
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    if missing := [name for name in needed if name not in values]:
        raise ConfigError(f"{where}: {', '.join(missing)} missing; needed are {', '.join(needed)}")
    check_types(kind, values, "" if kind is Spec else where)
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _names(kind: type) -> list[str]:
    return [f.name for f in fields(kind)]


def _check_axes(phase: str, axes: Mapping[str, Mapping[str, Any]]) -> None:
    _check(len(axes) > 0, f"{phase}.axes must have at least one of {', '.join(AXES)}")
    for axis, budget in axes.items():
        where = f"{phase}.axes.{axis}"
        _check(axis in AXES, f"{phase}.axes: unknown axis {axis!r}.{did_you_mean(str(axis), AXES)} There are: {', '.join(AXES)}")
        key = AXES[axis]
        _check(isinstance(budget, Mapping) and list(budget) == [key], f"{where} must be {{{key}: number}}, got {budget!r}")
        amount = budget[key]
        if amount == "fewest":
            _check(axis != "time", f"{where}.{key} must be a number of seconds, got 'fewest'")
            _check(
                "time" in axes, f"{where}.{key} is 'fewest', which is counted within the seconds of {phase}.axes.time: give that"
            )
        else:
            number = isinstance(amount, (int, float) if axis == "time" else int) and not isinstance(amount, bool) and amount > 0
            _check(number, f"{where}.{key} must be a number above 0{'' if axis == 'time' else ' or fewest'}, got {amount!r}")


def _check_seeds(where: str, seeds: tuple[int, ...]) -> None:
    _check(len(seeds) > 0 and len(set(seeds)) == len(seeds), f"{where} must list different seeds, got {list(seeds)}")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
