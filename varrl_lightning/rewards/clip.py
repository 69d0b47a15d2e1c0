"""CLIP's features of images and texts, for the rewards that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from varrl_lightning.rewards.base import BaseReward
from varrl_lightning.rewards.cut_prompts import warn_of_cuts
from varrl_lightning.text_encoders.base import read_pretrained
from varrl_lightning.types import Prompt

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""What CLIP's images were normalised with, OpenAI's and LAION's alike."""
ReadModel: TypeAlias = "Callable[[str | Path, str], tuple[nn.Module, Any]]"
"""Reads a model and its tokenizer, from a path and the name of a dtype."""


def read_clip(path: str | Path, dtype: str) -> tuple[nn.Module, Any]:
    """A CLIPModel of transformers and its tokenizer; see `read_pretrained`."""
    return read_pretrained(path, "CLIPModel", dtype)


class CLIPReward(BaseReward):
    """A reward that has a CLIP model: features of unit length, and their cosines.

    An image is rounded to 8 bits, as one read from a file would be, its shorter side is brought to the model's resolution (bicubic)
    and its centre is cut out. Features are in float32; gradients reach the images.

    Args:
        path: a CLIP model, as a folder that transformers writes or a hub id `owner/name`.
        dtype: of the model, `float32`, `bfloat16` or `float16`.
        images_at_once: images that pass through the model at one time.
        prefix: put before each prompt's text.
        read: reads the model and its tokenizer.

    Raises:
        FileNotFoundError: when there is no such folder, and no such repository within reach.
        ValueError: when it holds something else, or on a number out of its range.
    """

    def __init__(
        self,
        path: str | Path,
        dtype: str = "float32",
        images_at_once: int = 32,
        prefix: str = "",
        read: ReadModel = read_clip,
    ) -> None:
        if images_at_once < 1:
            raise ValueError(f"images_at_once must be at least 1, got {images_at_once}")
        # No nn.Module, so that a LightningModule that holds this neither saves nor trains the model.
        model, self.tokenizer = read(path, dtype)
        self.model: Any = model
        self.prefix, self.images_at_once = prefix, images_at_once

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Warn of prompts that the model does not read to their ends."""
        warn_of_cuts(self.tokenizer, prompts, self.length, type(self).__name__, self._plain, self.prefix)

    @property
    def length(self) -> int:
        """Tokens that the model reads of a text."""
        return int(self.model.config.text_config.max_position_embeddings)

    def cosine(self, images: Float[Tensor, "N 3 H W"], texts: Sequence[str]) -> Float[Tensor, " N"]:
        """Similarity of each image and its text, in [-1, 1], float32; the model follows the images to their device.

        Raises:
            ValueError: when there is not one text per image.
        """
        if len(images) != len(texts):
            raise ValueError(f"got {len(images)} images and {len(texts)} texts; expected one text per image")
        if not texts:
            return images.new_zeros(0, dtype=torch.float32)
        of_images = self.image_features(images)
        different = list(dict.fromkeys(texts))  # a group has one text for all its images
        of_texts = self._text_features(different, images.device)
        rows = torch.tensor([different.index(text) for text in texts], device=images.device)
        return (of_images * of_texts[rows]).sum(dim=-1)

    def image_features(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C"]:
        """Features of unit length; the model follows the images to their device."""
        self.model.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([self._embed_images(part) for part in images.split(self.images_at_once)])

    @torch.no_grad()
    def _text_features(self, texts: list[str], device: torch.device) -> Float[Tensor, "_n C"]:
        texts = [self._plain(self.prefix + text) for text in texts]
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.length, return_tensors="pt")
        inputs = {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}
        with torch.autocast(device.type, enabled=False):
            return F.normalize(self.model.text_projection(self.model.text_model(**inputs).pooler_output).float(), dim=-1)

    def _embed_images(self, images: Float[Tensor, "_n 3 H W"]) -> Float[Tensor, "_n C"]:
        pixels = self._pixels(images, self.model.config.vision_config.image_size).to(self.model.visual_projection.weight.dtype)
        return F.normalize(self.model.visual_projection(self.model.vision_model(pixels).pooler_output).float(), dim=-1)

    def _plain(self, text: str) -> str:
        """A text as the tokenizer is given it."""
        return text

    def _pixels(self, images: Float[Tensor, "_n 3 H W"], side: int) -> Float[Tensor, "_n 3 S S"]:
        """What the model is shown of images in [0, 1]."""
        return clip_pixels(images, side)


def clip_pixels(images: Float[Tensor, "_n 3 H W"], side: int) -> Float[Tensor, "_n 3 S S"]:
    """What CLIP's own preparation makes of images in [0, 1]: 8 bits, shorter side to `side`, centre, normalised."""
    return prepared_pixels(images, side, side, MEAN, STD)


def prepared_pixels(
    images: Float[Tensor, "_n 3 H W"], short_side: int, side: int, mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "_n 3 S S"]:
    """Images in [0, 1] rounded to 8 bits, their shorter side brought to `short_side`, the centre of `side` cut out, normalised."""
    height, width = images.shape[-2:]
    short = min(height, width)
    new = (short_side * height // short, short_side * width // short)
    pixels = resized(images, new)
    top, left = round((new[0] - side) / 2), round((new[1] - side) / 2)
    return normalised(pixels[..., top : top + side, left : left + side], mean, std)


def resized(images: Float[Tensor, "_n 3 H W"], size: tuple[int, int], mode: str = "bicubic") -> Float[Tensor, "_n 3 h w"]:
    """Images in [0, 1] rounded to 8 bits and brought to a height and width, in [0, 1] again.

    Pillow's arithmetic in torch: first along rows, then along columns, each time rounded to 8 bits.
    """
    pixels = eight_bits(images.float() * 255)
    for step in ((pixels.shape[-2], size[1]), size):
        pixels = eight_bits(F.interpolate(pixels, step, mode=mode, align_corners=False, antialias=True))
    return pixels / 255


def normalised(pixels: Float[Tensor, "_n 3 h w"], mean: Sequence[float], std: Sequence[float]) -> Float[Tensor, "_n 3 h w"]:
    """The pixels less the channels' means, in the channels' standard deviations."""
    means, stds = (pixels.new_tensor(x)[:, None, None] for x in (mean, std))
    return (pixels - means) / stds


def eight_bits(x: Tensor) -> Tensor:
    """The values rounded and clamped to 0..255; the gradient passes unchanged."""
    return x + (x.round().clamp(0, 255) - x).detach()
