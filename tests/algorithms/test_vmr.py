import math

import pytest
import torch

from varrl_lightning.algorithms.vmr import combine_rewards, soft_value, standardised_sum, vmr_bonus


def _soft_value(rewards: list[float], eta: float) -> float:
    return eta * math.log(sum(math.exp(r / eta) for r in rewards) / len(rewards)) if rewards else math.nan


@pytest.mark.parametrize("eta", [0.3, 1.0, 5.0])
def test_soft_value_is_eq_10_over_the_valid_continuations(eta: float) -> None:
    torch.manual_seed(0)
    rewards = torch.randn(3, 4, 3, dtype=torch.float64)
    valid = torch.rand(3, 4, 3) > 0.4
    valid[0, 0] = False
    rewards[0, 1, 0], valid[0, 1, 0] = math.nan, False
    expected = [
        [_soft_value([r for r, v in zip(R, ok, strict=True) if v], eta) for R, ok in zip(*group, strict=True)]
        for group in zip(rewards.tolist(), valid.tolist(), strict=True)
    ]
    assert math.isnan(expected[0][0])
    torch.testing.assert_close(soft_value(rewards, eta, valid), torch.tensor(expected).double(), equal_nan=True)


def test_without_valid_the_finite_returns_count() -> None:
    value = soft_value(torch.tensor([[[1.0, math.nan], [math.inf, math.nan]]]), 1.0)
    torch.testing.assert_close(value, torch.tensor([[1.0, math.nan]]), equal_nan=True)


def test_soft_value_lies_between_the_mean_and_the_best() -> None:
    rewards = torch.tensor([[[0.0, 1.0, 5.0]]])
    assert soft_value(rewards, 1e5).item() == pytest.approx(2.0, abs=1e-2)
    assert soft_value(rewards, 1e-5).item() == pytest.approx(5.0, abs=1e-4)


@pytest.mark.parametrize(("gap", "bonus"), [(0.5, 0.031), (1.0, 0.120), (2.0, 0.434)])
def test_bonus_of_two_continuations(gap: float, bonus: float) -> None:
    """V = mean + eta log cosh(gap / (2 eta)), worked out by hand for eta = 1."""
    rewards = torch.tensor([[[0.7, 0.7 + gap]]], dtype=torch.float64)
    assert vmr_bonus(rewards, 1.0).item() == pytest.approx(bonus, abs=1e-3)
    assert vmr_bonus(rewards, 0.4).item() == pytest.approx(0.4 * math.log(math.cosh(gap / 0.8)))


def test_bonus_is_nan_without_a_valid_continuation() -> None:
    rewards = torch.tensor([[[3.0, 1.0], [3.0, 1.0]]])
    bonus = vmr_bonus(rewards, 1.0, torch.tensor([[[False, False], [True, False]]]))
    torch.testing.assert_close(bonus, torch.tensor([[math.nan, 0.0]]), equal_nan=True)


def test_a_reward_that_does_not_apply_leaves_its_weight_to_the_others() -> None:
    torch.manual_seed(1)
    values = {name: torch.randn(2, 3, 2) for name in "abc"}
    valid = {name: torch.rand(2, 3, 2) > 0.5 for name in "abc"}
    for name in "abc":
        values[name][~valid[name]] = math.nan
        valid[name][0, 0, 0] = False
    weights = {"a": 1.0, "b": 0.5, "c": -2.0}
    combined, usable = combine_rewards(values, valid, weights)
    for index in torch.cartesian_prod(*map(torch.arange, (2, 3, 2))).tolist():
        applying = [n for n in "abc" if valid[n][tuple(index)]]
        assert usable[tuple(index)].item() == bool(applying)
        kept = sum(abs(weights[n]) for n in applying)
        expected = sum(weights[n] * values[n][tuple(index)].item() for n in applying) * 3.5 / kept if applying else 0.0
        assert combined[tuple(index)].item() == pytest.approx(expected, rel=1e-5)


def test_a_reward_of_weight_0_is_only_logged() -> None:
    only_logged = {"a": torch.tensor([[[False]]]), "b": torch.tensor([[[True]]])}
    _, usable = combine_rewards({"a": torch.ones(1, 1, 1), "b": torch.ones(1, 1, 1)}, only_logged, {"a": 1.0, "b": 0.0})
    assert not usable.any()


def test_standardised_sum_does_not_depend_on_the_rewards_own_scales() -> None:
    torch.manual_seed(2)
    a, b = torch.randn(2, 4), torch.randn(2, 4)
    expected = sum(w * (x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, keepdim=True) for w, x in ((1.0, a), (0.3, b)))
    summed = standardised_sum({"a": 1e3 * a + 7, "b": 1e2 * b}, {"a": 1.0, "b": 0.3})
    torch.testing.assert_close(summed, expected, atol=1e-4, rtol=1e-4)


def test_standardised_sum_where_a_reward_is_missing() -> None:
    a = torch.tensor([[0.0, 100.0, math.nan], [math.nan, 5.0, math.nan], [2.0, 2.0, 2.0]])
    b = torch.tensor([[-300.0, 0.0, 300.0], [math.nan, 0.0, 700.0], [-300.0, 0.0, 300.0]])
    half = 0.5**0.5  # two values are standardised to -half and half
    expected = torch.tensor([[-half - 1, half + 0, 2 * 1.0], [math.nan, 2 * -half, 2 * half], [-1.0, 0.0, 1.0]])
    summed = standardised_sum({"a": a, "b": b}, {"a": 1.0, "b": 1.0})
    torch.testing.assert_close(summed, expected, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_errors_name_value_and_range() -> None:
    one = torch.ones(1, 1, 1)
    with pytest.raises(ValueError, match="eta must be > 0, got -1"):
        soft_value(one, -1.0)
    with pytest.raises(ValueError, match=r"weights must name the rewards \['a'\], got \['b'\]"):
        combine_rewards({"a": one}, {"a": one > 0}, {"b": 1.0})
    with pytest.raises(ValueError, match=r"valid must name the rewards \['a'\], got \[\]"):
        combine_rewards({"a": one}, {}, {"a": 1.0})
    with pytest.raises(ValueError, match="weight of reward 'a' must be finite, got nan"):
        standardised_sum({"a": one[0]}, {"a": math.nan})
    with pytest.raises(ValueError, match="at least one reward needs a weight other than 0"):
        combine_rewards({"a": one}, {"a": one > 0}, {"a": 0.0})
