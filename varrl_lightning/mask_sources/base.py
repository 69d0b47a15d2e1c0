"""The protocol of a mask source, and the defaults of its optional members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.errors import MaskSourceError, PluginError, raised_at
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.registry import name_of
from varrl_lightning.rewards.base import Reward
from varrl_lightning.rewards.precision import full_precision
from varrl_lightning.types import Rollout, Scores, Stage


@runtime_checkable
class MaskSource(Protocol):
    """Says which pixels of an image decided its reward; the caller thresholds, unites and propagates (section 3.5).

    It is called in full precision (see `full_precision`). A user's mask source needs `__call__` alone; a plain function will do.
    `registry.build` adds the other members, with the defaults that `BaseMaskSource` has.
    """

    def __call__(self, rollout: Rollout, scores: Scores, policy: VARPolicy) -> Float[Tensor, "N H W"] | None:
        """Weights in [0, 1], one map per image; an all-zero map where nothing is known; None for no mask at all.

        `policy` sampled the rollout; it is for sources that look inside it. `scores` are those of the weighted sum;
        `scores.parts` holds each reward's own.
        """
        ...

    @property
    def whole_groups(self) -> bool:
        """Whether all images of a prompt must be in one process, since the source compares them. By default False."""
        ...

    @property
    def whole_images(self) -> bool:
        """Whether it cannot work on drafts (K = 0), which have no tail tokens: a run of both is refused. By default False."""
        ...

    def use_rewards(self, rewards: Mapping[str, Reward]) -> None:
        """Take the rewards of the run, by name; called once, before training begins. By default they are not needed.

        Raises:
            ValueError: when they are not what the source needs.
        """
        ...


class BaseMaskSource:
    """The optional members of `MaskSource`, each with its default."""

    whole_groups: bool = False
    whole_images: bool = False

    def use_rewards(self, rewards: Mapping[str, Reward]) -> None:
        """Use none of them."""


def check_drafts(source: object, stages: Sequence[Stage]) -> None:
    """Check that a mask source, or its class, can work on the images of all stages.

    Raises:
        ValueError: when it needs whole images and a stage scores drafts; names both.
    """
    drafts = next((stage for stage in stages if stage.scores_drafts), None)
    if drafts is not None and getattr(source, "whole_images", False) is True:
        name = source.__name__ if isinstance(source, type) else name_of(source)
        raise ValueError(
            f"the mask source {name!r} needs whole images (whole_images), but stage {drafts.name!r} has 0 continuations "
            "(num_continuations, K) and scores drafts: set K to at least 1, or take another mask source (boxes, saliency, "
            "disagreement, full)"
        )


def pixel_mask(source: MaskSource, rollout: Rollout, scores: Scores, policy: VARPolicy) -> Float[Tensor, "N H W"] | None:
    """Call a mask source in full precision.

    Raises:
        MaskSourceError: when it raises, or answers with the wrong type or shape; names the mask source, and the line of its code.
        PluginError, torch.OutOfMemoryError: as the mask source raises them.
    """
    says = f"the mask source {name_of(source)!r}"
    try:
        with full_precision(rollout.images.device):
            mask = source(rollout, scores, policy)
    except (PluginError, torch.OutOfMemoryError):  # these say what to do
        raise
    except Exception as error:  # a user's mask source may raise anything
        raise MaskSourceError(f"{says} raised {type(error).__name__}: {error}{raised_at(error)}") from error
    expected = (len(rollout.images), *rollout.images.shape[-2:])
    if mask is not None and not (isinstance(mask, Tensor) and tuple(mask.shape) == expected):
        got = f"a tensor of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise MaskSourceError(f"{says} returned {got}; expected a tensor of shape {expected}, one map per image, or None")
    return mask
