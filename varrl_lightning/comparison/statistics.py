"""Standard error of the difference between two recipes on the same prompts, after training with several seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np


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


@dataclass(frozen=True)
class Difference:
    """Mean of one recipe minus another over seeds and prompts, its standard error, and the difference of each seed."""

    mean: float
    error: float
    seeds: tuple[float, ...]


def paired_difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Difference:
    """Difference of two recipes that were judged on the same prompts at the same keys, after training with the same seeds.

        d_si = ours_si - theirs_si = mu + a_s + b_i + e_si          for seeds s = 1..S and prompts i = 1..n
        SE^2 = V_s + V_i - V_e
        V_s = sum_s (d_s. - d_..)^2 / (S (S - 1))                   estimates var(a) / S + var(e) / (S n)
        V_i = sum_i (d_.i - d_..)^2 / (n (n - 1))                   estimates var(b) / n + var(e) / (S n)
        V_e = sum_si (d_si - d_s. - d_.i + d_..)^2 / (S n (S - 1) (n - 1))     estimates var(e) / (S n), which both contain

    Seeds and prompts are both sampled at random, crossed, so that the result holds for other seeds and other prompts. SE^2 is
    unbiased, except where it is raised to the larger of V_s and V_i, below which it falls by chance alone. With few seeds it has
    few degrees of freedom (S - 1 at worst): two standard errors are less than 95% then. Dots stand for means.

    Prompts count as independent. Where several ask for the same word, SE is somewhat too small for other words.

    Args:
        ours, theirs: a row per seed, a value per prompt; at least two of each.

    Raises:
        ValueError: on rows of different lengths, or on fewer than two seeds or prompts.
    """
    if len(ours) != len(theirs) or len({len(row) for row in (*ours, *theirs)}) != 1:
        lengths = [[len(row) for row in rows] for rows in (ours, theirs)]
        raise ValueError(f"expected the same seeds and prompts of both, got {lengths[0]} and {lengths[1]} prompts by seed")
    d = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)  # (S, n)
    seeds, prompts = d.shape
    if min(seeds, prompts) < 2:
        raise ValueError(f"a standard error over seeds and prompts needs two of each at least, got {seeds} and {prompts}")
    mean, of_seed, of_prompt = d.mean(), d.mean(axis=1, keepdims=True), d.mean(axis=0, keepdims=True)
    v_s = ((of_seed - mean) ** 2).sum() / (seeds * (seeds - 1))
    v_i = ((of_prompt - mean) ** 2).sum() / (prompts * (prompts - 1))
    v_e = ((d - of_seed - of_prompt + mean) ** 2).sum() / (seeds * prompts * (seeds - 1) * (prompts - 1))
    variance = max(v_s + v_i - v_e, v_s, v_i)
    return Difference(float(mean), math.sqrt(variance), tuple(of_seed[:, 0].tolist()))
