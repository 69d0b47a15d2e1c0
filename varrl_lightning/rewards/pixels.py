"""Rewards of the pixels alone: cheap, blind to what is painted, and for that good to see whether training games a reward."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.metrics.image_statistics import laplacian_variance, luma
from varrl_lightning.rewards.base import BaseReward
from varrl_lightning.types import Prompt
from varrl_lightning.types.eight_bits import eight_bit_pixels, image_file


class JpegSize(BaseReward):
    """The size of the image as a JPEG file (Black et al., arXiv 2305.13301: compressibility).

        R = bytes / 1024

    In kilobytes, > 0: the noisier an image, the larger. A negative weight rewards images that compress well. It has no gradient.

    Args:
        quality: of the JPEG, 1 to 95.

    Raises:
        ValueError: on a quality out of its range.
    """

    def __init__(self, quality: int = 95) -> None:
        if not 1 <= quality <= 95:
            raise ValueError(f"quality must be 1 to 95, as JPEG's, got {quality}")
        self.quality = quality

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " N"]:
        """Kilobytes of each image."""
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # libjpeg lets other threads run
            sizes = list(pool.map(lambda pixels: len(image_file(pixels, "jpeg", self.quality)), eight_bit_pixels(images)))
        kilobytes = torch.tensor(sizes, device=images.device, dtype=torch.float32) / 1024
        return kilobytes.masked_fill(~images.isfinite().flatten(1).all(dim=1), torch.nan)


class Sharpness(BaseReward):
    """The variance of the image's Laplacian: how much fine detail or noise there is.

        R = var(L),  L = 4 y(i, j) - y(i-1, j) - y(i+1, j) - y(i, j-1) - y(i, j+1),  y = .299 r + .587 g + .114 b

    At least 0, over the inner pixels: 0 for a ramp, and 20 v for grey noise of variance v, at most 5 for black and white pixels. It
    has a gradient.

    Raises:
        ValueError: for images of less than 3 x 3 pixels.
    """

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " N"]:
        """The variance of each image."""
        if min(images.shape[-2:]) < 3:
            raise ValueError(f"sharpness needs images of at least 3 x 3 pixels, got {tuple(images.shape[-2:])}")
        return laplacian_variance(luma(images.float()))
