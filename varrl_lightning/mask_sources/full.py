"""The mask that masks nothing."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from varrl_lightning.types import Rollout, Scores


class Full:
    """Every pixel counts: Mask Propagation switched off."""

    def __call__(self, rollout: Rollout, scores: Scores, policy: Any) -> Float[Tensor, "N H W"]:
        """All ones."""
        return rollout.images.new_ones((len(rollout.images), *rollout.images.shape[-2:]))
