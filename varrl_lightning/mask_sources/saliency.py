"""Masks from the gradient of a differentiable reward."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.errors import PluginError, did_you_mean
from varrl_lightning.mask_sources.base import BaseMaskSource
from varrl_lightning.mask_sources.maps import check_map_options, cut, smooth
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.registry import REWARDS, build, name_of
from varrl_lightning.rewards.base import Reward, RewardFunction
from varrl_lightning.types import Prompt, Rollout, Scores

TARGETS = ("latent", "pixels")


class SaliencyError(PluginError):
    """The reward gives no gradient, or it is not clear which reward to differentiate."""


class Saliency(BaseMaskSource):
    """One where an image's reward is most sensitive to it: the gradient that ReFL (ImageReward, 2023) trains by, as a mask.

        latent   s = | d R(decode(z)) / d z |, norm over channels, at the last scale's grid, enlarged to the image
        pixels   s = | d R(x) / d x |, norm over RGB

    `latent` goes through the decoder and so says which cells of the latent, hence which tokens, move the reward; where the
    decoder clamps a pixel to [0, 1], its gradient is zero. `pixels` needs no decoder pass. The map is smoothed, scaled by its
    maximum and cut (`maps.cut`).

    A reward is differentiable if it has a method `differentiable(images, prompts) -> Tensor (N)`, or if it is itself called as
    that and its answer (a tensor, or `Scores`) depends on the images by differentiable operations. Each value must depend on its
    own image alone.

    Args:
        from_reward: name of the run's reward to differentiate; None for the only one, or the only one with `differentiable`.
        reward: another reward in place of it: a name, a class path, `{class_path, init_args}` or an object.
        wrt: `latent` or `pixels`.
        smoothing: standard deviation of the Gaussian blur, in fractions of the shorter side; 0 for none.
        quantile: pixels above this quantile of their image are 1; None gives the map itself, for `mask.threshold`.
        images_at_once: images in one backward pass through reward and decoder, >= 1.

    Raises:
        ValueError: on a value out of its range, or when both rewards are given.
    """

    takes_rewards = ("reward",)

    def __init__(
        self,
        from_reward: str | None = None,
        reward: RewardFunction | str | Mapping[str, Any] | None = None,
        wrt: str = "latent",
        smoothing: float = 0.02,
        quantile: float | None = 0.75,
        images_at_once: int = 16,
    ) -> None:
        check_map_options(smoothing, quantile)
        if wrt not in TARGETS:
            raise ValueError(f"wrt must be latent or pixels, got {wrt!r}")
        if images_at_once < 1:
            raise ValueError(f"images_at_once must be at least 1, got {images_at_once}")
        if from_reward is not None and reward is not None:
            raise ValueError(
                f"give from_reward (one of the run's) or reward (another one), not both; got {from_reward!r} and {reward!r}"
            )
        self.from_reward, self.wrt, self.smoothing, self.quantile = from_reward, wrt, smoothing, quantile
        self.images_at_once = images_at_once
        self.reward: Reward | None = None if reward is None else build(REWARDS, reward)

    def use_rewards(self, rewards: Mapping[str, Reward]) -> None:
        """Take the reward to differentiate from those of the run.

        Raises:
            SaliencyError: when `from_reward` is not one of them, when several could be meant, or when it compares images.
        """
        self.reward = self._chosen(rewards)
        if self.reward.whole_groups:
            raise SaliencyError(
                f"saliency: the reward {name_of(self.reward)} compares the images of a group (whole_groups), so that its values "
                "are not about their own images alone. Name another reward by from_reward, or use another mask source."
            )

    def _chosen(self, rewards: Mapping[str, Reward]) -> Reward:
        if self.reward is not None:
            return self.reward
        if self.from_reward is not None:
            if self.from_reward not in rewards:
                hint = did_you_mean(self.from_reward, rewards)
                raise SaliencyError(f"saliency: no reward named {self.from_reward!r}.{hint} The run has: {', '.join(rewards)}.")
            return rewards[self.from_reward]
        able = rewards if len(rewards) == 1 else {n: r for n, r in rewards.items() if r.differentiable is not None}
        if len(able) != 1:
            raise SaliencyError(
                f"saliency needs one reward to differentiate, and of {', '.join(rewards)} there are {len(able)} with a method "
                "`differentiable`. Say which by from_reward, or give another one by reward."
            )
        return next(iter(able.values()))

    def __call__(self, rollout: Rollout, scores: Scores, policy: VARPolicy) -> Float[Tensor, "N H W"]:
        """One map per image; all zeros where the gradient vanishes or is not finite.

        Raises:
            SaliencyError: when the reward gives no gradient.
        """
        if self.reward is None:
            raise SaliencyError("saliency has no reward to differentiate: give `reward`, or call use_rewards with those of the run")
        size = rollout.images.shape[-2:]
        starts = range(0, len(rollout.images), self.images_at_once)
        rough = torch.cat([self._rough(self.reward, rollout, policy, slice(i, i + self.images_at_once)) for i in starts])
        if rough.shape[-2:] != size:
            rough = F.interpolate(rough[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        return cut(smooth(rough, self.smoothing * min(size)), self.quantile)

    def _rough(self, reward: Reward, rollout: Rollout, policy: VARPolicy, rows: slice) -> Float[Tensor, "R h w"]:
        """The norm of the gradient for these rows, at the resolution of the latent or of the image."""
        start = rollout.images[rows].float() if self.wrt == "pixels" else last_latent(rollout, policy, rows)
        leaf = start.detach().clone().requires_grad_()
        with torch.enable_grad():
            images = leaf if self.wrt == "pixels" else policy.decode_latent(leaf).float()
            values = _values(reward, images, rollout.image_prompts[rows])
            norm: Tensor = _gradient(reward, values, leaf).norm(dim=1)
        return norm


def _values(reward: Reward, images: Float[Tensor, "R 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " R"]:
    """The reward's values, with a gradient to the images."""
    score = reward.differentiable or reward
    try:
        answer = score(images, prompts)
    except Exception as error:  # a user's reward may raise anything
        raise _no_gradient(reward, f"With images that require a gradient it raised {error!r}.") from error
    values = answer.values if isinstance(answer, Scores) else answer
    if not isinstance(values, Tensor) or values.shape != (len(images),):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise _no_gradient(reward, f"It answered with {got}; expected a tensor of shape ({len(images)},).")
    if not values.requires_grad:
        raise _no_gradient(reward, "Its values are cut off from the images: by no_grad, detach, numpy or rounding.")
    return values


def _gradient(reward: Reward, values: Float[Tensor, " R"], leaf: Float[Tensor, "R C h w"]) -> Float[Tensor, "R C h w"]:
    """The gradient of each value by its own row of the leaf; zero where it is not finite."""
    (gradient,) = torch.autograd.grad(values[torch.isfinite(values)].sum(), leaf, allow_unused=True)
    if gradient is None:
        raise _no_gradient(reward, "Its values require a gradient, but not that of the images.")
    finite = torch.isfinite(gradient).flatten(1).all(dim=1)
    if not finite.all():
        # The same text each time, so that Python's default filter shows it once.
        warnings.warn("saliency: the gradient of some images is not finite; their masks are zero", stacklevel=3)
    return torch.where(finite[:, None, None, None], gradient, 0.0).float()


def _no_gradient(reward: Reward, reason: str) -> SaliencyError:
    return SaliencyError(
        f"the reward {name_of(reward)} gives saliency no gradient. Give it a method `differentiable(images, prompts)` that "
        "returns a tensor of shape (N,), name another reward, or use another mask source (boxes, disagreement, full). " + reason
    )


@torch.no_grad()
def last_latent(rollout: Rollout, policy: VARPolicy, rows: slice) -> Float[Tensor, "R C h w"]:
    """The latent that these rows were decoded from: the tokens of their branch, then those of the image itself; none of a draft."""
    first, last, _ = rows.indices(len(rollout.images))
    images = torch.arange(first, last, device=rollout.images.device)
    branches = images // rollout.stage.images_per_branch
    tokens = [t[branches] for t in rollout.tokens] + [t[images] for t in rollout.tail_tokens]
    latent: Tensor = policy.initial_latent(len(images), rollout.schedule)
    for scale, of_scale in enumerate(tokens):
        latent = policy.accumulate(latent, of_scale, scale, rollout.schedule)
    return latent
