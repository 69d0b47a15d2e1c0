"""Groups whose returns are equal say nothing, whatever the numbers are and however they were computed."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from varrl_lightning.algorithms.advantages import group_advantages
from varrl_lightning.algorithms.stages import full_stage, prefix_stage
from varrl_lightning.grpo.credit import BranchScores, CreditOptions, NormaliseOptions, assign_credit
from varrl_lightning.grpo.diagnostics import reward_metrics
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Stage

SCHEDULE = Schedule(((1, 1), (1, 2), (2, 2)))


def constants(dtype: torch.dtype) -> Tensor:
    """Of all magnitudes that the dtype holds, of both signs."""
    torch.manual_seed(0)
    largest = min(math.log10(torch.finfo(dtype).max), 300)
    exponents = torch.linspace(-largest, largest - 0.1, 40, dtype=torch.float64)
    spread = torch.rand(40, 5, dtype=torch.float64) * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    return (spread * 10 ** exponents[:, None]).to(dtype).flatten()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_advantages_of_equal_returns_are_exactly_0(dtype: torch.dtype, scale: str) -> None:
    values = constants(dtype)
    for A in (2, 3, 5, 7, 16, 24, 33):
        advantages, active = group_advantages(values[:, None].expand(-1, A), scale=scale)  # type: ignore[arg-type]
        assert advantages.dtype == dtype
        assert not active.any()
        assert (advantages == 0).all()


def test_branches_without_a_return_do_not_make_a_difference() -> None:
    returns = torch.tensor([[91.31956, math.nan, 91.31956, 91.31956, 3.0], [0.1, 0.1, 0.1, math.inf, 0.2]])
    valid = torch.tensor([[True, True, True, True, False], [True] * 5])
    advantages, active = group_advantages(returns, valid)
    assert active.tolist() == [[False] * 5, [True, True, True, False, True]]
    assert (advantages[0] == 0).all()


def test_the_smallest_difference_still_counts() -> None:
    """One last digit of float32 at 1024: as a mean of float32 numbers it would be lost."""
    step = 1024 * torch.finfo(torch.float32).eps
    advantages, active = group_advantages(torch.tensor([[1024.0, 1024.0, 1024.0 + step]]), eps=0.0)
    assert active.all()
    torch.testing.assert_close(advantages, torch.tensor([[-1.0, -1.0, 2.0]]) / 3**0.5)


def credit_of(values: dict[str, Tensor], weights: dict[str, float], stage: Stage, **options: object):
    """The credit of rewards (R, K) by name, NaN where one does not apply, and the metrics of it."""
    usable = {name: torch.isfinite(x) for name, x in values.items()}
    scores = BranchScores(values, usable, {name: {} for name in values}, None)
    credit = assign_credit(scores, SCHEDULE, stage, weights, CreditOptions(**options))  # type: ignore[arg-type]
    return credit, reward_metrics(scores, credit, CreditOptions(**options).eta)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("combine", "advantages"),
    [*itertools.product(["weighted_sum", "standardised_sum"], ["group", "batch", "none"]), ("gdpo", "group")],
)
@pytest.mark.parametrize("K", [1, 3])
def test_constant_rewards_have_no_credit(combine: str, advantages: str, K: int) -> None:
    """A group where all images score alike beside one where they do not, at any eta."""
    A = 16
    stage = full_stage(3, A) if K == 1 else prefix_stage(3, 2, A, K)
    torch.manual_seed(0)
    for constant, eta in itertools.product((91.31956, -0.1, 1234.5678, 3e-5), (1e-4, 0.3, 1.0, 1e5)):
        varied = torch.cat((torch.full((A, K), constant), constant + torch.randn(A, K)))
        weights, values = {"a": 0.3, "b": 0.7}, {"a": varied, "b": 0.1 * varied}
        normalise = NormaliseOptions(advantages=advantages)  # type: ignore[arg-type]
        credit, metrics = credit_of(values, weights, stage, combine=combine, eta=eta, normalise=normalise)
        assert credit.active.tolist() == [False] * A + [True] * A
        assert (credit.advantages[:A] == 0).all()
        assert (credit.policy_weights[:A] == 0).all()
        assert metrics["frac_reward_zero_std"] == 0.5


def test_rewards_that_add_up_to_the_same_are_equal() -> None:
    """0.1 + 0.2 + 0.3 in any order, and without the rewards that do not apply."""
    parts = list(itertools.permutations((0.1, 0.2, 0.3)))
    values = {name: torch.tensor([[part[i]] for part in parts]) for i, name in enumerate("abc")}
    credit, _ = credit_of(values, dict.fromkeys("abc", 0.7), full_stage(3, 6))
    assert not credit.active.any()

    alike = {name: torch.full((4, 1), 91.31956) for name in "abc"}
    alike["a"][0] = alike["b"][1] = alike["c"][1] = math.nan
    credit, _ = credit_of(alike, {"a": 0.3, "b": 0.7, "c": 0.11}, full_stage(3, 4))
    assert not credit.active.any()


def test_the_same_continuations_in_another_order_are_the_same_return() -> None:
    orders = list(itertools.permutations((0.1, 0.7, 91.31956)))
    values = {"a": torch.tensor(orders)}
    for eta in (0.05, 1.0, 300.0):
        credit, _ = credit_of(values, {"a": 1.0}, prefix_stage(3, 2, 6, 3), eta=eta)
        assert not credit.active.any()
    twice = torch.tensor([[5.1, 5.1, 5.1], [5.1, math.nan, 5.1], [math.nan, math.nan, 5.1]])
    credit, _ = credit_of({"a": twice}, {"a": 1.0}, prefix_stage(3, 2, 3, 3))
    assert not credit.active.any()


def test_the_log_shows_no_spread_where_there_is_none() -> None:
    values = {"a": torch.full((16, 1), 91.31956)}
    _, metrics = credit_of(values, {"a": 1.0}, full_stage(3, 16))
    names = ("reward_std", "reward_std_batch", "return_std_group", "rewards/a/std")
    assert [metrics[name] for name in names] == [0.0] * 4
    assert metrics["frac_reward_zero_std"] == 1.0
