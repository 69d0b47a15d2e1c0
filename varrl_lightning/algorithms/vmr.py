"""Value as Middle Return (section 3.3): what a branch is worth, from the returns of its continuations."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from varrl_lightning.algorithms.advantages import group_advantages
from varrl_lightning.algorithms.precision import widened


def soft_value(rewards: Float[Tensor, "P A K"], eta: float, valid: Bool[Tensor, "P A K"] | None = None) -> Float[Tensor, "P A"]:
    """Compute the middle-step soft value of each branch (Eq. 10), over its valid continuations.

        V_m(s_m) = eta * log(1/K * sum_k exp(R_k / eta))

    The value is in the unit of the rewards, and NaN where a branch has no valid continuation. It is right to the last digit for
    every eta, lies between the mean and the best continuation, and is exactly R where all R_k are R. Its gradient is
    softmax(R / eta).

    Args:
        rewards: terminal returns of the K continuations of each branch, in any order.
        eta: temperature, > 0; a large eta tends to the mean, a small one to the best continuation.
        valid: which returns count; None counts the finite ones.

    Raises:
        ValueError: when eta is not positive.

    Examples:
        Continuations with the returns 0 and 2, from the mean to the best:

        >>> rewards = torch.tensor([[[0.0, 2.0]]])
        >>> [round(soft_value(rewards, eta).item(), 2) for eta in (100.0, 1.0, 0.01)]  # at eta = 1: log((1 + e^2) / 2)
        [1.0, 1.43, 1.99]
    """
    usable = _checked(rewards, eta, valid)
    below, best = _below_best(rewards, usable)
    value = best + _below_value(below, usable, eta)
    return torch.where(usable.any(dim=-1), value, math.nan).to(rewards.dtype)


def vmr_bonus(rewards: Float[Tensor, "P A K"], eta: float, valid: Bool[Tensor, "P A K"] | None = None) -> Float[Tensor, "P A"]:
    """Compute what the soft value adds to the plain mean, for the log.

        V_m - 1/K * sum_k R_k  >= 0;  for K = 2:  eta * log cosh((R_1 - R_2) / (2 eta))

    It is NaN where a branch has no valid continuation, and depends on the scale of the rewards, which GRPO's advantages do not. For
    a large eta it is about var(R) / (2 eta), far below the last digit of V_m, and so it is not computed as that difference.

    Examples:
        >>> vmr_bonus(torch.tensor([[[0.0, 2.0], [1.0, 1.0]]]), eta=1.0)  # log cosh(1), and log cosh(0)
        tensor([[0.4338, 0.0000]])
    """
    usable = _checked(rewards, eta, valid)
    below, _ = _below_best(rewards, usable)
    mean = _mean(below, usable)
    x = torch.where(usable, (below - mean[..., None]) / eta, 0.0)
    # Of numbers x whose mean is 0: log(mean exp(x)) = log1p(mean(exp(x) - 1 - x)), all of whose terms are positive.
    near = eta * _mean(_exp_minus_tangent(x.clamp(max=1)), usable).log1p()
    far = (_below_value(below, usable, eta) - mean).clamp(min=0)
    bonus = torch.where(x.amax(dim=-1) <= 1, near, far)
    return torch.where(usable.any(dim=-1), bonus, math.nan).to(rewards.dtype)


def combine_rewards(
    values: Mapping[str, Float[Tensor, "P A K"]],
    valid: Mapping[str, Bool[Tensor, "P A K"]],
    weights: Mapping[str, float],
) -> tuple[Float[Tensor, "P A K"], Bool[Tensor, "P A K"]]:
    """Compute the weighted sum of several rewards, and where it exists.

        R = sum_i w_i R_i,  over the rewards i that apply to the sample, times sum_all |w| / sum_applying |w|

    A reward that does not apply to a sample leaves its weight to the others. A sample that no reward (of non-zero
    weight) applies to is invalid and has the value 0.

    Raises:
        ValueError: when the names differ, or a weight is not finite, or all are 0.

    Examples:
        Two continuations; the second shows no text to read, so CLIP takes over the weight of OCR:

        >>> rewards = {"ocr": torch.tensor([[[1.0, 0.0]]]), "clip": torch.tensor([[[0.5, 0.5]]])}
        >>> applies = {"ocr": torch.tensor([[[True, False]]]), "clip": torch.tensor([[[True, True]]])}
        >>> combine_rewards(rewards, applies, {"ocr": 3.0, "clip": 1.0})  # 3 * 1 + 1 * 0.5, and 1 * 0.5 * (3 + 1) / 1
        (tensor([[[3.5000, 2.0000]]]), tensor([[[True, True]]]))
    """
    _check_weights(values, weights)
    if valid.keys() != values.keys():
        raise ValueError(f"valid must name the rewards {sorted(values)}, got {sorted(valid)}")
    total = sum(abs(weight) for weight in weights.values())
    first = next(iter(values.values()))
    combined = torch.zeros_like(widened(first))
    applying = torch.zeros_like(combined)
    for name, weight in weights.items():
        combined = combined + weight * torch.where(valid[name], widened(values[name]), 0.0)
        applying = applying + abs(weight) * valid[name]
    usable = applying > 0
    shared = combined * (total / applying.where(usable, torch.ones_like(applying)))
    return torch.where(usable, shared, 0.0).to(first.dtype), usable


def standardised_sum(
    values_per_reward: Mapping[str, Float[Tensor, "P A"]], weights: Mapping[str, float], *, eps: float = 1e-4, min_std: float = 1e-6
) -> Float[Tensor, "P A"]:
    """Compute the weighted sum of soft values, each standardised within its group first: the other way to join several rewards.

        sum_i w_i (V_i - mean_group V_i) / std_group V_i

    The rewards' own scales drop out. A reward without variance in a group adds 0 there; one that is NaN at a branch, or known at
    fewer than two branches of the group, leaves its weight to the others. The sum is NaN where no reward is left.

    Args:
        eps, min_std: as in `group_advantages`, for each reward.

    Raises:
        ValueError: as `combine_rewards`.

    Examples:
        A thousand times the scale, and yet the same weight: each reward gives -1/sqrt(2) to one branch and 1/sqrt(2) to the other:

        >>> values = {"a": torch.tensor([[0.0, 1.0]]), "b": torch.tensor([[1000.0, 0.0]])}
        >>> standardised_sum(values, {"a": 1.0, "b": 1.0}).abs() < 1e-3
        tensor([[True, True]])
        >>> standardised_sum(values, {"a": 3.0, "b": 1.0}).round(decimals=2)  # -+ 2 / sqrt(2)
        tensor([[-1.4100,  1.4100]])
    """
    _check_weights(values_per_reward, weights)
    scores, known = {}, {}
    for name, values in values_per_reward.items():
        finite = torch.isfinite(values)
        scores[name] = group_advantages(widened(values), finite, eps=eps, min_std=min_std)[0][..., None]
        known[name] = (finite & (finite.sum(dim=-1, keepdim=True) >= 2))[..., None]
    combined, usable = combine_rewards(scores, known, weights)
    return torch.where(usable, combined, math.nan).squeeze(-1).to(next(iter(values_per_reward.values())).dtype)


def _check_weights(values: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
    if weights.keys() != values.keys():
        raise ValueError(f"weights must name the rewards {sorted(values)}, got {sorted(weights)}")
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise ValueError(f"the weight of reward {name!r} must be finite, got {weight}")
    if not any(weights.values()):
        raise ValueError(f"at least one reward needs a weight other than 0, got {dict(weights)}")


def _checked(rewards: Float[Tensor, "P A K"], eta: float, valid: Bool[Tensor, "P A K"] | None) -> Bool[Tensor, "P A K"]:
    """Which returns count."""
    if not eta > 0:
        raise ValueError(f"eta must be > 0, got {eta}")
    return torch.isfinite(rewards) if valid is None else valid


def _below_best(
    rewards: Float[Tensor, "P A K"], usable: Bool[Tensor, "P A K"]
) -> tuple[Float[Tensor, "P A K"], Float[Tensor, "P A"]]:
    """R_k - max R <= 0 and max R of each branch; max R is a constant to the gradient, which the differences carry in full."""
    known = torch.where(usable, widened(rewards), -math.inf)
    best = known.detach().amax(dim=-1)
    best = torch.where(usable.any(dim=-1), best, 0.0)
    return torch.where(usable, known, best[..., None]) - best[..., None], best


def _below_value(below: Float[Tensor, "P A K"], usable: Bool[Tensor, "P A K"], eta: float) -> Float[Tensor, "P A"]:
    """V_m - max R: all terms are of one sign, and log1p and expm1 keep the digits of small ones, so that no digit is lost."""
    return eta * _mean((below / eta).expm1(), usable).log1p()


def _mean(x: Float[Tensor, "P A K"], usable: Bool[Tensor, "P A K"]) -> Float[Tensor, "P A"]:
    """The mean of the usable numbers, 0 without any; in ascending order, since the order of continuations says nothing."""
    ordered = torch.where(usable, x, 0.0).sort(dim=-1).values
    return ordered.sum(dim=-1) / usable.sum(dim=-1).clamp(min=1)


def _exp_minus_tangent(x: Tensor) -> Tensor:
    """exp(x) - 1 - x >= 0; by its series where the difference would lose its digits."""
    small = x.abs() < 0.1
    terms = torch.where(small, x, 0.0)
    series = torch.ones_like(x)
    for n in range(12, 2, -1):
        series = 1 + terms / n * series
    return torch.where(small, terms.square() / 2 * series, x.expm1() - x)
