"""Turns scores into weights of tokens: returns, advantages, k_t and masks, all known before the first update.

Because every weight is fixed before the policy is scored, the loss of a batch is a plain sum over its rows, and cutting it into
micro-batches changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from varrl_lightning.algorithms.advantages import batch_advantages, group_advantages
from varrl_lightning.algorithms.masks import Missing, fill_missing, propagate, unite_over_continuations
from varrl_lightning.algorithms.panw import LEAST_LOG, log_panw_weights, row_weights_of_logs
from varrl_lightning.algorithms.stages import stage_returns
from varrl_lightning.algorithms.vmr import combine_rewards, standardised_sum
from varrl_lightning.configuration.specs import OptionGroup
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Rollout, Scores, Stage, check_choices


@dataclass(frozen=True)
class MaskOptions(OptionGroup):
    """How the pixels that a reward looked at become weights of tokens (section 3.5).

    Args:
        propagation: `chained` through each next finer scale, or `direct` from the pixels.
        missing: what a branch without regions takes: the union of its group's masks (`group_union`), or `ones`; `union_always`
            gives every branch that union, so that a word has a gradient also where it was not found.
        outside: weight of tokens outside the mask, in [0, 1].
        dilation: pixels by which the pixel mask is widened.
        threshold: a pixel is on above this, in [0, 1).

    Raises:
        ValueError: on a value out of its range.
    """

    propagation: Literal["chained", "direct"] = "chained"
    missing: Missing = "group_union"
    outside: float = 0.0
    dilation: int = 0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.threshold < 1:
            raise ValueError(f"mask.threshold must be in [0, 1), got {self.threshold}")
        if not 0 <= self.outside <= 1:
            raise ValueError(f"mask.outside must be in [0, 1], got {self.outside}")
        if self.dilation < 0:
            raise ValueError(f"mask.dilation must be 0 or more pixels, got {self.dilation}")


Combine: TypeAlias = Literal["weighted_sum", "standardised_sum", "gdpo"]
"""How several rewards become one number."""


@dataclass(frozen=True)
class NormaliseOptions(OptionGroup):
    """What advantages and the weights of tokens are divided by.

    Args:
        advantages: group-centred returns are divided by the std of the `group`, of the `batch`, or not (`none`).
        tokens: the weights k_t * mask are normalised within a `branch`, over the `batch`, by a `constant`, or not (`none`).
        constant: the divisor of the weights, > 0; goes with `tokens: constant` alone.
        advantage_eps: added to the std that divides advantages, in the unit of the returns, >= 0.
        min_std: a group whose returns have a smaller std counts as one without variance, >= 0. A reward that is a confidence always
            varies a little: where all branches are right, it would make unit advantages of noise.

    Raises:
        ValueError: on a value out of its range.
    """

    advantages: Literal["group", "batch", "none"] = "group"
    tokens: Literal["branch", "batch", "constant", "none"] = "branch"
    constant: float | None = None
    advantage_eps: float = 1e-4
    min_std: float = 1e-6

    def __post_init__(self) -> None:
        check_choices(self)
        if (self.tokens == "constant") != (self.constant is not None):
            raise ValueError(f"normalise.constant goes with normalise.tokens 'constant', got {self.tokens!r} with {self.constant}")
        if self.constant is not None and not self.constant > 0:
            raise ValueError(f"normalise.constant must be > 0, got {self.constant}")
        for name in ("advantage_eps", "min_std"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"normalise.{name} must be >= 0 and finite, in the unit of the returns, got {getattr(self, name)}")


@dataclass(frozen=True)
class CreditOptions:
    """How scores become weights of tokens.

    Args:
        eta: temperature of the middle return (Eq. 10), > 0.
        alpha: decay exponent of k_t = 1 / (h_t w_t)^alpha (Eq. 9), >= 0.
        combine: several rewards: V of their weighted sum (`weighted_sum`); the sum of each V standardised in its group
            (`standardised_sum`); or the same sum, divided by its std over the batch in place of that over the group (`gdpo`).
        mask: from pixels to tokens.
        normalise: divisors of advantages and weights.

    Raises:
        ValueError: on a value out of its range.
    """

    eta: float = 1.0
    alpha: float = 0.6
    combine: Combine = "weighted_sum"
    mask: MaskOptions = field(default_factory=MaskOptions)
    normalise: NormaliseOptions = field(default_factory=NormaliseOptions)

    def __post_init__(self) -> None:
        check_choices(self)
        if not (self.eta > 0 and math.isfinite(self.eta)):
            raise ValueError(f"eta must be > 0 and finite, got {self.eta}")
        if not (self.alpha >= 0 and math.isfinite(self.alpha)):
            raise ValueError(f"alpha must be >= 0 and finite, got {self.alpha}")
        if self.combine == "gdpo" and self.normalise.advantages != "group":
            raise ValueError(
                f"combine 'gdpo' divides advantages by its own rule, got normalise.advantages {self.normalise.advantages!r}: leave "
                "it out, or take combine 'standardised_sum'"
            )

    def check_stage(self, stage: Stage, schedule: Schedule) -> None:
        """Check that the tokens of a stage have weights that float32 holds.

        Raises:
            ValueError: when some would be 0, since nothing divides k_t by a sum of k_t.
        """
        least = float(log_panw_weights(schedule, stage.start, stage.stop, self.alpha).min())
        if self.normalise.tokens in ("none", "constant") and least - math.log(self.normalise.constant or 1.0) < LEAST_LOG:
            raise ValueError(
                f"alpha = {self.alpha:g} with normalise.tokens {self.normalise.tokens!r} gives tokens of stage {stage.name!r} "
                f"the weight exp({least:.0f}), which is 0 in float32: take a smaller alpha, or normalise.tokens 'branch' or 'batch'"
            )


@dataclass(frozen=True)
class Credit:
    """The credit of each branch, and of each of its tokens.

    Args:
        rewards: the combined reward of each image; meaningless where not `valid`.
        valid: images with a usable reward.
        returns: V_b of each branch, or R when b = T or K is 0; NaN for a branch without a valid image.
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

    def rows(self, branches: Sequence[int], real: int) -> Rows:
        """The credit of the given branches; those after the first `real` of them get no weight."""
        index = torch.tensor(list(branches), device=self.mask.device)
        counts = (torch.arange(len(branches), device=self.mask.device) < real).to(self.mask)[:, None]
        return Rows(
            advantages=self.advantages[index],
            mask=self.mask[index],
            policy_weights=self.policy_weights[index] * counts,
            kl_weights=self.kl_weights[index] * counts,
        )


@dataclass(frozen=True)
class Rows:
    """The part of a `Credit` that belongs to a set of branches; its fields are documented there."""

    advantages: Float[Tensor, " R"]
    mask: Float[Tensor, "R L"]
    policy_weights: Float[Tensor, "R L"]
    kl_weights: Float[Tensor, "R L"]

    def __getitem__(self, part: slice) -> Rows:
        return Rows(self.advantages[part], self.mask[part], self.policy_weights[part], self.kl_weights[part])


@dataclass(frozen=True)
class BranchScores:
    """Scores of a set of branches, before they are compared with the others of their group.

    Args:
        values: scores of the K images of each branch, or of its draft, by reward name.
        usable: which of the values exist, by reward name.
        components: named parts of the scores, for the log, by reward name.
        tokens_on: the tokens that the rewards looked at: the propagated mask, still without `mask.outside`; None for all tokens.
        drafts: scores of the drafts of the same branches, where the stage scores them beside; they say nothing of tokens.
    """

    values: dict[str, Float[Tensor, "R K"]]
    usable: dict[str, Bool[Tensor, "R K"]]
    components: dict[str, dict[str, Float[Tensor, "R K"]]]
    tokens_on: Bool[Tensor, "R L"] | None
    drafts: BranchScores | None = None

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    @staticmethod
    def join(parts: Sequence[BranchScores], branches: int) -> BranchScores:
        """The scores of several processes as one, in the order of their ranks; only the first `branches` branches count."""

        def joined(tensors: Iterable[Tensor]) -> Tensor:
            return torch.cat(list(tensors))[:branches]

        def component(reward: str, name: str) -> Iterator[Tensor]:
            for part in parts:
                values = part.values[reward]
                yield part.components[reward].get(name, torch.full_like(values, torch.nan))

        names = {reward: dict.fromkeys(c for part in parts for c in part.components[reward]) for reward in parts[0].values}
        known = next((part.tokens_on for part in parts if part.tokens_on is not None), None)
        drafts = [part.drafts for part in parts if part.drafts is not None]
        return BranchScores(
            values={reward: joined(part.values[reward] for part in parts) for reward in names},
            usable={reward: joined(part.usable[reward] for part in parts) for reward in names},
            components={reward: {c: joined(component(reward, c)) for c in components} for reward, components in names.items()},
            tokens_on=None if known is None else joined(_known_tokens(part, known) for part in parts),
            drafts=BranchScores.join(drafts, branches) if drafts else None,
        )

    def to(self, device: torch.device) -> BranchScores:
        """The same on another device."""
        return BranchScores(
            values={name: x.to(device) for name, x in self.values.items()},
            usable={name: x.to(device) for name, x in self.usable.items()},
            components={name: {c: x.to(device) for c, x in parts.items()} for name, parts in self.components.items()},
            tokens_on=None if self.tokens_on is None else self.tokens_on.to(device),
            drafts=None if self.drafts is None else self.drafts.to(device),
        )


def _known_tokens(part: BranchScores, like: Tensor) -> Bool[Tensor, "R L"]:
    """The part's `tokens_on`, with None spelled out as all tokens."""
    return like.new_ones(len(part), like.shape[1]) if part.tokens_on is None else part.tokens_on


def scores_by_branch(
    rollout: Rollout, scores: Mapping[str, Scores], pixel_mask: Float[Tensor, "N H W"] | None, options: MaskOptions
) -> BranchScores:
    """Scores and masks of a rollout's images, by branch; masks are carried back to tokens (section 3.5).

    Args:
        scores: scores of the images, by reward name.
        pixel_mask: which pixels each score is about, in [0, 1]; None for all.
    """
    shape = (len(rollout.branches), rollout.stage.images_per_branch)
    return BranchScores(
        values={name: s.values.view(shape).float() for name, s in scores.items()},
        usable={name: s.usable.view(shape) for name, s in scores.items()},
        components={name: {c: v.view(shape).float() for c, v in s.components.items()} for name, s in scores.items()},
        tokens_on=_tokens_on(rollout, pixel_mask, options),
    )


def _tokens_on(rollout: Rollout, pixel_mask: Tensor | None, options: MaskOptions) -> Bool[Tensor, "R L"] | None:
    """Tokens that a branch's own mask reaches: thresholded, united over K, carried back."""
    if pixel_mask is None:
        return None
    stage = rollout.stage
    united = unite_over_continuations(pixel_mask, stage.images_per_branch, options.threshold)
    spread = propagate(united, rollout.schedule, stage.start, stage.stop, method=options.propagation, dilation=options.dilation)
    return spread > 0


def assign_credit(
    scores: BranchScores,
    schedule: Schedule,
    stage: Stage,
    weights: Mapping[str, float],
    options: CreditOptions,
    masked_kl: bool = False,
) -> Credit:
    """Returns (Eq. 4, 10), group advantages, and weights k_t (Eq. 9) times masks of all branches of a batch.

    Args:
        scores: scores of all P * A branches.
        weights: weight of each reward, by its name.
        masked_kl: whether the propagated mask applies to the KL too.
    """
    shape = (-1, stage.branches, stage.images_per_branch)
    values = {name: v.view(shape) for name, v in scores.values.items()}
    usable = {name: u.view(shape) for name, u in scores.usable.items()}
    rewards, valid = combine_rewards(values, usable, dict(weights))
    returns = _returns(values, usable, rewards, valid, dict(weights), stage, options)
    normalise = options.normalise
    spread = {"eps": normalise.advantage_eps, "min_std": normalise.min_std}
    if options.combine == "gdpo":
        advantages, active = batch_advantages(returns, **spread)
    else:
        advantages, active = group_advantages(returns, torch.isfinite(returns), scale=normalise.advantages, **spread)
    mask = _mask(scores.tokens_on, stage, schedule, options.mask, returns)
    log_k = log_panw_weights(schedule, stage.start, stage.stop, options.alpha)
    everyone = torch.ones_like(active.flatten())
    kl_mask = mask if masked_kl else torch.ones_like(mask)
    return Credit(
        rewards=rewards,
        valid=valid,
        returns=returns,
        advantages=advantages.flatten(),
        active=active.flatten(),
        mask=mask,
        policy_weights=row_weights_of_logs(log_k, mask, active.flatten(), normalise.tokens, normalise.constant),
        kl_weights=row_weights_of_logs(log_k, kl_mask, everyone, normalise.tokens, normalise.constant),
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
    return standardised_sum(each, weights, eps=options.normalise.advantage_eps, min_std=options.normalise.min_std)


def image_returns(
    scores: BranchScores, stage: Stage, weights: Mapping[str, float], options: CreditOptions
) -> Float[Tensor, "P A K"]:
    """The return of each image, as if it were the only one of its branch; NaN where it has none.

    Args:
        scores: scores of all P * A branches, or of their drafts.
        stage: that of these images.
        weights: weight of each reward, by its name.
    """
    single, columns = replace(stage, continuations=1, with_drafts=False), []
    for k in range(stage.images_per_branch):
        values = {name: v.view(-1, stage.branches, stage.images_per_branch)[..., k, None] for name, v in scores.values.items()}
        usable = {name: u.view(-1, stage.branches, stage.images_per_branch)[..., k, None] for name, u in scores.usable.items()}
        rewards, valid = combine_rewards(values, usable, dict(weights))
        columns.append(_returns(values, usable, rewards, valid, dict(weights), single, options))
    return torch.stack(columns, dim=-1)


def _mask(
    on: Bool[Tensor, "R L"] | None, stage: Stage, schedule: Schedule, options: MaskOptions, returns: Float[Tensor, "P A"]
) -> Float[Tensor, "R L"]:
    """The mask of each trained token: branches take what `missing` says; tokens outside weigh `outside`.

    On tokens, since a union of masks is carried back to the union of their tokens.
    """
    if on is None:
        return torch.ones(returns.numel(), schedule.span(stage.start, stage.stop), device=returns.device)
    groups = on.unflatten(0, (-1, stage.branches))
    filled = fill_missing(groups, groups.any(dim=-1), options.missing).flatten(0, 1)
    return torch.where(filled, 1.0, options.outside)
