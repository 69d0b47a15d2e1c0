"""Masks from where the images of a group differ."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.mask_sources.base import BaseMaskSource
from varrl_lightning.mask_sources.maps import check_map_options, cut, smooth
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.types import Rollout, Scores

INVISIBLE = 1e-4
"""A spread that no 8-bit image shows; it is the rounding of equal pixels."""


class Disagreement(BaseMaskSource):
    """One where the A * K images of a prompt differ most, the same for all of them; needs no regions and no gradient.

        sigma(x, y) = sqrt( mean over RGB of the variance over the prompt's images at (x, y) )

    What all images of a group share cannot explain why one was scored higher than another. The map is smoothed, scaled by
    its maximum and cut (`maps.cut`).

    Args:
        smoothing: standard deviation of the Gaussian blur, in fractions of the shorter side; 0 for none.
        quantile: pixels above this quantile of the map are 1; None gives the map itself, for `mask.threshold`.

    Raises:
        ValueError: on a value out of its range.
    """

    whole_groups = True
    """The images of a prompt are compared, so all of them must be in one process."""

    def __init__(self, smoothing: float = 0.02, quantile: float | None = 0.75) -> None:
        check_map_options(smoothing, quantile)
        self.smoothing, self.quantile = smoothing, quantile

    @torch.no_grad()
    def __call__(self, rollout: Rollout, scores: Scores, policy: VARPolicy) -> Float[Tensor, "N H W"]:
        """One map per prompt, repeated for its images; all zeros where the images are equal."""
        each = rollout.stage.images_per_prompt
        groups = rollout.images.float().unflatten(0, (-1, each))  # (P, A * K, 3, H, W)
        spread = groups.var(dim=1, unbiased=False).mean(dim=1).sqrt()
        spread = torch.where(spread > INVISIBLE, spread, 0.0)
        maps = cut(smooth(spread, self.smoothing * min(spread.shape[1:])), self.quantile)
        return maps.repeat_interleave(each, dim=0)
