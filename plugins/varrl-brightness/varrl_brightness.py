"""The tutorial plugin: one reward, registered by the pyproject.toml beside this file."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from varrl_lightning.types import Prompt, Scores


class Brightness:
    """Mean intensity of the image, in [0, 1]: the smallest useful reward."""

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Scores:
        """Score N images in [0, 1]."""
        return Scores(values=images.mean(dim=(1, 2, 3)))
