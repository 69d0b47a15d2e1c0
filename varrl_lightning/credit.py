"""From scores to weights on tokens: returns, advantages, k_t and masks, all known before the first update.

Because every weight is fixed before the policy is scored, the loss of a batch is a plain sum over its rows, and cutting it into
micro-batches changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from varrl_lightning.algorithms.advantages import group_advantages
from varrl_lightning.algorithms.masks import fill_missing, propagate, unite_over_continuations
from varrl_lightning.algorithms.panw import panw_weights, row_weights
from varrl_lightning.algorithms.stages import stage_returns
from varrl_lightning.algorithms.vmr import combine_rewards, standardised_sum
from varrl_lightning.types import Rollout, Scores, Stage, check_choices

SumOverRanks = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CreditOptions:
    """The choices of `VARGRPO` that concern credit; each is documented there."""

    eta: float
    alpha: float
    combine: Literal["weighted_sum", "standardised_sum"]
    advantage_scale: Literal["group", "batch", "none"]
    normaliser: Literal["branch", "batch", "constant", "none"]
    normaliser_constant: float | None
    mask_propagation: Literal["chained", "direct"]
    mask_missing: Literal["group_union", "ones"]
    mask_outside: float
    mask_dilation: int
    mask_threshold: float
    kl_mask: Literal["unmasked", "masked"]

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.mask_threshold < 1:
            raise ValueError(f"mask_threshold must be in [0, 1), got {self.mask_threshold}")
        if not 0 <= self.mask_outside <= 1:
            raise ValueError(f"mask_outside must be in [0, 1], got {self.mask_outside}")
        if self.mask_dilation < 0:
            raise ValueError(f"mask_dilation must be 0 or more pixels, got {self.mask_dilation}")
        if (self.normaliser == "constant") != (self.normaliser_constant is not None):
            given = f"{self.normaliser!r} with {self.normaliser_constant}"
            raise ValueError(f"normaliser_constant goes with normaliser 'constant', got {given}")
        if self.normaliser_constant is not None and not self.normaliser_constant > 0:
            raise ValueError(f"normaliser_constant must be > 0, got {self.normaliser_constant}")


@dataclass(frozen=True)
class Credit:
    """What each branch, and each of its tokens, is answerable for.

    Args:
        rewards: the combined reward of each image; meaningless where not `valid`.
        valid: images with a usable reward.
        returns: V_b of each branch, or R when b = T; NaN for a branch without a valid image.
        advantages: one per branch, rows (P, A); 0 where inactive.
        active: branches whose group has something to compare.
        mask: propagated mask of each token.
        policy_weights: W, so that the policy term is -(W * surrogate).sum().
        kl_weights: the same for the KL term.
    """

    rewards: Float[Tensor, "P A K"]
    valid: Bool[Tensor, "P A K"]
    returns: Float[Tensor, "P A"]
    advantages: Float[Tensor, " R"]
    active: Bool[Tensor, " R"]
    mask: Float[Tensor, "R L"]
    policy_weights: Float[Tensor, "R L"]
    kl_weights: Float[Tensor, "R L"]


def assign_credit(
    rollout: Rollout,
    scores: Mapping[str, Scores],
    weights: Mapping[str, float],
    pixel_mask: Float[Tensor, "N H W"] | None,
    options: CreditOptions,
    reduce: SumOverRanks | None = None,
) -> Credit:
    """Returns (Eq. 4, 10), group advantages, and weights k_t (Eq. 9) times propagated masks (section 3.5) of a rollout.

    Args:
        scores: by reward name.
        weights: of each reward.
        pixel_mask: where each image was judged, in [0, 1]; None for everywhere.
        reduce: sums a tensor over ranks.
    """
    stage = rollout.stage
    shape = (len(rollout.prompts), stage.branches, stage.continuations)
    values = {name: s.values.view(shape).float() for name, s in scores.items()}
    usable = {name: s.usable.view(shape) for name, s in scores.items()}
    rewards, valid = combine_rewards(values, usable, dict(weights))
    returns = _returns(values, usable, rewards, valid, dict(weights), stage, options)
    advantages, active = group_advantages(returns, torch.isfinite(returns), scale=options.advantage_scale, reduce=reduce)
    mask = token_mask(rollout, pixel_mask, options)
    k = panw_weights(rollout.schedule, stage.start, stage.stop, options.alpha).to(mask)
    everyone = torch.ones_like(active.flatten())
    kl_mask = mask if options.kl_mask == "masked" else torch.ones_like(mask)
    constant = options.normaliser_constant
    return Credit(
        rewards=rewards,
        valid=valid,
        returns=returns,
        advantages=advantages.flatten(),
        active=active.flatten(),
        mask=mask,
        policy_weights=row_weights(k, mask, active.flatten(), options.normaliser, constant, reduce=reduce),
        kl_weights=row_weights(k, kl_mask, everyone, options.normaliser, constant, reduce=reduce),
    )


def _returns(
    values: dict[str, Tensor],
    usable: dict[str, Tensor],
    rewards: Tensor,
    valid: Tensor,
    weights: dict[str, float],
    stage: Stage,
    options: CreditOptions,
) -> Float[Tensor, "P A"]:
    if options.combine == "weighted_sum":
        return stage_returns(rewards, stage, options.eta, valid)
    each = {name: stage_returns(values[name], stage, options.eta, usable[name]) for name in values}
    return standardised_sum(each, weights)


def token_mask(rollout: Rollout, pixel_mask: Float[Tensor, "N H W"] | None, options: CreditOptions) -> Float[Tensor, "R L"]:
    """The mask of each trained token: thresholded, united over K, filled where a branch has no region, carried back."""
    stage, schedule = rollout.stage, rollout.schedule
    rows = len(rollout.prompts) * stage.branches
    if pixel_mask is None:
        return torch.ones(rows, schedule.span(stage.start, stage.stop), device=rollout.images.device)
    united = unite_over_continuations(pixel_mask, stage.continuations, options.mask_threshold)
    groups = united.unflatten(0, (-1, stage.branches))
    filled = fill_missing(groups, groups.flatten(2).any(dim=-1), options.mask_missing).flatten(0, 1)
    return propagate(
        filled,
        schedule,
        stage.start,
        stage.stop,
        method=options.mask_propagation,
        outside=options.mask_outside,
        dilation=options.mask_dilation,
    )
