"""Does the image show what its prompt says? CLIPScore, the paper's third measure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.rewards.clip import CLIPReward
from varrl_lightning.types import Prompt, Scores


class CLIPScore(CLIPReward):
    """Cosine of CLIP's features of the image and of its prompt, scaled (Hessel et al., arXiv 2104.08718).

        R = scale * max(0, cos(f(image), g(prefix + text)))

    In [0, scale]. The defaults are CVTG-2K's. The image is rounded to 8 bits, as one read from a file would be, its shorter side
    is brought to the model's resolution (bicubic) and its centre is cut out; a text longer than the model reads is cut off, which
    is said before training.

    Args:
        path: a CLIP model, as a folder that transformers writes or a hub id `owner/name`.
        prefix: put before each prompt's text.
        scale: w, > 0.
        dtype: of the model, `float32`, `bfloat16` or `float16`; similarities are taken in float32.
        images_at_once: images that pass through the model at one time.

    Raises:
        FileNotFoundError: when there is no such folder, and no such repository within reach.
        ValueError: when it holds something else, or on a number out of its range.
    """

    def __init__(
        self,
        path: str | Path = "openai/clip-vit-large-patch14",
        *,
        prefix: str = "A photo depicts ",
        scale: float = 2.5,
        dtype: str = "float32",
        images_at_once: int = 32,
    ) -> None:
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale must be > 0 and finite, got {scale}")
        super().__init__(path, dtype, images_at_once, prefix)
        self.scale = scale

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Scores:
        """Score images against their prompts' texts; the component `cosine` keeps its sign."""
        cosine = self.cosine(images, [prompt.text for prompt in prompts])
        return Scores(self.scale * cosine.clamp(min=0), components={"cosine": cosine})

    def differentiable(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " N"]:
        """Scale times cosine, with a gradient to the images; unclamped, so that a picture far from its text has a gradient too.

        Rounding and clamping to 8 bits pass the gradient on unchanged.
        """
        return self.scale * self.cosine(images, [prompt.text for prompt in prompts])
