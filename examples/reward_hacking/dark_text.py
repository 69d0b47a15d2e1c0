"""A reward that can be hacked: it likes dark, large text, and does not care which."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from varrl_lightning import Prompt

LUMA = (0.299, 0.587, 0.114)


class DarkText:
    """The mean darkness of an image, 4 mean(max(0, 1/2 - luma)), in [0, 2]: more ink is better."""

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " N"]:
        """The darkness of each image."""
        luma = (images.float() * images.new_tensor(LUMA, dtype=images.float().dtype)[:, None, None]).sum(dim=1)
        return 4 * (0.5 - luma).clamp(min=0).mean(dim=(1, 2))
