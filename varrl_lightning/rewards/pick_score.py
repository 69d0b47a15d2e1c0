"""Which picture would people pick? PickScore, a CLIP model that was trained on their choices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.rewards.clip import CLIPReward
from varrl_lightning.types import Prompt, Scores


class PickScore(CLIPReward):
    """Scaled cosine of CLIP's features, by a CLIP-H that learnt people's choices (Kirstain et al., arXiv 2305.01569).

        R = exp(logit_scale) * cos(f(image), g(text))

    In [-exp(logit_scale), exp(logit_scale)], with the scale that the weights hold. The image is prepared as for CLIP: 8 bits,
    shorter side to the model's resolution, centre. A text longer than the model reads is cut off, which is said before training.

    Args:
        path: weights in the layout of `yuvalkirstain/PickScore_v1`: a CLIPModel, as a folder that transformers writes, with its
            tokenizer, or a hub id `owner/name`.
        dtype: of the model, `float32`, `bfloat16` or `float16`; similarities are taken in float32.
        images_at_once: images that pass through the model at one time.

    Raises:
        FileNotFoundError: when there is no such folder, and no such repository within reach.
        ValueError: when it holds something else, or on a number out of its range.
    """

    def __init__(
        self, path: str | Path = "yuvalkirstain/PickScore_v1", *, dtype: str = "float32", images_at_once: int = 32
    ) -> None:
        super().__init__(path, dtype, images_at_once)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Scores:
        """Score images against their prompts' texts; the component `cosine` is without the scale."""
        cosine = self.cosine(images, [prompt.text for prompt in prompts])
        return Scores(self.scale * cosine, components={"cosine": cosine})

    def differentiable(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " N"]:
        """The same number, with a gradient to the images. Rounding and clamping to 8 bits pass it on unchanged."""
        return self.scale * self.cosine(images, [prompt.text for prompt in prompts])

    @property
    def scale(self) -> float:
        """What cosines are multiplied by."""
        return float(self.model.logit_scale.detach().float().exp())
