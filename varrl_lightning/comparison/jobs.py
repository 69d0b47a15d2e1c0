"""The runs of a comparison: a job holds all that a worker process needs to make one."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from varrl_lightning.comparison.costs import StageCost
from varrl_lightning.comparison.training import PARTS, Reading, Recorder, build, by_prompt, means, spaced, together, train
from varrl_lightning.errors import RunStoppedError
from varrl_lightning.module import VARGRPO

Kind = Literal["time", "start", "grid", "final"]


@dataclass(frozen=True)
class Job:
    """One run of a comparison.

    Args:
        name: of its result file, without the ending.
        arguments: of `varrl fit`.
        made: all that its result depends on; a result file with a different `made` is another run's.
        updates: of the complete run.
        at_time, at_images: updates at which the budgets of seconds and of images are used up.
        every: updates between two points of the curve.
        curve: number of validation prompts for a point of the curve.
        choice: number of validation prompts that the best point is chosen by; all when None.
        warm_up: updates before those that are measured, in `time`.
    """

    kind: Kind
    name: str
    arguments: tuple[str, ...]
    made: Mapping[str, Any]
    updates: int = 0
    at_time: int = 0
    at_images: int = 0
    every: int = 1
    curve: int = 1
    choice: int | None = None
    warm_up: int = 0

    def run(self) -> dict[str, Any]:
        """Make the run in this process; return the content of its result file."""
        began = time.perf_counter()
        result = {"time": self._time, "start": self._start, "grid": self._train, "final": self._train}[self.kind]()
        return {"made": dict(self.made)} | result | {"wall_seconds": round(time.perf_counter() - began, 1)}

    def _time(self) -> dict[str, Any]:
        module, data, config = build(self.arguments, self.updates)
        recorder = train(module, data, config, self.updates, {})
        return {"cycle": [stage.__dict__ for stage in stage_costs(recorder, module, data.batch_size, self.warm_up)]}

    def _start(self) -> dict[str, Any]:
        module, data, _ = build(self.arguments)
        curve = means(spaced(data.prompts["validation"], self.curve))
        parts = (("curve", curve), ("test", by_prompt(data.prompts["test"], thorough=True)))
        return {"readings": {"0": together(*parts)(module)}}

    def _train(self) -> dict[str, Any]:
        module, data, config = build(self.arguments, self.updates)
        validation = data.prompts["validation"]
        points: dict[int, list[tuple[str, Reading]]] = {}
        for updates in {*range(self.every, self.updates + 1, self.every), self.at_time, self.at_images}:
            points[updates] = [("curve", means(spaced(validation, self.curve)))]
        for updates in {self.at_time, self.at_images}:
            if self.kind == "final":
                points[updates].append(("test", by_prompt(data.prompts["test"], thorough=updates == self.at_time)))
            else:
                points[updates].append(("validation", means(spaced(validation, self.choice or len(validation)))))
        readings = {updates: together(*parts) for updates, parts in points.items()}
        result: dict[str, Any] = {"updates": self.updates, "at_time": self.at_time, "at_images": self.at_images}
        try:
            recorder = train(module, data, config, self.updates, readings)
        except RunStoppedError as error:  # a learning rate that is too high is a result too
            return result | {"stopped": str(error), "readings": {}}
        if module.rollouts_done != self.updates:
            raise RuntimeError(
                f"{self.name} ended after {module.rollouts_done} of {self.updates} updates; it is run again next time"
            )
        return result | {"readings": {str(u): r for u, r in sorted(recorder.taken.items())}, "log": log(recorder, self.every)}


def stage_costs(recorder: Recorder, module: VARGRPO, prompts: int, warm_up: int) -> list[StageCost]:
    """Medians over the updates after the warm-up, of each place in the cycle; a stage that occurs more than once has one median."""
    stages = [module.cycle[i % len(module.cycle)] for i in range(len(recorder.steps))]
    costs = {}
    for stage in dict.fromkeys(module.cycle):
        steps = [step for i, step in enumerate(recorder.steps) if stages[i] == stage and i >= warm_up]
        parts = {part: statistics.median(step["parts"][part] for step in steps) for part in PARTS}
        seconds, cpu = (statistics.median(step[clock] for step in steps) for clock in ("seconds", "cpu_seconds"))
        costs[stage] = StageCost(stage.name, prompts * stage.images_per_prompt, seconds, cpu, parts)
    return [costs[stage] for stage in module.cycle]


def log(recorder: Recorder, every: int) -> list[dict[str, float]]:
    """Means of what training logged between two points of the curve, and the seconds that passed."""
    rows = []
    for first in range(0, len(recorder.steps), every):
        steps = recorder.steps[first : first + every]
        row = {"updates": float(first + len(steps)), "seconds": sum(step["seconds"] for step in steps)}
        for name in ("reward", "kl", "grad_norm"):
            row |= _mean(name, [step[name] for step in steps if name in step])
        rows.append({name: round(value, 5) for name, value in row.items()})
    return rows


def _mean(name: str, values: Sequence[float]) -> dict[str, float]:
    finite = [value for value in values if math.isfinite(value)]
    return {name: statistics.fmean(finite)} if finite else {}
