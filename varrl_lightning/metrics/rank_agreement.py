"""Whether drafts rank the branches of a group as whole images do: Kendall's tau-b, beside the ceiling that chance sets.

A draft is what `num_continuations: 0` scores: the decoded latent of a branch. Two whole images of each branch do not rank these
alike either, since the scales after the branch are drawn at random; so that is what drafts are measured by, and not 1. Drafts may
pass it, since nothing in them is drawn after the branch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import kendalltau
from torch import Tensor

TRUSTED = 0.7
"""Share of the ceiling from which on drafts may stand for whole images."""
LEAST_GROUPS = 8
"""Groups below which a bootstrap over them says nothing."""
RESAMPLES = 2000
"""Times that the bootstrap draws groups."""
LEVEL = 0.95
"""Share of the bootstrap that the interval covers."""


def group_taus(drafts: Float[Tensor, "P A"], wholes: Float[Tensor, "P A K"]) -> Float[Tensor, "P 2"]:
    """Compute, for each group, Kendall's tau-b of the drafts' rewards with a whole image's, and that of two whole images.

    Each is the mean over the K images of a branch, or over their pairs. It is NaN where one of its two sides has the same reward at
    all branches, so that there is no order. Branches of which a reward is missing are left out.

    Args:
        drafts: reward of the draft of each branch; NaN where it has none.
        wholes: rewards of K >= 2 whole images of the same branches.

    Raises:
        ValueError: with fewer than two whole images of a branch.

    Examples:
        In the first group the drafts have the same order as both whole images, whose orders differ in one pair of three; in the
        second, the drafts have no order:

        >>> drafts = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
        >>> wholes = torch.tensor([[[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], [[1.0, 1.0], [2.0, 3.0], [3.0, 2.0]]])
        >>> group_taus(drafts, wholes).float()
        tensor([[1.0000, 1.0000],
                [   nan, 0.3333]])
    """
    if wholes.shape[-1] < 2:
        raise ValueError(f"a ceiling needs at least 2 whole images of a branch, got {wholes.shape[-1]}")
    taus = []
    for draft, whole in zip(drafts.cpu().double(), wholes.cpu().double(), strict=True):
        known = torch.isfinite(draft) & torch.isfinite(whole).all(dim=-1)
        images = whole[known].T
        taus.append([_mean_tau([(draft[known], image) for image in images]), _mean_tau(list(combinations(images, 2)))])
    return torch.tensor(taus, dtype=torch.float64)


@dataclass(frozen=True)
class DraftAgreement:
    """How well drafts rank branches, over the groups in which drafts and whole images have an order.

    Args:
        tau: mean tau-b of a draft's reward with a whole image's; NaN without any group.
        ceiling: mean tau-b of two whole images of the same branches.
        ratio: tau / ceiling; NaN where that means nothing, since the ceiling is not positive.
        low, high: the 95% interval of the ratio, by a bootstrap over the groups; infinite where the ceiling may be 0.
        groups: number of groups.

    Examples:
        >>> found = DraftAgreement.of([[0.6, 0.8], [0.5, 0.7], [0.7, 0.9], [0.6, math.nan]])
        >>> found.groups, round(found.tau, 2), round(found.ceiling, 2), round(found.ratio, 2)
        (3, 0.6, 0.8, 0.75)
        >>> found.verdict  # of three groups
        'cannot be told'
    """

    tau: float
    ceiling: float
    ratio: float
    low: float
    high: float
    groups: int

    @classmethod
    def of(cls, taus: Sequence[Sequence[float]] | Float[Tensor, "P 2"], seed: int = 0) -> DraftAgreement:
        """Summarise the two numbers of each group, see `group_taus`; groups without both are left out."""
        pairs = np.array([pair for pair in np.asarray(taus, dtype=np.float64).reshape(-1, 2) if np.isfinite(pair).all()])
        n = len(pairs)
        if not n:
            return cls(math.nan, math.nan, math.nan, -math.inf, math.inf, 0)
        tau, ceiling = pairs.mean(axis=0)
        drawn = pairs[np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))].mean(axis=1)
        # A resample whose ceiling is not positive says nothing of the ratio: it may be anything.
        known = drawn[:, 1] > 0
        ratios = np.divide(drawn[:, 0], drawn[:, 1], where=known, out=np.zeros(RESAMPLES))
        tail = (1 - LEVEL) / 2
        low = np.quantile(np.where(known, ratios, -np.inf), tail, method="lower")
        high = np.quantile(np.where(known, ratios, np.inf), 1 - tail, method="higher")
        return cls(float(tau), float(ceiling), float(tau / ceiling) if ceiling > 0 else math.nan, float(low), float(high), n)

    @property
    def enough(self) -> bool:
        """Whether there are enough groups, and a ceiling, for the interval to mean anything."""
        return self.groups >= LEAST_GROUPS and self.ceiling > 0

    @property
    def verdict(self) -> Literal["as whole images", "worse", "cannot be told"]:
        """Whether drafts rank branches nearly as whole images do: the whole interval decides."""
        if self.enough and self.low >= TRUSTED:
            return "as whole images"
        return "worse" if self.enough and self.high < TRUSTED else "cannot be told"


def _mean_tau(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    if len(pairs[0][0]) < 2:
        return math.nan
    return fmean(float(kendalltau(one.numpy(), other.numpy()).statistic) for one, other in pairs)
