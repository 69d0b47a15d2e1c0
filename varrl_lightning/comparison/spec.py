"""Reads and checks the YAML file of a comparison before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from varrl_lightning.configuration.files import find_config
from varrl_lightning.errors import ConfigError, did_you_mean
from varrl_lightning.weights.fingerprint import digest

LEARNING_RATE, PROMPTS_PER_UPDATE = "model.optimizer.init_args.lr", "data.batch_size"
DECIDED = {
    LEARNING_RATE: "grid.learning_rates",
    PROMPTS_PER_UPDATE: "grid.prompts_per_update",
    "seed_everything": "seeds",
    "data.train": "prompts.train",
    "data.validation": "prompts.validation",
    "data.test": "prompts.test",
    "trainer.max_steps": "seconds",
}
"""Keys of a recipe that the comparison sets itself, each with the key of the spec that has its value."""
T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """A recipe: one way to train.

    Args:
        config: its configuration file.
        overrides: changes to the configuration, by dotted key.
        label: its name in the figure.
        seeds: of its final runs, if not `final.seeds`; differences are over the seeds that two recipes share.
        beyond: learning rates that it is tuned at besides the grid's, with as many prompts as the grid's fewest: for a recipe whose
            best point lies on the grid's edge.
    """

    config: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None
    seeds: tuple[int, ...] = ()
    beyond: tuple[float, ...] = ()


@dataclass(frozen=True)
class Prompts:
    """Prompt files of all recipes.

    Args:
        train, validation, test: as in a configuration's `data`.
        curve: how many of the validation prompts, evenly spaced, a point of the curve is measured on.
        choice: how many of them, evenly spaced, a grid's best point is chosen on; all when None.
    """

    train: str
    validation: str
    test: str
    curve: int = 200
    choice: int | None = None


@dataclass(frozen=True)
class Grid:
    """Every learning rate with every number of prompts per update, the same for all recipes."""

    learning_rates: tuple[float, ...]
    prompts_per_update: tuple[int, ...]

    @property
    def points(self) -> list[tuple[int, float]]:
        """All points: prompts per update, learning rate."""
        return [(prompts, rate) for prompts in self.prompts_per_update for rate in self.learning_rates]


@dataclass(frozen=True)
class Budget:
    """The budget of the runs of a phase.

    Args:
        seconds: of training, as the measured costs count them; evaluation is free.
        images: sampled in training, for the reading at equal images: a number, or `fewest` for as many as the run that samples
            fewest within `seconds`.
        seeds: of the runs.
        curve_every: seconds of training between two points of the curve.
    """

    seconds: float
    seeds: tuple[int, ...]
    curve_every: float
    images: int | str = "fewest"


@dataclass(frozen=True)
class Timing:
    """Updates before the measurement, and the least number of measured updates (rounded up to full cycles)."""

    warm_up: int = 3
    updates: int = 12


@dataclass(frozen=True)
class Spec:
    """The description of a comparison.

    Args:
        recipes: by name.
        prompts: the same for all.
        grid, tuning: the points, and the budget of each of their runs.
        final: budget of the runs at each recipe's best point.
        timing: how seconds per update are measured.
        measure: the metric of the validation prompts that the best point maximises.
        baseline: the recipe that the others are compared with; the last one when None.
        threads: of a run.
        workers: runs side by side.
        output: the folder of all results.
    """

    recipes: Mapping[str, Recipe]
    prompts: Prompts
    grid: Grid
    tuning: Budget
    final: Budget
    timing: Timing = Timing()
    measure: str = "word_accuracy"
    baseline: str | None = None
    threads: int = 1
    workers: int = 1
    output: str = "runs/comparison"

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        names = list(self.recipes)
        _check(len(names) >= 2, f"recipes must name at least two, got {names}")
        _check(self.baseline in (None, *names), f"baseline {self.baseline!r} is no recipe; there are: {', '.join(names)}")
        _check(min(self.threads, self.workers) >= 1, f"threads and workers must be at least 1, got {self.threads}, {self.workers}")
        self._check_numbers()
        for phase, budget in (("tuning", self.tuning), ("final", self.final)):
            _check_budget(phase, budget)
        for name, recipe in self.recipes.items():
            self._check_recipe(name, recipe)
        for name in names:
            shared = set(self.final_seeds(name)) & set(self.final_seeds(self.rival))
            enough = len(shared) >= min(2, len(self.final.seeds))
            _check(enough, f"recipes.{name}.seeds: two must be {self.rival}'s too, got {self.final_seeds(name)}")

    def _check_numbers(self) -> None:
        for name, count in (("curve", self.prompts.curve), ("choice", 1 if self.prompts.choice is None else self.prompts.choice)):
            _check(isinstance(count, int) and count >= 1, f"prompts.{name} must be a number of prompts, at least 1, got {count!r}")
        _check(self.timing.warm_up >= 0 and self.timing.updates >= 1, f"timing needs updates to measure, got {self.timing}")
        for name, values in (("learning_rates", self.grid.learning_rates), ("prompts_per_update", self.grid.prompts_per_update)):
            good = len(values) > 0 and len(set(values)) == len(values) and min(values) > 0
            _check(good, f"grid.{name} must list different numbers above 0, got {list(values)}")

    def _check_recipe(self, name: str, recipe: Recipe) -> None:
        good = isinstance(recipe.seeds, tuple) and len(set(recipe.seeds)) == len(recipe.seeds)
        _check(good, f"recipes.{name}.seeds must list different seeds, got {recipe.seeds!r}")
        new = isinstance(recipe.beyond, tuple) and not set(recipe.beyond) & set(self.grid.learning_rates)
        _check(new, f"recipes.{name}.beyond must list learning rates that the grid does not have, got {recipe.beyond!r}")
        for key in recipe.overrides:
            _check(key not in DECIDED, f"recipes.{name}.overrides: {key} follows {DECIDED.get(key)}, the same for all recipes")

    @property
    def rival(self) -> str:
        """The recipe that the others are compared with."""
        return self.baseline or list(self.recipes)[-1]

    def final_seeds(self, recipe: str) -> tuple[int, ...]:
        """The seeds of a recipe's final runs."""
        return self.recipes[recipe].seeds or self.final.seeds

    def points(self, recipe: str) -> list[tuple[int, float]]:
        """The points at which a recipe is tuned: prompts per update, learning rate."""
        fewest = min(self.grid.prompts_per_update)
        return [*self.grid.points, *((fewest, rate) for rate in self.recipes[recipe].beyond)]

    def label(self, recipe: str) -> str:
        """A recipe's name in the figure."""
        return self.recipes[recipe].label or recipe

    def arguments(self, recipe: str, prompts: int, rate: float, seed: int) -> list[str]:
        """The command line of `varrl fit` that makes the same updates."""
        entry = self.recipes[recipe]
        values = {
            **entry.overrides,
            LEARNING_RATE: rate,
            PROMPTS_PER_UPDATE: prompts,
            "seed_everything": seed,
            "data.train": self.prompts.train,
            "data.validation": self.prompts.validation,
            "data.test": self.prompts.test,
        }
        changes = (f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items())
        return ["fit", "--config", str(find_config(entry.config)), *changes]


def read_spec(path: str | Path, output: str | None = None) -> Spec:
    """Read the comparison that a YAML file describes.

    Raises:
        ConfigError: on a file that is missing or malformed, an unknown or missing key, or a value out of its range.
    """
    file = find_config(str(path))
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: expected the keys of a comparison, {', '.join(_names(Spec))}; got {tree!r:.80}")
    tree = tree | ({} if output is None else {"output": output})
    parts = {"prompts": Prompts, "grid": Grid, "tuning": Budget, "final": Budget, "timing": Timing}
    values = {name: _built(parts[name], value, name) if name in parts else value for name, value in tree.items()}
    if isinstance(recipes := tree.get("recipes"), dict):
        values["recipes"] = {name: _built(Recipe, value, f"recipes.{name}") for name, value in recipes.items()}
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
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _names(kind: type) -> list[str]:
    return [f.name for f in fields(kind)]


def digest_of(value: Any) -> str:
    """Sixteen hexadecimal digits that are equal for equal JSON values."""
    return digest([json.dumps(value, sort_keys=True, default=str)])


def _check_budget(phase: str, budget: Budget) -> None:
    _check(budget.seconds > 0 and budget.curve_every > 0, f"{phase}: seconds and curve_every must be above 0")
    good = len(budget.seeds) > 0 and len(set(budget.seeds)) == len(budget.seeds)
    _check(good, f"{phase}.seeds must list different seeds, got {list(budget.seeds)}")
    good = budget.images == "fewest" or (isinstance(budget.images, int) and budget.images > 0)
    _check(good, f"{phase}.images must be a number above 0 or 'fewest', got {budget.images!r}")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
