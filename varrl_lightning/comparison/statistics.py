"""Intervals for the difference between two recipes, from runs with the same seeds that are judged on the same prompts.

A seed pairs the order of the training prompts, and evaluations always have the same noise. It does not pair the noise of training:
after the first update two recipes sample from different models. So a difference by seed is nearly as uncertain as that of two
unpaired runs, and the number of seeds is the number of observations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from scipy import stats

LEVEL = 0.95
DRAWS = 4000
Interval = tuple[float, float]


@dataclass(frozen=True)
class Spread:
    """A number over seeds; the sample standard deviation is NaN for one seed."""

    mean: float
    low: float
    high: float
    std: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise one value per seed."""
        return cls(fmean(values), min(values), max(values), stdev(values) if len(values) > 1 else math.nan)


def t_interval(differences: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's interval for the mean of differences by seed, which decides.

        mean +- q std / sqrt(S)     with q the (1 + level) / 2 quantile of t with S - 1 degrees of freedom

    Args:
        differences: one for each of S >= 2 seeds.

    Raises:
        ValueError: with fewer than two seeds, over which nothing is known.

    Examples:
        >>> low, high = t_interval([0.02, 0.04, 0.06])
        >>> round(low, 4), round(high, 4)
        (-0.0097, 0.0897)
    """
    seeds = len(differences)
    if seeds < 2:
        raise ValueError(f"an interval over seeds needs two of them at least, got {seeds}")
    quantile = float(stats.t.ppf((1 + level) / 2, seeds - 1))  # type: ignore[attr-defined]
    half = quantile * stdev(differences) / math.sqrt(seeds)
    mean = fmean(differences)
    return mean - half, mean + half


def bootstrap_interval(differences: Sequence[Sequence[float]], level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Percentile interval of a hierarchical bootstrap: S of the seeds, and within each as many prompts as there are, with repeats.

    It stands beside the t interval: with few seeds it is too narrow, since S seeds that are drawn from S vary (S - 1) / S as much
    as seeds do, and its quantiles are those of a normal distribution at best.

    Args:
        differences: a row per seed, a value per prompt.
        draws: of the bootstrap.
        seed: of its random numbers: the same differences give the same interval.

    Raises:
        ValueError: on rows of different lengths, or fewer than two seeds or prompts.
    """
    if len({len(row) for row in differences}) != 1:
        raise ValueError(f"expected the same prompts for every seed, got {[len(row) for row in differences]} of them")
    d = np.asarray(differences, dtype=np.float64)
    seeds, prompts = d.shape
    if min(seeds, prompts) < 2:
        raise ValueError(f"a bootstrap over seeds and prompts needs two of each at least, got {seeds} and {prompts}")
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for draw in range(draws):
        rows = rng.integers(seeds, size=(seeds, 1))
        means[draw] = d[rows, rng.integers(prompts, size=(seeds, prompts))].mean()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def verdict(interval: Interval) -> str:
    """`above`, `below` or `cannot be told`: where an interval lies relative to 0."""
    low, high = interval
    return "above" if low > 0 else "below" if high < 0 else "cannot be told"


def not_inferior(interval: Interval, margin: float) -> str:
    """`not inferior` when even the interval's lower end is above -margin, else `cannot be told`."""
    return "not inferior" if interval[0] > -margin else "cannot be told"
