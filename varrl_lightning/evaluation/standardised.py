"""One number for several rewards of different scales, comparable over a whole run."""

from __future__ import annotations

import math
from collections.abc import Mapping

from varrl_lightning.types import Scores

Standards = dict[str, tuple[float, float]]
"""Mean and standard deviation of each reward's scores, by the reward's name."""
SMALLEST = 1e-6
"""A standard deviation below this part of the largest score is the rounding of equal scores."""


def completed_standards(standards: Standards, scores: Mapping[str, Scores]) -> Standards:
    """Add what is not known yet: a reward's mean where it first gave scores, its standard deviation where they first differed.

    What is known never changes, so that numbers which are standardised by it compare over a run. A reward whose scores were all
    equal so far has the standard deviation 0.
    """
    completed = dict(standards)
    for name, each in scores.items():
        values = each.values[each.usable].double()
        mean, std = completed.get(name, (math.nan, 0.0))
        if len(values) and not std:
            found = float(values.std(correction=0))
            varies = found > SMALLEST * float(values.abs().max())
            completed[name] = (float(values.mean()) if math.isnan(mean) else mean, found if varies else 0.0)
    return completed


def standardised_reward(scores: Mapping[str, Scores], weights: Mapping[str, float], standards: Standards) -> float:
    """The weighted sum of the rewards' means, each in standard deviations above its standard.

        sum_i w_i (mean R_i - mean_i) / std_i,  over the rewards i of non-zero weight that have a standard deviation

    NaN where one of these gave no score, since the sum could not be compared with others.
    """
    total = 0.0
    for name, weight in weights.items():
        mean, std = standards.get(name, (math.nan, 0.0))
        if weight and std:
            values = scores[name].values[scores[name].usable].double()
            total += weight * (float(values.mean()) - mean) / std  # the mean of none is NaN
    return total
