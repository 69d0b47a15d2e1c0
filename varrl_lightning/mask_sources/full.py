"""The mask that masks nothing."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from varrl_lightning.mask_sources.base import BaseMaskSource
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.types import Rollout, Scores


class Full(BaseMaskSource):
    """Every pixel counts: Mask Propagation switched off."""

    def __call__(self, rollout: Rollout, scores: Scores, policy: VARPolicy) -> Float[Tensor, "N H W"]:
        """One map of ones per image."""
        return rollout.images.new_ones((len(rollout.images), *rollout.images.shape[-2:]))
