"""Masks from the boxes that a reward found."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor

from varrl_lightning.types import Rollout, Scores


class Boxes:
    """One inside the reward's regions, zero outside (section 3.5): for the OCR reward, the words that were read.

    Args:
        padding: pixels by which each box is widened on every side, >= 0.
    """

    def __init__(self, padding: int = 0) -> None:
        if padding < 0:
            raise ValueError(f"padding must be 0 or more pixels, got {padding}")
        self.padding = padding

    def __call__(self, rollout: Rollout, scores: Scores, policy: Any) -> Float[Tensor, "N H W"] | None:  # noqa: ARG002
        """A pixel is on when a box touches it; all zeros for an image without boxes, None when the reward has none."""
        if scores.regions is None:
            return None
        height, width = rollout.images.shape[-2:]
        mask = rollout.images.new_zeros((len(rollout.images), height, width))
        for row, boxes in zip(mask, scores.regions, strict=True):
            for box in boxes:
                top, left = (max(0, math.floor(v) - self.padding) for v in (box.y0, box.x0))
                bottom, right = (max(0, math.ceil(v) + self.padding) for v in (box.y1, box.x1))
                row[top:bottom, left:right] = 1.0
        return mask
