"""How beautiful is the picture? LAION's predictors of aesthetic ratings, heads on CLIP-L's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.rewards.clip import CLIPReward
from varrl_lightning.types import Prompt
from varrl_lightning.weights.files import shortened
from varrl_lightning.weights.loading import read_tensors

MLP = (0, 2, 4, 6, 7)
"""Numbers of the linear layers of the improved predictor; between them it has dropout alone."""


class Aesthetic(CLIPReward):
    """The mean rating of a picture that LAION's aesthetic predictors expect (Schuhmann et al., arXiv 2210.08402).

        R = h(f(image) / |f(image)|),   h one linear layer, or five without activations between them

    Ratings were from 1 to 10; nothing bounds the number. The prompt plays no part. The image is prepared as for CLIP: 8 bits,
    shorter side to the model's resolution, centre. It has a gradient.

    Args:
        head: the file of the predictor: `sac+logos+ava1-l14-linearMSE.pth` of `christophschuhmann/improved-aesthetic-predictor`, or
            `sa_0_4_vit_l_14_linear.pth` of `LAION-AI/aesthetic-predictor`, or one in the layout of either; see `read_tensors`.
        path: the CLIP model that the head was trained on, as a folder that transformers writes or a hub id `owner/name`.
        dtype: of the CLIP model, `float32`, `bfloat16` or `float16`; the head is in float32.
        images_at_once: images that pass through the model at one time.

    Raises:
        FileNotFoundError: when there is no such file, folder or repository within reach.
        ValueError: when the head is of neither layout, or of another width than the model's features; on a number out of its range.
    """

    def __init__(
        self,
        head: str | Path,
        *,
        path: str | Path = "openai/clip-vit-large-patch14",
        dtype: str = "float32",
        images_at_once: int = 32,
    ) -> None:
        self.layers = read_head(head)
        super().__init__(path, dtype, images_at_once)
        features, expected = int(self.model.config.projection_dim), self.layers[0][0].shape[1]
        if features != expected:
            raise ValueError(
                f"the head {head} takes {expected} features, and the CLIP model {path} gives {features}: give the model that the "
                "head was trained on (path)"
            )

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Accept all prompts: they are not read."""

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " N"]:
        """The rating of each image."""
        if not len(images):
            return images.new_zeros(0, dtype=torch.float32)
        values = self.image_features(images)
        with torch.autocast(images.device.type, enabled=False):
            for weight, bias in self.layers:
                values = F.linear(values, weight.to(values.device), bias.to(values.device))
        return values.squeeze(-1)


def read_head(path: str | Path) -> list[tuple[Tensor, Tensor]]:
    """The weight and bias of each layer of a predictor, in float32, in their order.

    Raises:
        FileNotFoundError, ValueError: as `read_tensors`; also when the tensors are not those of a predictor.
    """
    tensors = {name: tensor.float() for name, tensor in read_tensors(path).items()}
    places = [""] if "weight" in tensors else [f"layers.{number}." for number in MLP]
    expected = [f"{place}{kind}" for place in places for kind in ("weight", "bias")]
    _check_names(path, tensors, expected)
    layers = [(tensors[f"{place}weight"], tensors[f"{place}bias"]) for place in places]
    widths = [layers[0][0].shape[-1], *(weight.shape[0] for weight, _ in layers)]
    fits = all(
        weight.shape == (out, width) and bias.shape == (out,)
        for (weight, bias), width, out in zip(layers, widths[:-1], widths[1:], strict=True)
    )
    if not fits or widths[-1] != 1:
        shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in expected)
        raise ValueError(f"{path} is no aesthetic predictor: its layers do not follow each other to one number: {shapes}")
    return layers


def _check_names(path: str | Path, tensors: Mapping[str, Tensor], expected: Sequence[str]) -> None:
    missing, unexpected = [x for x in expected if x not in tensors], [x for x in tensors if x not in expected]
    if missing or unexpected:
        parts = [f"{what} {shortened(names)}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names]
        raise ValueError(
            f"{path} is no aesthetic predictor of LAION's: {'; '.join(parts)}. Expected weight and bias, or those of layers "
            f"{', '.join(map(str, MLP))}"
        )
