"""Masks from the boxes that a reward gives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from varrl_lightning.errors import did_you_mean
from varrl_lightning.mask_sources.base import BaseMaskSource
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.rewards.base import Reward
from varrl_lightning.types import Box, Rollout, Scores


class Boxes(BaseMaskSource):
    """One inside the reward's regions, zero outside (section 3.5): for the OCR reward, the words that were read.

    Args:
        padding: pixels by which each box is widened on every side, >= 0.
        from_reward: name of the run's reward whose regions are used; None for the first reward that has regions.

    Raises:
        ValueError: when the padding is negative.
    """

    def __init__(self, padding: int = 0, from_reward: str | None = None) -> None:
        if padding < 0:
            raise ValueError(f"padding must be 0 or more pixels, got {padding}")
        self.padding, self.from_reward = padding, from_reward

    def use_rewards(self, rewards: Mapping[str, Reward]) -> None:
        """Check that the run has the reward `from_reward`.

        Raises:
            ValueError: when it has not; lists those it has.
        """
        if self.from_reward is not None and self.from_reward not in rewards:
            raise ValueError(self._unknown(rewards))

    def __call__(self, rollout: Rollout, scores: Scores, policy: VARPolicy) -> Float[Tensor, "N H W"] | None:
        """A pixel is 1 when a box touches it; all zeros for an image without boxes, None when the reward has none.

        Raises:
            ValueError: when `from_reward` is no reward of the run, or finds no regions.
        """
        regions = self._regions(scores)
        if regions is None:
            return None
        height, width = rollout.images.shape[-2:]
        mask = rollout.images.new_zeros((len(rollout.images), height, width))
        for row, boxes in zip(mask, regions, strict=True):
            for box in boxes:
                top, left = (max(0, math.floor(v) - self.padding) for v in (box.y0, box.x0))
                bottom, right = (max(0, math.ceil(v) + self.padding) for v in (box.y1, box.x1))
                row[top:bottom, left:right] = 1.0
        return mask

    def _regions(self, scores: Scores) -> Sequence[Sequence[Box]] | None:
        if self.from_reward is None:
            return scores.regions
        if self.from_reward not in scores.parts:
            raise ValueError(self._unknown(scores.parts))
        part = scores.parts[self.from_reward]
        regions = part.regions
        if regions is None and not bool(part.usable.any()):
            return [()] * len(part.values)  # it could score nothing this time
        if regions is None:
            raise ValueError(
                f"boxes: the reward {self.from_reward!r} finds no regions; name one that does, or use another mask source "
                "(saliency, disagreement, full)"
            )
        return regions

    def _unknown(self, names: Iterable[str]) -> str:
        hint = did_you_mean(str(self.from_reward), names)
        return (
            f"boxes: from_reward names no reward of the run: {self.from_reward!r}.{hint} There are: {', '.join(names) or 'none'}."
        )
