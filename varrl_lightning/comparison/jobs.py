"""The runs of a comparison: a job holds all that a worker process needs to make one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from varrl_lightning.comparison.training import Reading, build, curve, spaced, together, train, whole
from varrl_lightning.data import PromptDataModule
from varrl_lightning.errors import RunStoppedError

Phase = Literal["start", "tune", "final"]
MEASURES = ("word_accuracy", "ned", "reward", "judge_word_accuracy", "judge_ned")
"""Measures that are kept, besides the one that choices are made by."""


@dataclass(frozen=True)
class Run:
    """What tells one run of a comparison from the others.

    Args:
        updates: its length, to whose end its learning rates fall.
    """

    phase: Phase
    recipe: str
    prompts: int
    learning_rate: float
    updates: int
    seed: int

    @property
    def name(self) -> str:
        """Of its rows and files."""
        if self.phase == "start":
            return "start"
        return f"{self.phase}-{self.recipe}-p{self.prompts}-lr{self.learning_rate:g}-u{self.updates}-s{self.seed}"


@dataclass(frozen=True)
class Job:
    """A run, and how to make it.

    Args:
        tree: the complete configuration.
        made: digests of all else that its results depend on, by name.
        curve: number of validation prompts for a point of the curve.
        choice: number of validation prompts read at its end; all when None.
        curve_points: readings of the curve.
        measure: that is kept besides `MEASURES`, and for each test prompt.
    """

    run: Run
    tree: Mapping[str, Any] = field(repr=False)
    made: Mapping[str, str]
    curve: int
    choice: int | None
    curve_points: int
    measure: str

    def make(self) -> dict[str, Any]:
        """Make the run in this process: its readings, each with the number of updates before it.

        A learning rate that is too high is a result too: then `stopped` says why the run ended, and there are no readings.
        """
        began = time.perf_counter()
        module, data, config = build(self.tree, self.run.recipe)
        due = self._readings(data)
        stopped, taken = "", {}
        try:
            taken = train(module, data, config, self.run.updates, due).taken if self.run.updates else {0: due[0](module)}
        except RunStoppedError as error:
            stopped = " ".join(str(error).split())
        if not stopped and module.rollouts_done != self.run.updates:
            raise RuntimeError(
                f"{self.run.name} ended after {module.rollouts_done} of {self.run.updates} updates; it is made again next time"
            )
        readings = [self._kept(updates, row) for updates, rows in sorted(taken.items()) for row in rows]
        return {"readings": readings, "stopped": stopped, "wall_seconds": round(time.perf_counter() - began, 1)}

    def _readings(self, data: PromptDataModule) -> dict[int, Reading]:
        validation, last = data.prompts["validation"], self.run.updates
        points = {max(1, round(last * i / self.curve_points)) for i in range(1, self.curve_points + 1)} if last else {0}
        readings: dict[int, list[Reading]] = {point: [curve(spaced(validation, self.curve))] for point in points}
        at_end = readings[last]
        at_end.append(whole("validation", spaced(validation, self.choice or len(validation)), thorough=False))
        if self.run.phase != "tune":
            at_end.append(whole("test", data.prompts["test"], thorough=True))
        return {updates: together(parts) for updates, parts in readings.items()}

    def _kept(self, updates: int, row: Mapping[str, Any]) -> dict[str, Any]:
        """A reading with its number of updates and without other measures; values of single prompts are kept for the test alone."""
        names = [name for name in dict.fromkeys((self.measure, *MEASURES)) if name in row["values"]]
        prompts = row["prompts"][self.measure] if row["split"] == "test" and self.measure in row["prompts"] else None
        return {**row, "updates": updates, "values": {name: row["values"][name] for name in names}, "prompts": prompts}
