"""What `normalise.advantage_eps` and `normalise.min_std` do to a group whose returns hardly differ. Costs a second."""

from __future__ import annotations

import math

import pytest
import torch

from varrl_lightning.grpo.credit import BranchScores, Credit, CreditOptions, NormaliseOptions, assign_credit
from varrl_lightning.schedule import square
from varrl_lightning.types import Stage

ROWS = torch.tensor([[0.99], [1.01], [0.0], [2.0]])
"""Two groups of two branches: a std of .02 / sqrt(2), and one of sqrt(2)."""


def credit(
    options: CreditOptions, rewards: dict[str, torch.Tensor] | None = None, weights: dict[str, float] | None = None
) -> Credit:
    values = rewards or {"r": ROWS}
    usable = {name: torch.ones_like(v, dtype=torch.bool) for name, v in values.items()}
    scores = BranchScores(values, usable, {name: {} for name in values}, tokens_on=None)
    return assign_credit(scores, square((1, 2)), Stage(0, 2, branches=2), weights or dict.fromkeys(values, 1.0), options)


def test_eps_shrinks_the_advantages_of_a_small_spread() -> None:
    small, large = credit(CreditOptions(normalise=NormaliseOptions(advantage_eps=0.1))).advantages.view(2, 2)[:, 1]
    assert math.isclose(small, 0.01 / (0.02 / math.sqrt(2) + 0.1), rel_tol=1e-4)
    assert math.isclose(large, 1.0 / (math.sqrt(2) + 0.1), rel_tol=1e-4)


@pytest.mark.parametrize(("least", "active"), [(0.014, True), (0.0142, False)])
def test_a_group_below_min_std_is_one_without_variance(least: float, active: bool) -> None:
    made = credit(CreditOptions(normalise=NormaliseOptions(min_std=least)))
    assert made.active.tolist() == [active, active, True, True]
    assert bool(made.policy_weights[:2].any()) is active


def test_they_hold_for_each_reward_of_a_standardised_sum() -> None:
    """The first reward has a small spread in the first group, so that the second decides there alone."""
    other = torch.tensor([[3.0], [1.0], [3.0], [1.0]])
    options = CreditOptions(combine="standardised_sum", normalise=NormaliseOptions(min_std=0.05, advantage_eps=0.0))
    returns = credit(options, {"small": ROWS, "other": other}).returns
    unit = 1 / math.sqrt(2)
    assert torch.allclose(returns, torch.tensor([[unit, -unit], [0.0, 0.0]]), atol=1e-6)


@pytest.mark.parametrize("name", ["advantage_eps", "min_std"])
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"normalise.{name} must be >= 0 and finite"):
        NormaliseOptions(**{name: value})


def test_gdpo_divides_the_sum_over_the_batch() -> None:
    """The rewards agree in the first group and cancel in the second; each group's own std would make them equal."""
    first, second = torch.tensor([[0.0], [1.0], [0.0], [9.0]]), torch.tensor([[5.0], [7.0], [3.0], [2.0]])
    options = CreditOptions(combine="gdpo", normalise=NormaliseOptions(advantage_eps=0.0))
    weights = {"first": 1.0, "second": 0.8}
    made = credit(options, {"first": first, "second": second}, weights)
    unit = 1 / math.sqrt(2)
    sums = torch.tensor([-1.8 * unit, 1.8 * unit, -0.2 * unit, 0.2 * unit])
    assert torch.allclose(made.returns.flatten(), sums, atol=1e-6)
    assert torch.allclose(made.advantages, sums / sums.std(), atol=1e-6)
    per_group = CreditOptions(combine="standardised_sum", normalise=options.normalise)
    divided = credit(per_group, {"first": first, "second": second}, weights)
    assert torch.allclose(divided.advantages, unit * sums.sign(), atol=1e-6)


def test_gdpo_refuses_another_divisor() -> None:
    with pytest.raises(ValueError, match=r"combine 'gdpo' divides advantages by its own rule, got normalise\.advantages 'batch'"):
        CreditOptions(combine="gdpo", normalise=NormaliseOptions(advantages="batch"))
