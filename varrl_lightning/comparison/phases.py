"""The phases of a comparison: measure costs, search the grid, make the final runs."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from varrl_lightning.callbacks.summary import versions
from varrl_lightning.commands.user_errors import reraise_as
from varrl_lightning.comparison.costs import Cost
from varrl_lightning.comparison.jobs import Job
from varrl_lightning.comparison.spec import Budget, Spec, digest_of
from varrl_lightning.comparison.training import build, policy_fingerprint
from varrl_lightning.comparison.workers import check_made, run_all, write_json
from varrl_lightning.configuration.files import find_config
from varrl_lightning.data import check_disjoint
from varrl_lightning.errors import ConfigError, StartError

Point = tuple[int, float]
JUDGED = ("model.reward", "model.judge", "trainer.precision", "trainer.accelerator", "trainer.devices")
"""Parsed keys that decide how a recipe's pictures are judged and computed; they must be equal for all recipes."""
BUSY = 0.15
"""Share of waiting from which on a measurement on one thread is reported to have shared its core."""


@dataclass(frozen=True)
class Built:
    """A recipe before training: digests of its weights and of its evaluation settings, and the length of its cycle."""

    weights: str
    evaluation: str
    stages: int


class Comparison:
    """A spec whose recipes have all been built once, so that mistakes are reported before any work."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.folder = spec, Path(spec.output)
        prompts, rate = spec.grid.points[0]
        self.built: dict[str, Built] = {}
        for name in spec.recipes:
            module, data, config = build(spec.arguments(name, prompts, rate, spec.tuning.seeds[0]))
            with reraise_as(StartError, ValueError):
                check_disjoint(data.prompts["validation"], data.prompts["test"], ("validation", "test"))
                largest = max(spec.grid.prompts_per_update)
                if largest > (available := len(data.prompts["train"])):
                    raise ValueError(f"grid.prompts_per_update asks for {largest} prompts, and there are {available} to train on")
            evaluation = digest_of([repr(module.sampling), module.eval_seed, *(str(config.get(key)) for key in JUDGED)])
            self.built[name] = Built(policy_fingerprint(module.policy), evaluation, len(module.cycle))
        judged = ", ".join(("model.sampling", "model.eval_seed", *JUDGED))
        for what, shown in (("weights", "their policy's weights"), ("evaluation", f"one of {judged}")):
            if len({getattr(built, what) for built in self.built.values()}) > 1:
                raise ConfigError(
                    f"the recipes differ in {shown}; they must start from the same weights and be judged in the same way"
                )

    def time(self) -> None:
        """Measure the configurations that are not in timing.json yet, one after another."""
        path = self.folder / "timing.json"
        table = self._timing()
        for recipe in self.spec.recipes:
            for prompts in self.spec.grid.prompts_per_update:
                if str(prompts) in table.setdefault("recipes", {}).setdefault(recipe, {}):
                    continue
                job = self._timing_job(recipe, prompts)
                name, result = next(iter(run_all([job], self.folder / "timing", 1, self.spec.threads).items()))
                cost = Cost.read(result["cycle"])
                numbers = {n: round(getattr(cost, n), 5) for n in ("seconds_per_update", "images_per_update", "reward_share")}
                table["recipes"][recipe][str(prompts)] = {"made": dict(job.made), **numbers, "cycle": cost.as_json()}
                write_json(path, {"machine": machine(self.spec.threads), "versions": versions(), **table})
                (self.folder / "timing" / f"{name}.json").unlink()
                print(f"{recipe}, {prompts} prompts: {numbers}", flush=True)
                if self.spec.threads == 1 and (busy := cost.waiting) > BUSY:
                    print(
                        f"  The process waited for {busy:.0%} of that: measure again on a machine that does nothing else.",
                        flush=True,
                    )
        if (self.folder / "timing").is_dir():
            (self.folder / "timing").rmdir()

    def _timing_job(self, recipe: str, prompts: int) -> Job:
        timing, stages = self.spec.timing, self.built[recipe].stages
        arguments = self.spec.arguments(recipe, prompts, self.spec.grid.learning_rates[0], 0)
        made = {"recipe": self._recipe(recipe), "prompts": prompts, "threads": self.spec.threads}
        updates = timing.warm_up + -(-max(timing.updates, stages) // stages) * stages
        return Job("time", f"{recipe}_{prompts}", tuple(arguments), made, updates, warm_up=timing.warm_up)

    def _timing(self) -> dict[str, Any]:
        """Read timing.json, without machine and versions; refuse times of other recipes."""
        path = self.folder / "timing.json"
        if not path.is_file():
            return {}
        table = {"recipes": json.loads(path.read_text(encoding="utf-8"))["recipes"]}
        for recipe in self.spec.recipes:
            for prompts, entry in table["recipes"].get(recipe, {}).items():
                check_made(entry["made"], self._timing_job(recipe, int(prompts)).made, f"{path}: {recipe} with {prompts} prompts")
        return table

    def costs(self) -> dict[str, dict[int, Cost]]:
        """The measured costs, by recipe and prompts per update.

        Raises:
            StartError: when a cost was not measured yet.
        """
        table, costs = self._timing().get("recipes", {}), {}
        for recipe in self.spec.recipes:
            measured = table.get(recipe, {})
            missing = [prompts for prompts in self.spec.grid.prompts_per_update if str(prompts) not in measured]
            if missing:
                raise StartError(f"{self.folder / 'timing.json'} lacks {recipe} with {missing} prompts; run --phase time first")
            costs[recipe] = {p: Cost.read(measured[str(p)]["cycle"]) for p in self.spec.grid.prompts_per_update}
        return costs

    def grid(self) -> None:
        """Run every recipe at every point; write grid.json with the table and each recipe's best point."""
        jobs = self._grid_jobs()
        results = run_all([job for job, *_ in jobs], self.folder / "grid", self.spec.workers, self.spec.threads)
        table = _grid_table(jobs, results)
        write_json(self.folder / "grid.json", {"measure": self.spec.measure, "best": self._best(table), "runs": table})

    def _grid_jobs(self) -> list[tuple[Job, str, Point, int]]:
        costs = self.costs()
        points = {recipe: self.spec.points(recipe) for recipe in self.spec.recipes}
        seeds = dict.fromkeys(self.spec.recipes, self.spec.tuning.seeds)
        return self._jobs("grid", self.spec.tuning, seeds, points, costs)

    def best(self) -> dict[str, Point]:
        """Each recipe's best point.

        Raises:
            StartError: when runs of the grid are missing.
        """
        jobs = self._grid_jobs()
        missing = [job.name for job, *_ in jobs if not (self.folder / "grid" / f"{job.name}.json").is_file()]
        if missing:
            raise StartError(f"{self.folder / 'grid'} lacks {len(missing)} of {len(jobs)} runs; run --phase grid first")
        # All results exist: this only reads them, and checks what they were made from.
        results = run_all([job for job, *_ in jobs], self.folder / "grid", 1, self.spec.threads)
        best = self._best(_grid_table(jobs, results))
        return {recipe: (best[recipe]["prompts"], best[recipe]["learning_rate"]) for recipe in self.spec.recipes}

    def _best(self, table: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The point with the highest mean measure at equal time; of equal ones the smaller rate, then fewer prompts."""
        best = {}
        for recipe in self.spec.recipes:
            values: dict[Point, list[float]] = {}
            for row in (row for row in table if row["recipe"] == recipe):
                values.setdefault((row["prompts"], row["learning_rate"]), []).append(self._measured(row))
            (prompts, rate), scores = max(values.items(), key=lambda item: (fmean(item[1]), -item[0][1], -item[0][0]))
            if fmean(scores) == -math.inf:
                raise StartError(f"every run of {recipe} stopped before its end; lower grid.learning_rates")
            best[recipe] = {"prompts": prompts, "learning_rate": rate, self.spec.measure: round(fmean(scores), 6)}
        return best

    def _measured(self, row: Mapping[str, Any]) -> float:
        """The measure of a run at equal time; a run that stopped is worse than any other."""
        if "stopped" in row:
            return -math.inf
        metrics = row["at_time"]["sampled"]
        if self.spec.measure not in metrics:
            raise StartError(f"the validation prompts have no {self.spec.measure!r}; measure may be {', '.join(metrics)}")
        return float(metrics[self.spec.measure])

    def final(self) -> None:
        """Evaluate the start, and run each recipe's best point over the final seeds."""
        jobs = self.final_jobs()
        run_all([self.start_job(), *(job for job, *_ in jobs)], self.folder / "final", self.spec.workers, self.spec.threads)

    def start_job(self) -> Job:
        """The evaluation before training: one for all recipes, which start alike."""
        recipe, (prompts, rate) = self.spec.rival, self.spec.grid.points[0]
        return Job(
            "start",
            "start",
            tuple(self.spec.arguments(recipe, prompts, rate, 0)),
            self._evaluations() | {"curve": self.spec.prompts.curve},
            curve=self.spec.prompts.curve,
        )

    def final_jobs(self) -> list[tuple[Job, str, Point, int]]:
        """The jobs at the best points, each with its recipe, point and seed."""
        points = {recipe: [point] for recipe, point in self.best().items()}
        seeds = {recipe: self.spec.final_seeds(recipe) for recipe in self.spec.recipes}
        return self._jobs("final", self.spec.final, seeds, points, self.costs())

    def _jobs(
        self,
        kind: Any,
        budget: Budget,
        seeds: Mapping[str, tuple[int, ...]],
        points: Mapping[str, list[Point]],
        costs: Mapping[str, Mapping[int, Cost]],
    ) -> list[tuple[Job, str, Point, int]]:
        """Jobs in order of seed and point, so that all recipes advance together."""
        cost_of = {(recipe, point): costs[recipe][point[0]] for recipe, of_recipe in points.items() for point in of_recipe}
        updates = {key: cost.updates_in(budget.seconds) for key, cost in cost_of.items()}
        for (recipe, point), count in updates.items():
            if count < 1:
                raise ConfigError(
                    f"{budget.seconds} s are less than one update of {recipe} with {point[0]} prompts; give more seconds"
                )
        images = budget.images if isinstance(budget.images, int) else min(c.images(updates[k]) for k, c in cost_of.items())
        order = [
            (recipe, of_recipe[place], seed)
            for seed in dict.fromkeys(s for of_recipe in seeds.values() for s in of_recipe)
            for place in range(max(map(len, points.values())))
            for recipe, of_recipe in points.items()
            if seed in seeds[recipe] and place < len(of_recipe)
        ]
        return [(self._job(kind, budget, *run, cost_of[run[:2]], images), *run) for run in order]

    def _job(self, kind: Any, budget: Budget, recipe: str, point: Point, seed: int, cost: Cost, images: int) -> Job:
        """One run of `grid` or `final`, long enough for both readings."""
        at_time, at_images = cost.updates_in(budget.seconds), cost.updates_drawing(images)
        every = max(1, round(budget.curve_every / cost.seconds_per_update))
        numbers = {"updates": max(at_time, at_images), "at_time": at_time, "at_images": at_images, "every": every}
        prompts = self.spec.prompts
        counts = {"choice": prompts.choice} if kind == "grid" else {"curve": prompts.curve}
        made = self._evaluations() | counts | {"recipe": self._recipe(recipe), "point": list(point), "seed": seed, **numbers}
        name = f"{recipe}_{point[0]}prompts_lr{point[1]:g}_seed{seed}"
        arguments = tuple(self.spec.arguments(recipe, *point, seed))
        return Job(kind, name, arguments, made, **numbers, curve=prompts.curve, choice=prompts.choice)

    def _tree(self, recipe: str) -> dict[str, Any]:
        return dict(yaml.safe_load(find_config(self.spec.recipes[recipe].config).read_text(encoding="utf-8")))

    def _recipe(self, recipe: str) -> str:
        """A digest of the recipe's training: without learning rate and prompts, which the grid sets, and without unused keys."""
        tree = self._tree(recipe)
        return digest_of([tree.get("model"), dict(self.spec.recipes[recipe].overrides)])

    def _evaluations(self) -> dict[str, Any]:
        """Everything that evaluations depend on besides the training: initial weights, settings and prompts."""
        built = self.built[self.spec.rival]
        prompts = self.spec.prompts
        return {
            "weights": built.weights,
            "drawing": built.evaluation,  # the key of existing result files
            "prompts": [prompts.train, prompts.validation, prompts.test],
        }


def _grid_table(jobs: Sequence[tuple[Job, str, Point, int]], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"recipe": recipe, "prompts": point[0], "learning_rate": point[1], "seed": seed, **_summary(results[job.name])}
        for job, recipe, point, seed in jobs
    ]


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """A run's readings of the validation prompts, on which the best point is chosen."""
    if result.get("stopped"):
        return {"stopped": result["stopped"]}
    return {
        name: {"updates": result[name], **result["readings"][str(result[name])]["validation"]} for name in ("at_time", "at_images")
    }


def machine(threads: int) -> dict[str, Any]:
    """A description of the machine on which times were measured."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), model)
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform(), "threads": threads}
