"""How much of a reward's variance the branches decide and how much their continuations, and what K that makes worth its cost.

A reward is taken as R_pak = mean_p + branch_pa + tail_pak (a one-way random-effects model in each group p), with

    between = Var(branch_pa)    of a branch's expected reward within its group: what the trained tokens decide, the signal
    within  = Var(tail_pak)     between continuations of one branch: what the tokens after m decide, the noise

The mean of K continuations has the variance between + within / K in its group, of which between is signal. A branch costs
c_b + K c_t: c_b without a tail (its own sampling and its update), c_t for each continuation (its sampling and scoring). A gradient
averaged over as many branches as a budget buys has a variance in proportion to

    (between + within / K) (c_b + K c_t)    whose least value is at    K* = sqrt(within / between * c_b / c_t)

and of two whole numbers n and n + 1 the first is as good as the second where K*^2 <= n (n + 1).

The return of training is the soft value (Eq. 10), not the mean; its variance is that of the mean up to terms of
within / eta, and it is treated as the mean here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from varrl_lightning.algorithms.precision import widened


class VarianceComponents(NamedTuple):
    """The two parts of a reward's variance within groups, in the squared unit of the reward.

    Args:
        within: variance between continuations of a branch, >= 0; NaN where no branch has two.
        between: variance of the branches' expected rewards; an unbiased estimate, which may be below 0. NaN where no group has two
            branches.

    Examples:
        >>> VarianceComponents(within=0.5, between=0.5).signal(1)
        0.5
    """

    within: float
    between: float

    def signal(self, K: int) -> float:
        """The share of signal in the variance of the mean of K continuations: between / (between + within / K), in [0, 1].

        It is the squared correlation, within groups, of that mean with the branch's expected reward. An estimate of `between` below
        0 counts as 0; where nothing varies the share is NaN.
        """
        between = max(self.between, 0.0) if math.isfinite(self.between) else math.nan
        total = between + self.within / K
        return between / total if total > 0 else math.nan


@dataclass(frozen=True)
class VarianceSums:
    """Sums over groups from which the components are estimated by the method of moments; those of several batches add up.

    Args:
        within_squares: sum over branches of sum_k (R_pak - mean_pa)^2.
        within_degrees: its degrees of freedom: scored images less branches with any.
        between_squares: sum over branches of n_pa (mean_pa - mean_p)^2, n_pa the scored continuations of a branch.
        between_degrees: its degrees of freedom: branches with a score less groups with any.
        weight: sum over groups of N_p - sum_a n_pa^2 / N_p, by which `between` counts in the expected `between_squares`; K (A - 1)
            for each complete group.

    Examples:
        >>> one, other = torch.tensor([[[0.0, 2.0], [4.0, 6.0]]]), torch.tensor([[[1.0, 1.0], [1.0, 1.0]]])
        >>> (VarianceSums.of(one) + VarianceSums.of(other)).components()
        VarianceComponents(within=1.0, between=3.5)
        >>> VarianceSums.of(torch.cat([one, other])) == VarianceSums.of(one) + VarianceSums.of(other)
        True
    """

    within_squares: float = 0.0
    within_degrees: float = 0.0
    between_squares: float = 0.0
    between_degrees: float = 0.0
    weight: float = 0.0

    @classmethod
    def of(cls, rewards: Float[Tensor, "P A K"], valid: Bool[Tensor, "P A K"] | None = None) -> VarianceSums:
        """The sums of P groups.

        Args:
            rewards: in any unit.
            valid: which of them count; None counts the finite ones. Branches may have different numbers of them, or none.
        """
        usable = torch.isfinite(rewards) if valid is None else valid & torch.isfinite(rewards)
        known = torch.where(usable, widened(rewards), 0.0)
        n = usable.sum(dim=-1).to(known)  # (P, A)
        N = n.sum(dim=-1)
        branch = known.sum(dim=-1) / n.clamp(min=1)
        group = known.sum(dim=(-2, -1)) / N.clamp(min=1)
        within = torch.where(usable, known - branch[..., None], 0.0).square().sum()
        between = (n * (branch - group[:, None]).square()).sum()
        branches = (n > 0).sum()
        return cls(
            within_squares=float(within),
            within_degrees=float(N.sum() - branches),
            between_squares=float(between),
            between_degrees=float(branches - (N > 0).sum()),
            weight=float((N - n.square().sum(dim=-1) / N.clamp(min=1)).sum()),
        )

    def __add__(self, other: VarianceSums) -> VarianceSums:
        return VarianceSums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, factor: float) -> VarianceSums:
        return VarianceSums(*(factor * a for a in vars(self).values()))

    def components(self) -> VarianceComponents:
        """The unbiased estimates: E between_squares = between_degrees within + weight between."""
        within = self.within_squares / self.within_degrees if self.within_degrees > 0 else math.nan
        if not self.weight > 0:
            return VarianceComponents(within, math.nan)
        return VarianceComponents(within, (self.between_squares - self.between_degrees * within) / self.weight)


class BranchCosts(NamedTuple):
    """What a branch costs, in any unit of time or money.

    Args:
        branch: c_b, its cost without continuations: the sampling of its own scales and its part of the update.
        tail: c_t, the cost of one continuation: its sampling to the last scale, decoding and scoring.

    Examples:
        >>> BranchCosts(branch=1.0, tail=0.5).of(2)
        2.0
    """

    branch: float
    tail: float

    def of(self, K: int) -> float:
        """The cost of a branch with K continuations."""
        return self.branch + K * self.tail


def implied_continuations(components: VarianceComponents, costs: BranchCosts) -> float:
    """Compute K*, the number of continuations of which a budget buys the least noisy gradient, before rounding.

        K* = sqrt(within / between * c_b / c_t)

    It is infinite where branches do not differ (`between` is at most 0), and NaN where a component is unknown or nothing varies.

    Raises:
        ValueError: when a tail costs nothing, or a branch less.

    Examples:
        >>> implied_continuations(VarianceComponents(within=4.0, between=1.0), BranchCosts(branch=1.0, tail=1.0))
        2.0
        >>> implied_continuations(VarianceComponents(within=1.0, between=-0.1), BranchCosts(branch=1.0, tail=1.0))
        inf
    """
    if not (costs.branch >= 0 and costs.tail > 0):
        raise ValueError(f"a branch must cost 0 or more and a continuation more than 0, got {costs.branch} and {costs.tail}")
    within, between = components
    if not (math.isfinite(within) and math.isfinite(between)) or (within <= 0 and between <= 0):
        return math.nan
    return math.inf if between <= 0 else math.sqrt(within / between * costs.branch / costs.tail)


def whole_continuations(implied: float) -> int:
    """Round K* to the number, at least 1, at which the variance for a given cost is least: the least n with n (n + 1) >= K*^2.

    Raises:
        ValueError: when K* is not finite.

    Examples:
        >>> [whole_continuations(k) for k in (0.1, 1.41, 1.42, 2.4, 2.5)]  # sqrt(1 * 2) = 1.414, sqrt(2 * 3) = 2.449
        [1, 1, 2, 2, 3]
    """
    if not math.isfinite(implied):
        raise ValueError(f"no number of continuations can be taken from {implied}")
    n = max(math.floor(implied), 1)
    return n if n * (n + 1) >= implied**2 else n + 1


def gain_of_continuations(components: VarianceComponents, costs: BranchCosts, K: int) -> tuple[float, float]:
    """Compute what K continuations give and take, compared with one: the factors of the signal's share and of a branch's cost.

        signal(K) / signal(1) = (between + within) / (between + within / K),    (c_b + K c_t) / (c_b + c_t)

    K is worth its cost, compared with 1, where the first exceeds the second.

    Examples:
        A third of the noise is left, for three times the cost of the tail:

        >>> gain_of_continuations(VarianceComponents(within=1.0, between=1.0), BranchCosts(branch=3.0, tail=1.0), K=3)
        (1.5, 1.5)
    """
    first = components.signal(1)
    return (components.signal(K) / first if first > 0 else math.nan), costs.of(K) / costs.of(1)


def correlation_within_groups(x: Float[Tensor, "P A"], y: Float[Tensor, "P A"]) -> float:
    """Compute the correlation of two numbers of each branch within groups: of what is left when each group's means are taken off.

    Branches where either is not finite are left out; the correlation is NaN where one of the two does not vary within any group.

    Examples:
        Groups may differ as they like; of the four deviations -1, 1, -1, 1 of x, y has those of the first group alone:

        >>> x, y = torch.tensor([[0.0, 2.0], [10.0, 12.0]]), torch.tensor([[4.0, 6.0], [1.0, 1.0]])
        >>> round(correlation_within_groups(x, y), 4)  # 2 / sqrt(4 * 2)
        0.7071
    """
    known = torch.isfinite(x) & torch.isfinite(y)
    n = known.sum(dim=1, keepdim=True).clamp(min=1)

    def deviations(values: Tensor) -> Tensor:
        kept = torch.where(known, widened(values), 0.0)
        return torch.where(known, kept - kept.sum(dim=1, keepdim=True) / n, 0.0)

    a, b = deviations(x), deviations(y)
    scale = float(a.square().sum() * b.square().sum()) ** 0.5
    return float((a * b).sum()) / scale if scale > 0 else math.nan
