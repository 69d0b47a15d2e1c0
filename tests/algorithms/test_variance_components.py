"""Variance between and within branches: by hand, on simulated rewards of known components, and the K that costs least."""

from __future__ import annotations

import math
from dataclasses import astuple

import pytest
import torch
from torch import Tensor

from varrl_lightning.algorithms.variance_components import (
    BranchCosts,
    VarianceComponents,
    VarianceSums,
    correlation_within_groups,
    gain_of_continuations,
    implied_continuations,
    whole_continuations,
)

WITHIN, BETWEEN = 0.7, 0.3


def simulated(seed: int, prompts: int, A: int, K: int) -> Tensor:
    """Rewards of groups whose means differ far more than their branches."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return 10 * normal(prompts, 1, 1) + math.sqrt(BETWEEN) * normal(prompts, A, 1) + math.sqrt(WITHIN) * normal(prompts, A, K)


def with_gaps(rewards: Tensor, seed: int) -> Tensor:
    """Each score is missing with probability .4; so some branches have one score or none, and some groups few branches."""
    lost = torch.rand(rewards.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    return rewards.masked_fill(lost, math.nan)


def test_an_unbalanced_group_by_hand() -> None:
    # Branch 1: 1, 3 (mean 2, squares 2). Branch 2: 8 alone. Branch 3: no score. The group's mean is 4.
    rewards = torch.tensor([[[1.0, 3.0, 5.0], [8.0, 7.0, math.nan], [0.0, 0.0, 0.0]]])
    valid = torch.tensor([[[True, True, False], [True, False, True], [False, False, False]]])
    sums = VarianceSums.of(rewards, valid)
    # Squares and degrees of freedom within (3 images less 2 branches) and between, and the weight of the variance between.
    assert astuple(sums) == pytest.approx((2.0, 1.0, 2 * (2 - 4) ** 2 + (8 - 4) ** 2, 1.0, 3 - (2**2 + 1**2) / 3))
    assert sums.components() == pytest.approx((2.0, (24 - 2) / (4 / 3)))


@pytest.mark.parametrize("gaps", [False, True])
def test_the_estimates_are_unbiased(gaps: bool) -> None:
    found = []
    for seed in range(200):
        rewards = simulated(seed, prompts=6, A=4, K=3)
        found.append(VarianceSums.of(with_gaps(rewards, seed) if gaps else rewards).components())
    for estimates, true in zip(zip(*found, strict=True), (WITHIN, BETWEEN), strict=True):
        values = torch.tensor(estimates)
        error = float(values.std()) / math.sqrt(len(values))
        assert error < 0.04 * true + 0.01
        assert abs(float(values.mean()) - true) < 3 * error


def test_more_groups_come_closer() -> None:
    sums = VarianceSums()
    for seed in range(20):
        sums = sums + VarianceSums.of(simulated(seed, prompts=100, A=8, K=4))
    within, between = sums.components()
    assert within == pytest.approx(WITHIN, rel=0.02)
    assert between == pytest.approx(BETWEEN, rel=0.03)
    # One factor for all sums leaves the estimates as they are: older steps may count for less.
    assert (sums * 0.25).components() == pytest.approx((within, between))


def test_the_signal_is_the_squared_correlation_with_the_expected_reward() -> None:
    generator = torch.Generator().manual_seed(0)
    branch = math.sqrt(BETWEEN) * torch.randn(200_000, generator=generator)
    for K in (1, 2, 4):
        mean = branch + math.sqrt(WITHIN) * torch.randn(len(branch), K, generator=generator).mean(dim=1)
        squared = float(torch.corrcoef(torch.stack([branch, mean]))[0, 1]) ** 2
        assert VarianceComponents(WITHIN, BETWEEN).signal(K) == pytest.approx(squared, abs=0.01)


def test_what_cannot_be_known_is_nan() -> None:
    one_each = VarianceSums.of(torch.tensor([[[1.0], [2.0]]]))
    assert all(map(math.isnan, one_each.components()))
    one_branch = VarianceSums.of(torch.tensor([[[1.0, 2.0]]])).components()
    assert one_branch.within == 0.5
    assert math.isnan(one_branch.between)
    assert math.isnan(one_branch.signal(1))
    # A third is not a binary fraction: its mean over seven continuations must still be itself.
    alike = VarianceSums.of(torch.full((2, 3, 7), 1 / 3)).components()
    assert alike == (0.0, 0.0)
    assert math.isnan(alike.signal(2))
    assert math.isnan(implied_continuations(alike, BranchCosts(1.0, 1.0)))
    assert VarianceComponents(1.0, -0.1).signal(4) == 0


@pytest.mark.parametrize("ratio", [0.05, 0.5, 1.0, 1.9, 2.1, 5.9, 6.1, 40.0])
@pytest.mark.parametrize("branch", [0.3, 1.0, 4.0])
def test_the_rounded_k_is_the_best_of_all_whole_numbers(ratio: float, branch: float) -> None:
    components, costs = VarianceComponents(ratio, 1.0), BranchCosts(branch, 1.0)
    variance = {K: (1.0 + ratio / K) * (branch + K) for K in range(1, 30)}
    best = whole_continuations(implied_continuations(components, costs))
    assert variance[best] == pytest.approx(min(variance.values()), rel=1e-12)  # of two that are as good, either
    for K in (2, 3, 8):
        gained, cost = gain_of_continuations(components, costs, K)
        assert cost / gained == pytest.approx(variance[K] / variance[1])


def test_impossible_costs_and_endless_tails_are_refused() -> None:
    components = VarianceComponents(1.0, 1.0)
    for costs in (BranchCosts(1.0, 0.0), BranchCosts(-1.0, 1.0)):
        with pytest.raises(ValueError, match="a continuation more than 0, got"):
            implied_continuations(components, costs)
    for implied in (math.inf, math.nan):
        with pytest.raises(ValueError, match="no number of continuations can be taken from"):
            whole_continuations(implied)


def test_the_correlation_leaves_out_means_of_groups_and_what_is_unknown() -> None:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 400, 8, generator=generator)
    y = 0.6 * x + 0.8 * noise
    far = 100 * torch.randn(400, 1, generator=generator)
    assert correlation_within_groups(x + far, y - far) == pytest.approx(0.6, abs=0.03)
    x[0, 0] = math.nan
    y[1, 1] = math.inf
    assert correlation_within_groups(x, y) == pytest.approx(0.6, abs=0.03)
    assert math.isnan(correlation_within_groups(x, torch.ones(400, 8)))
