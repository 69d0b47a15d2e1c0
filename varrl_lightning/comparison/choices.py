"""What is chosen on validation prompts: each recipe's point, and which recipe gets more seeds; `choices.json` records both."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from varrl_lightning.comparison.jobs import Run
from varrl_lightning.comparison.spec import Spec
from varrl_lightning.comparison.table import Row, Table
from varrl_lightning.comparison.workers import write_json
from varrl_lightning.errors import StartError

Point = tuple[int, float]
"""Prompts per update, learning rate."""


class Choices:
    """The choices of a comparison; none reads a row of the test."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.path = spec, Path(spec.output) / "choices.json"

    def tune(self, runs: Iterable[Run], table: Table) -> dict[str, Point]:
        """Choose each tuned recipe's point, with the highest mean measure; of equal ones the smaller rate, then fewer prompts.

        Raises:
            StartError: when runs are missing.
        """
        values: dict[str, dict[Point, list[float]]] = {}
        for run, value in self._values(list(runs), table, "tune").items():
            values.setdefault(run.recipe, {}).setdefault((run.prompts, run.learning_rate), []).append(value)
        best: dict[str, Point] = {}
        record: dict[str, Any] = {}
        for recipe, of_points in values.items():
            point, scores = max(of_points.items(), key=lambda item: (fmean(item[1]), -item[0][1], -item[0][0]))
            if fmean(scores) == -math.inf:
                raise StartError(f"every run of {recipe} stopped before its end; lower grid.learning_rates")
            best[recipe] = point
            record[recipe] = {"prompts": point[0], "learning_rate": point[1], self.spec.measure: round(fmean(scores), 6)}
        if record:
            self._record("points", record)
        return best

    def points(self, runs: Iterable[Run], table: Table) -> dict[str, Point]:
        """Each recipe's point: the one that is given, or that of another comparison, or the best of the grid.

        Raises:
            StartError: when runs of the grid, or the choices of the other comparison, are missing.
        """
        spec = self.spec
        given = {name: recipe.learning_rate for name, recipe in spec.recipes.items()}
        points = {name: (spec.grid.prompts_per_update[0], rate) for name, rate in given.items() if rate is not None}
        others = [name for name in spec.recipes if name not in points]
        if spec.learning_rates_from is not None:
            return points | {name: self._of_other(name, Path(spec.learning_rates_from)) for name in others}
        return points | (self.tune(runs, table) if others else {})

    def _of_other(self, recipe: str, path: Path) -> Point:
        name = self.spec.recipes[recipe].tuned_as or recipe
        if not path.is_file():
            raise StartError(f"learning_rates_from: there is no {path}; tune that comparison first")
        chosen = json.loads(path.read_text(encoding="utf-8")).get("points", {})
        if name not in chosen:
            raise StartError(
                f"learning_rates_from: {path} has no point of {name}, for {recipe}; it has {', '.join(chosen) or 'none'}"
            )
        point = (int(chosen[name]["prompts"]), float(chosen[name]["learning_rate"]))
        if point[0] not in self.spec.grid.prompts_per_update:
            raise StartError(f"learning_rates_from: {path} has {name} at {point[0]} prompts, which grid.prompts_per_update lacks")
        return point

    def seeds(self, runs: Iterable[Run], axis: str, table: Table) -> dict[str, tuple[int, ...]]:
        """Each recipe's seeds: more for those that the spec names, and for the one with the highest mean of the default seeds.

        The choice is recorded before any run of another seed is made, and stands from then on.

        Raises:
            StartError: when runs are missing, or the validation rows say another choice than the one that is recorded.
        """
        seeds = self.spec.final.seeds
        if not seeds.most:
            return dict.fromkeys(self.spec.recipes, seeds.default)
        values: dict[str, list[float]] = {}
        for run, value in self._values(list(runs), table, "final").items():
            values.setdefault(run.recipe, []).append(value)
        means = {recipe: round(fmean(scores), 6) for recipe, scores in values.items()}
        highest = max(means, key=lambda recipe: means[recipe])
        choice = {"highest": highest, "axis": axis, "seeds": list(seeds.default), f"validation_{self.spec.measure}": means}
        recorded = self.read().get("most_seeds")
        if recorded not in (None, choice):
            raise StartError(
                f"{self.path} records {recorded}, and the validation rows say {choice}. More seeds were run for the former: "
                "restore its rows, or remove its `most_seeds` and say so where you report the results."
            )
        self._record("most_seeds", choice)
        return self.chosen_seeds()

    def chosen_seeds(self) -> dict[str, tuple[int, ...]]:
        """Each recipe's seeds by the recorded choice; the default ones until it is made."""
        seeds, choice = self.spec.final.seeds, self.read().get("most_seeds")
        more = {choice["highest"], *seeds.most_for} if choice and seeds.most else set()
        return {recipe: seeds.most if recipe in more else seeds.default for recipe in self.spec.recipes}

    def read(self) -> dict[str, Any]:
        """What is recorded; empty at first."""
        return dict(json.loads(self.path.read_text(encoding="utf-8"))) if self.path.is_file() else {}

    def _record(self, name: str, choice: Mapping[str, Any]) -> None:
        recorded = self.read()
        if recorded.get(name) != choice:
            write_json(self.path, {**recorded, name: dict(choice)})

    def _values(self, runs: list[Run], table: Table, phase: str) -> dict[Run, float]:
        """The measure of each run on validation prompts at its end; a run that stopped is worse than any other."""
        rows = table.of_runs()
        if lacking := [run.name for run in runs if run.name not in rows]:
            raise StartError(
                f"{table.path} lacks {len(lacking)} of {len(runs)} runs, {lacking[0]} the first; run --phase {phase} first"
            )
        return {run: self._value(rows[run.name]) for run in runs}

    def _value(self, rows: list[Row]) -> float:
        if rows[0]["stopped"]:
            return -math.inf
        (row,) = (row for row in rows if row["split"] == "validation")
        if not row.get(self.spec.measure):
            raise StartError(f"the validation prompts have no {self.spec.measure!r}; give another measure")
        return float(row[self.spec.measure])
