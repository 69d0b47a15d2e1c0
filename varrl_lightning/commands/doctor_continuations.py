"""Is K worth its cost? What the variance of a few sampled groups, and what they cost, say of the number of continuations."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence

from varrl_lightning.algorithms.stages import calibrations_of
from varrl_lightning.algorithms.variance_components import (
    BranchCosts,
    VarianceComponents,
    gain_of_continuations,
    implied_continuations,
    whole_continuations,
)
from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.commands.variance_rows import return_meter
from varrl_lightning.data import EvaluationBatches
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt, Stage

PROMPTS = 12
"""Groups that are sampled: of 8 branches with 2 continuations they tell the ratio of within to between to about a quarter."""
AT_ONCE = 4
"""Prompts of a batch, so that costs are a median over several."""


def stages_with_continuations(cycle: Sequence[Stage]) -> list[Stage]:
    """The different stages of a cycle that continue each branch several times, and not only to calibrate drafts."""
    left_out = calibrations_of(cycle)
    return [stage for stage in dict.fromkeys(cycle) if stage.continuations >= 2 and stage not in left_out]


def continuations_pay(model: VARGRPO, stage: Stage, prompts: Sequence[Prompt], seconds: float = math.inf) -> Finding:
    """Say whether the continuations of a stage are worth their cost; no failure, whatever comes out.

    Args:
        prompts: training prompts, of which `PROMPTS` are drawn.
        seconds: after which no other batch of them is begun.
    """
    sample = random.Random(model.seed).sample(list(prompts), min(PROMPTS, len(prompts)))
    meter = return_meter(model, stage, model.seed)
    begun, groups = time.monotonic(), 0
    for batch in EvaluationBatches(sample, AT_ONCE):
        if groups and time.monotonic() - begun > seconds:
            break
        meter.add(batch)
        groups += len(batch)
    components, costs = meter.sums.components(), meter.costs
    said = verdict(components, costs, stage.continuations)
    shares = ", ".join(f"{components.signal(K):.2f}" for K in (1, 2, 4))
    star = implied_continuations(components, costs)
    detail = f"share of signal of V from 1, 2, 4 continuations: {shares}; K* = {star:.2f}; {groups} groups of {stage.branches}"
    where = f" (m = {stage.stop}: {detail})" if math.isfinite(star) else ""
    return Finding("continuations", True, said + where)


def verdict(components: VarianceComponents, costs: BranchCosts, K: int) -> str:
    """What the components and costs say of K >= 2 continuations, in words."""
    star = implied_continuations(components, costs)
    if math.isnan(star):
        return "cannot be told: nothing varies within the groups, or too few images have a score"
    if math.isinf(star):
        return "cannot be told: branches differ by no more than the chance of their continuations"
    best = whole_continuations(star)

    def gains(k: int) -> str:
        signal, cost = gain_of_continuations(components, costs, k)
        return f"gain {signal - 1:.0%} of signal for {cost:.1f} times the cost"

    if best == 1:
        return f"K = 1 suffices here: {K} continuations {gains(K)}"
    if best == K:
        return f"K = {K} is worth its cost: {K} continuations {gains(K)} of one"
    return f"K = {best} is worth its cost: {best} continuations {gains(best)} of one; {K} continuations {gains(K)}"
