"""How long is a step, and how long the run? Measured on a few groups of each stage, for the batch of the configuration."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from varrl_lightning.commands.cycle_costs import cycle_costs
from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.commands.doctor_gradients import StageGradients
from varrl_lightning.commands.doctor_run import RunLength
from varrl_lightning.commands.doctor_trials import Trial
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Stage

PARTS = ("rollout", "reward", "update")
WAITS, LEAST_HOURS = 0.7, 1.0
"""Of a step's time the share that waits for the rewards, and hours of the run that do, from which on is warned."""


def run_takes(
    model: VARGRPO,
    trials: Mapping[Stage, Sequence[Trial]],
    gradients: Mapping[Stage, StageGradients],
    batch_size: int,
    length: RunLength,
    elsewhere: str = "",
    processes: int = 1,
) -> Finding:
    """Measure the seconds of a step in each stage, and the hours of the run; no failure, whatever comes out.

    Validations, checkpoints and the optimizer's step are not counted.

    Args:
        batch_size: prompts of a step.
        elsewhere: in what the run's device differs from this one, in words.
        processes: that share the branches in the run, where one is measured.
    """
    stages = {cost.stage: cost for cost in cycle_costs(model.cycle, model.policy.schedule(), batch_size)}
    seconds = {stage: _of_step(trials[stage], gradients[stage], batch_size, model.updater.updates_per_rollout) for stage in stages}
    mean = {part: statistics.fmean(seconds[stage][part] for stage in model.cycle) for part in PARTS}
    step = sum(mean.values())
    figure = "; ".join(f"{stage.name}: {_said(parts)}" for stage, parts in seconds.items()) + f"; {step:.2f} s a step"
    figure += f" on one process, where the run has {processes}" if processes > 1 else ""
    remarks = [f"Measured on another device than the run's: {elsewhere}."] if elsewhere else []
    if length.steps is None:
        return Finding("duration", True, f"{figure}; the run has no end (trainer.max_steps)", "\n".join(remarks))
    figure += f"; about {_time(length.steps * step)} for {length.steps} steps, without validation"
    waiting = length.steps * mean["reward"]
    if mean["reward"] > WAITS * step and waiting > 3600 * LEAST_HOURS:
        remarks.append(
            f"The rewards are too slow: {_time(waiting)} of {_time(length.steps * step)} wait for them. Run them as a service on "
            "other processors, or several of them; a smaller group_size or num_continuations asks for fewer scores."
        )
    return Finding("duration", True, figure, "\n".join(remarks))


def _of_step(trials: Sequence[Trial], gradients: StageGradients, batch_size: int, updates: int) -> dict[str, float]:
    """Seconds of the parts of a step with a whole batch; of the rollouts the median counts, since the first may load."""
    each = {part: statistics.median(x.seconds[part] / len(x.rollout.prompts) for x in trials) for part in ("rollout", "reward")}
    update = updates * gradients.seconds / gradients.prompts
    return {part: batch_size * value for part, value in (each | {"update": update}).items()}


def _said(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items()) + " s"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
