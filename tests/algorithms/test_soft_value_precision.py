"""The middle return at every temperature, against arithmetic of 120 digits."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
import torch

from varrl_lightning.algorithms.vmr import soft_value, vmr_bonus

ETAS = (1e-30, 1e-8, 1e-3, 0.1, 1.0, 30.0, 1e3, 1e5, 1e7, 1e8, 1e12, 1e20, 1e35)


def exact(rewards: list[float], eta: float) -> tuple[Decimal, Decimal]:
    """V_m and V_m - mean."""
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 120, -(10**15), 10**15
        R, T = [Decimal(r) for r in rewards], Decimal(eta)
        best = max(R)
        # The term of the best is 1; one below it by 1000 eta is nothing in 120 digits.
        terms = [((r - best) / T).exp() if (best - r) / T < 1000 else Decimal(0) for r in R]
        value = best + T * (sum(terms) / len(R)).ln()
        return value, value - sum(R) / len(R)


@pytest.mark.parametrize("eta", ETAS)
def test_value_and_bonus_are_right_to_the_last_digit(eta: float) -> None:
    torch.manual_seed(0)
    for magnitude, offset, K in ((1.0, 0.0, 2), (1e-6, 1.0, 3), (1e4, -5.0, 3), (1e30, 0.0, 2), (1.0, 100.0, 7), (2.0, 0.0, 2)):
        rewards = (torch.randn(1, 6, K) + offset) * magnitude
        values, bonuses = soft_value(rewards, eta), vmr_bonus(rewards, eta)
        for group, value, bonus in zip(rewards[0].tolist(), values[0].tolist(), bonuses[0].tolist(), strict=True):
            expected, above = exact(group, eta)
            assert value == pytest.approx(float(expected), rel=1e-7, abs=1e-7 * max(map(abs, group)))
            assert bonus == pytest.approx(float(above), rel=1e-6, abs=1e-37)
            assert bonus >= 0


@pytest.mark.parametrize("eta", ETAS)
def test_the_gradient_is_the_softmax_and_the_value_rises(eta: float) -> None:
    torch.manual_seed(1)
    rewards = torch.randn(1, 8, 4, requires_grad=True)
    value = soft_value(rewards, eta)
    (gradient,) = torch.autograd.grad(value.sum(), rewards)
    torch.testing.assert_close(gradient, (rewards.detach().double() / eta).softmax(dim=-1).float())
    higher = soft_value(rewards.detach() + torch.tensor([0.5, 0.0, 0.0, 0.25]), eta)
    assert (higher >= value).all()
    best, mean = rewards.detach().amax(dim=-1), rewards.detach().double().mean(dim=-1).float()
    assert ((value >= mean) & (value <= best)).all()


def test_a_large_temperature_keeps_the_variance_of_a_group() -> None:
    """At 1e8 it had none: every value was rounded to 0."""
    rewards = torch.rand(4, 8, 2)
    torch.testing.assert_close(soft_value(rewards, 1e8), rewards.mean(dim=-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        vmr_bonus(rewards, 1e8), rewards.double().var(dim=-1, correction=0).div(2e8).float(), rtol=1e-4, atol=0
    )


def test_values_lie_in_order_from_the_mean_to_the_best() -> None:
    rewards = torch.tensor([[[0.1, 0.9, 0.3]]])
    values = [soft_value(rewards, eta).item() for eta in sorted(ETAS)]
    assert values == sorted(values, reverse=True)


def test_equal_continuations_are_worth_what_each_is() -> None:
    for eta in ETAS:
        rewards = torch.tensor([[[91.31956] * 3, [-0.1] * 3]])
        assert soft_value(rewards, eta).tolist() == rewards[..., 0].tolist()
        assert vmr_bonus(rewards, eta).tolist() == [[0.0, 0.0]]
