"""Kendall's tau-b of drafts with whole images, against the formula of normal numbers, and what an interval lets one say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from varrl_lightning.metrics.rank_agreement import DraftAgreement, group_taus

P, A = 200, 8


def rewards(draft_noise: float, whole_noise: float, groups: int = P) -> tuple[Tensor, Tensor]:
    """A normal worth of each branch; the draft and two whole images see it with errors of their own."""
    generator = torch.Generator().manual_seed(0)
    worth, *errors = torch.randn(4, groups, A, generator=generator).double()
    wholes = [worth + whole_noise * error for error in errors[:2]]
    return worth + draft_noise * errors[2], torch.stack(wholes, dim=-1)


@pytest.mark.parametrize(("draft_noise", "whole_noise"), [(0.2, 0.7), (1.0, 0.5)])
def test_normal_rewards_have_the_tau_of_their_correlation(draft_noise: float, whole_noise: float) -> None:
    """Greiner: tau = 2 / pi * asin(correlation). A draft that errs less than a whole image is above the ceiling."""
    found = DraftAgreement.of(group_taus(*rewards(draft_noise, whole_noise)))
    variances = [1 + draft_noise**2, 1 + whole_noise**2]
    tau = 2 / math.pi * math.asin(1 / math.sqrt(math.prod(variances)))
    ceiling = 2 / math.pi * math.asin(1 / variances[1])
    assert found.groups == P
    assert found.tau == pytest.approx(tau, abs=0.02)
    assert found.ceiling == pytest.approx(ceiling, abs=0.03)
    assert found.low < tau / ceiling < found.high
    assert (found.ratio > 1) == (draft_noise < whole_noise)


def test_ties_count_as_in_tau_b() -> None:
    """By hand: 5 pairs in the same order, 0 in the other, 1 tie on one side: 5 / sqrt(6 * 5)."""
    drafts = torch.tensor([[0.0, 1.0, 1.0, 2.0]])
    wholes = torch.tensor([[0.0, 1.0, 2.0, 3.0]])[..., None].expand(-1, -1, 2)
    assert group_taus(drafts, wholes)[0].tolist() == pytest.approx([5 / math.sqrt(30), 1.0])


def test_groups_without_an_order_are_left_out_and_missing_rewards_leave_out_their_branch() -> None:
    nan = math.nan
    drafts = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [1.0, nan, 2.0], [nan, nan, 1.0], [1.0, 2.0, 3.0]])
    wholes = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0], [1.0, 9.0, 2.0], [1.0, 2.0, 3.0], [1.0, nan, 0.0]])
    taus = group_taus(drafts, torch.stack([wholes, wholes], dim=-1))
    torch.testing.assert_close(taus, torch.tensor([[nan, 1], [nan, nan], [1, 1], [nan, nan], [-1, 1]]).double(), equal_nan=True)
    assert DraftAgreement.of(taus) == DraftAgreement.of([[1, 1], [-1, 1]])


def test_one_whole_image_has_no_ceiling() -> None:
    with pytest.raises(ValueError, match="at least 2 whole images of a branch, got 1"):
        group_taus(torch.zeros(1, 3), torch.zeros(1, 3, 1))


@pytest.mark.parametrize(
    ("draft_noise", "groups", "verdict"),
    [(0.3, 64, "as whole images"), (3.0, 64, "worse"), (1.0, 16, "cannot be told"), (0.0, 7, "cannot be told")],
)
def test_the_interval_decides(draft_noise: float, groups: int, verdict: str) -> None:
    assert DraftAgreement.of(group_taus(*rewards(draft_noise, 0.5, groups))).verdict == verdict


def test_without_a_ceiling_nothing_is_told() -> None:
    """Whole images whose ranks are chance, and no group at all."""
    found = DraftAgreement.of(group_taus(*rewards(0.1, 1e6, 16)))
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.verdict == "cannot be told"
    assert DraftAgreement.of([]).verdict == "cannot be told"
    assert DraftAgreement.of([[0.1, -0.1]] * 20).verdict == "cannot be told"


def test_the_interval_is_that_of_groups_drawn_anew() -> None:
    """Of many draws of 40 groups, about 95 in 100 have the true ratio in their interval; the same groups have the same one."""
    taus = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.2, 0.15]) + torch.tensor([0.6, 0.8])
    true = 0.6 / 0.8
    draws = [DraftAgreement.of(part) for part in taus.split(40)]
    assert 88 <= sum(draw.low < true < draw.high for draw in draws) <= 99
    assert DraftAgreement.of(taus[:40]) == draws[0]
