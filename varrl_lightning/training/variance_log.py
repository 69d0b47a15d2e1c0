"""What the variance of the rewards says of K, step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from varrl_lightning.algorithms.stages import calibrations_of
from varrl_lightning.algorithms.variance_components import BranchCosts, VarianceSums, implied_continuations
from varrl_lightning.grpo.credit import Credit
from varrl_lightning.grpo.diagnostics import variance_metrics
from varrl_lightning.grpo.noise import NoiseOptions
from varrl_lightning.grpo.return_variance import branch_costs
from varrl_lightning.types import Stage

KEPT = 0.95
"""What a step's sums count after another step: about the last twenty decide."""


class VarianceLog:
    """Logs the components of the rewards' variance, and the K that they imply at the measured costs.

    A step's components are its own. The K is taken from sums over steps, of which older ones fade, since one step tells it badly; a
    resumed run begins them anew.

    Args:
        noise: that of the rollouts. Continuations with common noise do not tell: what they share is in the variance within
            branches, but not in the comparison of branches.
        cycle: the stages of successive rollouts, of which those that calibrate drafts are left out: K is not theirs to choose.
    """

    def __init__(self, noise: NoiseOptions = NoiseOptions(), cycle: Sequence[Stage] = ()) -> None:  # noqa: B008  frozen
        self.noise, self._left_out = noise, calibrations_of(cycle)
        self._seen: dict[Stage, tuple[VarianceSums, BranchCosts]] = {}

    def metrics(self, stage: Stage, credit: Credit, seconds: Mapping[str, float]) -> dict[str, float]:
        """The metrics of a step: `variance/within`, `variance/between`, `variance/signal`, `variance/implied_K`.

        The last is K* of `implied_continuations`, before rounding. What is unknown is absent; all is where there are not several
        independent continuations, or they are there to calibrate drafts.

        Args:
            seconds: as for `branch_costs`, of this process.
        """
        if stage.continuations < 2 or self.noise.continuations == "common" or stage in self._left_out:
            return {}
        sums = VarianceSums.of(credit.rewards, credit.valid)
        costs = branch_costs(seconds, stage, 1)  # of all branches of this process: their number does not matter to K*
        found = variance_metrics(sums.components(), stage.continuations)
        if stage in self._seen:
            earlier, spent = self._seen[stage]
            sums = sums + earlier * KEPT
            costs = BranchCosts(costs.branch + KEPT * spent.branch, costs.tail + KEPT * spent.tail)
        self._seen[stage] = sums, costs
        implied = implied_continuations(sums.components(), costs)
        return found | ({"variance/implied_K": implied} if math.isfinite(implied) else {})
