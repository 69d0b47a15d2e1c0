"""The phases of a comparison: measure costs, search the grid, make the final runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from varrl_lightning.comparison.axes import lengths
from varrl_lightning.comparison.choices import Choices, Point
from varrl_lightning.comparison.costs import Cost
from varrl_lightning.comparison.jobs import Job, Run
from varrl_lightning.comparison.recipe_trees import Tree, decided, digest_of, file_digest, recipe_tree, training_digest
from varrl_lightning.comparison.spec import Spec
from varrl_lightning.comparison.table import Table, alone
from varrl_lightning.comparison.timing import ENDLESS, Timing
from varrl_lightning.comparison.training import build, policy_fingerprint
from varrl_lightning.comparison.workers import run_all
from varrl_lightning.errors import ConfigError, StartError
from varrl_lightning.types import Prompt, Stage
from varrl_lightning.types.normal_form import normal_form

JUDGED = ("model.reward", "model.evaluate_with", "trainer.precision", "trainer.accelerator", "trainer.devices")
"""Parsed keys that decide how a recipe's pictures are judged and computed; they must be equal for all recipes."""


@dataclass(frozen=True)
class Built:
    """A recipe before training: a digest of its weights, what evaluations depend on, and its cycle."""

    weights: str
    judging: str
    cycle: tuple[Stage, ...]


@dataclass
class Plan:
    """Runs in their order, each with the axes that its end serves."""

    axes_of: dict[Run, list[str]] = field(default_factory=dict)

    def add(self, run: Run, axis: str) -> None:
        """Add a run, or another axis to a run that is there."""
        self.axes_of.setdefault(run, []).append(axis)

    def on(self, axis: str) -> list[Run]:
        """The runs that serve an axis."""
        return [run for run, axes in self.axes_of.items() if axis in axes]


class Comparison:
    """A comparison that a spec describes: its phases, and the plans of their runs."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.folder = spec, Path(spec.output)
        self.trees: dict[str, Tree] = {
            name: recipe_tree(spec.base, recipe.config, recipe.overrides) for name, recipe in spec.recipes.items()
        }
        files = {split: getattr(spec.prompts, split) for split in ("train", "validation", "test")}
        self.files = {split: file_digest(path) for split, path in files.items()}
        self.table, self.choices = Table(self.folder), Choices(spec)
        self.timing = Timing(spec, self._timing_tree, lambda recipe: {"training": self._training(recipe), "threads": spec.threads})
        self.built: dict[str, Built] = {}

    # --- checks -------------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Build every recipe once, so that mistakes are reported before any work.

        Raises:
            ConfigError: on a wrong configuration, or recipes that cannot be compared.
            StartError: when prompts, files and model do not fit together, or two prompt files overlap.
        """
        spec = self.spec
        for name in spec.recipes:
            module, data, config = build(self._timing_tree(name, spec.grid.prompts_per_update[0], ENDLESS), name)
            if not self.built:
                self._check_prompts(data.prompts, module.rewards.reads_words)
            if spec.measure != "reward" and not module.rewards.reads_words:
                raise ConfigError(f"measure is {spec.measure}, but no reward of recipe {name} reads words: give measure: reward")
            judging = digest_of([repr(module.sampling), module.eval_seed, *(str(config.get(key)) for key in JUDGED)])
            self.built[name] = Built(policy_fingerprint(module.policy)[:8], judging, module.cycle)
        judged = ", ".join(("model.sampling", "model.eval_seed", *JUDGED))
        for what, shown in (("weights", "their policy's weights"), ("judging", f"one of {judged}")):
            if len({getattr(built, what) for built in self.built.values()}) > 1:
                raise ConfigError(
                    f"the recipes differ in {shown}; they must start from the same weights and be judged in the same way"
                )
        branches = {name: sorted({stage.branches for stage in built.cycle}) for name, built in self.built.items()}
        if "updates" in spec.final.axes and len(set(itertools.chain(*branches.values()))) > 1:
            raise ConfigError(f"final.axes.updates compares updates of the same branches per prompt, got {branches}")

    def _check_prompts(self, prompts: Mapping[str, Sequence[Prompt]], reads_words: bool) -> None:
        files = {split: f"{split} ({getattr(self.spec.prompts, split)})" for split in prompts}
        largest, available = max(self.spec.grid.prompts_per_update), len(prompts["train"])
        if largest > available:
            raise StartError(f"grid.prompts_per_update asks for {largest} prompts, and there are {available} to train on")
        for first, second in itertools.combinations(("train", "validation", "test"), 2):
            _check_disjoint(prompts[first], prompts[second], (files[first], files[second]), reads_words)

    # --- configurations and what they are made from ---------------------------------------------------------------------------

    def tree(self, recipe: str, point: Point, seed: int, updates: int) -> Tree:
        """The complete configuration of a run."""
        prompts, rate = point
        values: dict[str, Any] = {"model.optimizer.init_args.lr": rate, "data.batch_size": prompts, "seed_everything": seed}
        values |= {f"data.{split}": getattr(self.spec.prompts, split) for split in ("train", "validation", "test")}
        values |= {"data.overlap": "ignore", "trainer.max_steps": updates}
        return decided(self.trees[recipe], values, updates, self.spec.warmup)

    def _timing_tree(self, recipe: str, prompts: int, updates: int) -> Tree:
        return self.tree(recipe, (prompts, 1e-5), 0, updates)

    def _training(self, recipe: str) -> str:
        return training_digest(self.tree(recipe, (1, 1.0), 0, ENDLESS))

    def judging(self, recipe: str) -> str:
        """A digest of how readings are taken, as the recipe's configuration writes it."""
        model, trainer = (self.trees[recipe].get(name) or {} for name in ("model", "trainer"))
        written = [model.get(name) for name in ("sampling", "eval_seed", "reward", "evaluate_with")]
        counts = [self.spec.prompts.curve, self.spec.prompts.choice]
        return digest_of([*written, *(trainer.get(name) for name in ("precision", "accelerator", "devices")), *counts])

    def made(self, run: Run) -> dict[str, str]:
        """Digests of all that a run's results depend on besides what its name says."""
        made = {"training": self._training(run.recipe), "judging": self.judging(run.recipe), **self.files}
        made |= {"weights": self.built[run.recipe].weights} if self.built else {}
        drop = {"start": ("training", "train"), "tune": ("test",), "final": ()}[run.phase]
        return {name: value for name, value in made.items() if name not in drop}

    def job(self, run: Run) -> Job:
        """A run, ready to be made."""
        prompts = self.spec.prompts
        points = self.spec.tuning.curve_points if run.phase == "tune" and self.spec.tuning else self.spec.final.curve_points
        tree = self.tree(run.recipe, (run.prompts, run.learning_rate), run.seed, run.updates or ENDLESS)
        return Job(run, tree, self.made(run), prompts.curve, prompts.choice, points, self.spec.measure)

    # --- plans ----------------------------------------------------------------------------------------------------------------

    def tuning_plan(self) -> Plan:
        """The runs of the grid."""
        plan, tuning = Plan(), self.spec.tuning
        if tuning is None:
            return plan
        costs, (axis,) = self.timing.costs(), tuning.axes
        points = {recipe: self.spec.points(recipe) for recipe in self.spec.recipes}
        updates = {
            prompts: lengths("tuning", tuning.axes, {name: cost[prompts] for name, cost in costs.items()}, self.spec.warmup)[axis]
            for prompts in self.spec.grid.prompts_per_update
        }
        for seed in tuning.seeds:
            for place in range(max(map(len, points.values()))):
                for recipe, of_recipe in points.items():
                    if place < len(of_recipe):
                        prompts, rate = of_recipe[place]
                        plan.add(Run("tune", recipe, prompts, rate, updates[prompts][recipe], seed), axis)
        return plan

    def final_plan(self, points: Mapping[str, Point], seeds: Mapping[str, Iterable[int]], axes: Sequence[str]) -> Plan:
        """The final runs of these seeds on these axes; a run whose length is equal on two axes serves both."""
        plan, all_costs = Plan(), self.timing.costs()
        costs = {recipe: all_costs[recipe][prompts] for recipe, (prompts, _) in points.items()}
        updates = lengths("final", self.spec.final.axes, costs, self.spec.warmup)
        of_recipe = {recipe: tuple(seeds[recipe]) for recipe in self.spec.recipes}
        for axis in axes:
            for seed in sorted({seed for own in of_recipe.values() for seed in own}):
                for recipe, own in of_recipe.items():
                    if seed in own:
                        plan.add(Run("final", recipe, *points[recipe], updates[axis][recipe], seed), axis)
        return plan

    def start_run(self) -> Run:
        """The readings before training: one for all recipes, which start alike."""
        return Run("start", self.spec.rival, self.spec.grid.prompts_per_update[0], 0.0, 0, 0)

    # --- work -----------------------------------------------------------------------------------------------------------------

    def time(self) -> None:
        """Measure what updates cost."""
        with alone(self.folder):
            self.timing.measure()

    def tune(self) -> None:
        """Run every recipe at every point, and choose each recipe's best one."""
        with alone(self.folder):
            plan = self.tuning_plan()
            self._make(plan)
            self.choices.tune(plan.axes_of, self.table)

    def final(self) -> None:
        """Read the start; run each recipe's best point over the default seeds, choose who gets more seeds, and run these."""
        with alone(self.folder):
            points, axes = self.points(), list(self.spec.final.axes)
            plan = self.final_plan(points, dict.fromkeys(self.spec.recipes, self.spec.final.seeds.default), axes)
            self._make(Plan({self.start_run(): []}))
            self._make(plan, axes[0])
            seeds = self.choices.seeds(plan.on(axes[0]), axes[0], self.table)
            plan = self.final_plan(points, seeds, axes)
            for axis in axes:
                self._make(plan, axis)

    def points(self) -> dict[str, Point]:
        """Each recipe's point: the one that is given, or the best of the grid.

        Raises:
            StartError: when runs of the grid are missing.
        """
        return self.choices.points(self.tuning_plan().axes_of, self.table)

    def cost(self, run: Run) -> Cost:
        """The measured cost of a run's recipe at its prompts."""
        return self.timing.costs()[run.recipe][run.prompts]

    def _make(self, plan: Plan, axis: str | None = None) -> None:
        """Make the runs of a plan that are not in the table.

        Args:
            axis: only those that serve it.
        """
        jobs = [self.job(run) for run in (plan.axes_of if axis is None else plan.on(axis))]
        there = self.table.check(jobs)
        axes = {run.name: " ".join(axes) for run, axes in plan.axes_of.items()}
        self.table.set_axes(axes)
        if there:
            print(f"{len(there)} of {len(jobs)} runs exist already", flush=True)
        costs = self.timing.costs()

        def keep(job: Job, result: dict[str, Any]) -> None:
            cost = costs[job.run.recipe][job.run.prompts]
            spent = [(cost.images(row["updates"]), cost.seconds(row["updates"])) for row in result["readings"]]
            of_run = {"axes": axes[job.run.name], **_method(self.built[job.run.recipe].cycle if job.run.updates else ())}
            self.table.add(job, result, of_run, spent)

        run_all([job for job in jobs if job.run.name not in there], self.spec.workers, self.spec.threads, keep)


def _method(cycle: Sequence[Stage]) -> dict[str, Any]:
    """m and K of the first stage that ends before the last scale; empty for a cycle without one."""
    prefix = next((stage for stage in cycle if stage.name == "prefix"), None)
    return {"m": "", "K": ""} if prefix is None else {"m": prefix.stop, "K": prefix.continuations}


def _check_disjoint(first: Sequence[Prompt], second: Sequence[Prompt], names: tuple[str, str], reads_words: bool) -> None:
    """Refuse two sets that share a word where a reward reads (what is learnt of it in one prompt is known in all), else a text."""

    def asked(prompts: Sequence[Prompt]) -> set[str]:
        words = {word for prompt in prompts if reads_words for text in prompt.words for word in normal_form(text).split()}
        return words | {normal_form(prompt.text).strip() for prompt in prompts if not (reads_words and prompt.words)}

    shared = sorted(asked(first) & asked(second))
    if shared:
        shown = ", ".join(shared[:20]) + (", ..." if len(shared) > 20 else "")
        what = "words" if reads_words else "prompts"
        raise StartError(f"{names[0]} and {names[1]} share {len(shared)} {what}: {shown}. Remove them from one of the two.")
