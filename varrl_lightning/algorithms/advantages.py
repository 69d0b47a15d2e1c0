"""Group-relative advantages (GRPO)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from varrl_lightning.algorithms.precision import widened


def group_advantages(
    returns: Float[Tensor, "P A"],
    valid: Bool[Tensor, "P A"] | None = None,
    *,
    scale: Literal["group", "batch", "none"] = "group",
    eps: float = 1e-4,
    min_std: float = 1e-6,
) -> tuple[Float[Tensor, "P A"], Bool[Tensor, "P A"]]:
    """Compute the advantage of each branch over its group, and which branches are active.

        A_i = (R_i - mean_group R) / (std + eps),   std unbiased, of the group, of the batch, or left out

    A branch is inactive, with advantage 0, when it is not valid, or when its group has a std below `min_std` or fewer than two
    valid branches. Equal returns have the std 0 and advantages of 0, exactly: the rounded mean of equal numbers need not be that
    number, and what is left over, divided by its own small std, would be an advantage. With `scale="none"` the expected policy
    gradient is (A-1)/A of the true one, because a branch is part of its own mean.

    Args:
        returns: V_b or R of each branch; may be NaN where not valid.
        valid: which branches count; None counts the finite ones.
        scale: what divides the centred returns.
        eps: added to the std, in the unit of the returns.
        min_std: a group whose std is below it counts as one without variance.

    Examples:
        The returns 1 and 3 have mean 2 and std sqrt(2), so the advantages are -1/sqrt(2) and 1/sqrt(2). Two equal returns say
        nothing:

        >>> advantages, active = group_advantages(torch.tensor([[1.0, 3.0], [5.0, 5.0]]), eps=0.0)
        >>> advantages
        tensor([[-0.7071,  0.7071],
                [ 0.0000,  0.0000]])
        >>> active
        tensor([[ True,  True],
                [False, False]])
        >>> group_advantages(torch.tensor([[1.0, 3.0]]), scale="none")[0]
        tensor([[-1.,  1.]])
    """
    usable = torch.isfinite(returns) if valid is None else valid & torch.isfinite(returns)
    known = torch.where(usable, widened(returns), 0.0)
    count = usable.sum(dim=1, keepdim=True)
    varied = usable & differ(known, usable)[:, None]
    centred = torch.where(varied, known - known.sum(dim=1, keepdim=True) / count.clamp(min=1), 0.0)
    std = (centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    active = varied & (std >= min_std)
    if scale == "group":
        centred = centred / (std + eps)
    elif scale == "batch":
        centred = centred / (_batch_std(known, usable) + eps)
    return torch.where(active, centred, 0.0).to(returns.dtype), active


def batch_advantages(
    sums: Float[Tensor, "P A"], *, eps: float = 1e-4, min_std: float = 1e-6
) -> tuple[Float[Tensor, "P A"], Bool[Tensor, "P A"]]:
    """Compute GDPO's advantages (Liu et al., arXiv 2601.05242) of sums of rewards that were standardised group by group.

        A_i = (S_i - mean) / (std + eps),   mean and unbiased std over the active branches of the whole batch

    Active is a branch as in `group_advantages`. So groups keep their own scale: one in which several rewards agree counts for more
    than one in which they cancel, which would be blown up to the same size by its own std.

    Args:
        sums: of `standardised_sum`; NaN where a branch has none.
        eps: added to the std.
        min_std: a group whose sums have a smaller std counts as one without variance.

    Examples:
        In the second group the rewards nearly cancel, and stay small; in the third they are equal:

        >>> advantages, active = batch_advantages(torch.tensor([[-1.0, 1.0], [-0.1, 0.1], [0.0, 0.0]]), eps=0.0)
        >>> advantages.round(decimals=2)
        tensor([[-1.2200,  1.2200],
                [-0.1200,  0.1200],
                [ 0.0000,  0.0000]])
        >>> active.any(dim=1)
        tensor([ True,  True, False])
    """
    _, active = group_advantages(sums, scale="none", min_std=min_std)
    known = torch.where(active, widened(sums), 0.0)
    centred = torch.where(active, known - known.sum() / active.sum().clamp(min=1), 0.0)
    return (centred / (_batch_std(known, active) + eps)).to(sums.dtype), active


def leave_one_out(values: Float[Tensor, "P A"], valid: Bool[Tensor, "P A"]) -> Float[Tensor, "P A"]:
    """Return each value less the mean of the other valid values of its group; 0 where not valid, or where there is no other.

    As an advantage it makes the policy gradient unbiased, since no branch is part of its own baseline.

    Examples:
        >>> leave_one_out(torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[True, True, True]]))  # less 4, 3.5 and 1.5
        tensor([[-3.0000, -1.5000,  4.5000]])
        >>> leave_one_out(torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[True, False, True]]))
        tensor([[-5.,  0.,  5.]])
    """
    known = torch.where(valid, widened(values), 0.0)
    others = valid.sum(dim=1, keepdim=True) - 1
    baseline = (known.sum(dim=1, keepdim=True) - known) / others.clamp(min=1)
    return torch.where(valid & (others > 0), known - baseline, 0.0).to(values.dtype)


def differ(values: Float[Tensor, "*rows n"], valid: Bool[Tensor, "*rows n"]) -> Bool[Tensor, "*rows"]:
    """Say of each row whether any two of its valid values are different; exact, at any magnitude.

    Examples:
        >>> differ(torch.tensor([[0.1, 0.1, 9.0], [0.1, 0.2, 9.0]]), torch.tensor([True, True, False]).expand(2, 3))
        tensor([False,  True])
    """
    highest = torch.where(valid, values, -math.inf).amax(dim=-1)
    lowest = torch.where(valid, values, math.inf).amin(dim=-1)
    return highest > lowest


def degenerate_groups(active: Bool[Tensor, "P A"]) -> Bool[Tensor, " P"]:
    """Mark the groups that say nothing about the policy: without variance or without two valid branches.

    Their share (the mean of the result) is TRL's `frac_reward_zero_std`.

    Examples:
        >>> _, active = group_advantages(torch.tensor([[1.0, 3.0], [5.0, 5.0]]))
        >>> degenerate_groups(active)
        tensor([False,  True])
    """
    return ~active.any(dim=1)


def _batch_std(known: Float[Tensor, "P A"], usable: Bool[Tensor, "P A"]) -> Float[Tensor, ""]:
    """Unbiased std of all valid returns around their mean, in two passes so that a large mean costs no digits."""
    count = usable.sum()
    mean = known.sum() / count.clamp(min=1)
    return torch.where(usable, known - mean, 0.0).square().sum().div((count - 1).clamp(min=1)).sqrt()
