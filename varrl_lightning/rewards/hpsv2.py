"""Which picture would people prefer? HPS v2, a CLIP-H that was trained on their rankings."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from varrl_lightning.rewards.clip import MEAN, STD, CLIPReward, eight_bits, normalised
from varrl_lightning.rewards.open_clip import read_open_clip
from varrl_lightning.text_encoders.base import read_tokenizer
from varrl_lightning.types import Prompt

STRAIGHT = str.maketrans(dict.fromkeys("ʼ‘’‚‛", "'") | dict.fromkeys("“”„‟", '"'))
"""Curly quotation marks, which people's prompts have and the weights were not trained on."""


class HPSv2(CLIPReward):
    """Cosine of CLIP-H's features, by weights that learnt people's rankings (Wu et al., arXiv 2306.09341; v2.1 of its authors).

        R = cos(f(image), g(text))

    In [-1, 1]; its authors report means of models between .27 and .34, for v2.1. The image is rounded to
    8 bits, its longer side is brought to the model's resolution (bicubic, in floating point), and black fills the rest on both
    sides. In a text, HTML's entities and curly quotation marks become plain characters; the rest of what the authors' code repairs
    (ftfy: broken encodings, ligatures, full-width letters) stays. A text longer than the model reads is cut off, which is said
    before training. It has a gradient.

    Args:
        path: weights in open_clip's layout, as `HPS_v2.1_compressed.pt` of the hub's `xswu/HPSv2`; see `read_tensors`.
        tokenizer: CLIP's, as a folder that transformers writes or a hub id `owner/name`.
        vision_heads: heads of the image encoder; one for each 80 channels when None, as in ViT-H-14.
        text_heads: heads of the text encoder; one for each 64 channels when None.
        dtype: of the model, `float32`, `bfloat16` or `float16`; similarities are taken in float32.
        images_at_once: images that pass through the model at one time.

    Raises:
        FileNotFoundError: when there is no such file, folder or repository within reach.
        ValueError: when a tensor of the file is missing, foreign or misshaped, when the tokenizer is another model's, or on a
            number out of its range.
    """

    def __init__(
        self,
        path: str | Path = "xswu/HPSv2/HPS_v2.1_compressed.pt",
        *,
        tokenizer: str | Path = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        vision_heads: int | None = None,
        text_heads: int | None = None,
        dtype: str = "float32",
        images_at_once: int = 32,
    ) -> None:
        read = partial(_read, tokenizer=tokenizer, vision_heads=vision_heads, text_heads=text_heads)
        super().__init__(path, dtype, images_at_once, read=read)

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " N"]:
        """Similarity of each image to its prompt's text."""
        return self.cosine(images, [prompt.text for prompt in prompts])

    def _plain(self, text: str) -> str:
        return plain(text)

    def _pixels(self, images: Float[Tensor, "_n 3 H W"], side: int) -> Float[Tensor, "_n 3 S S"]:
        return normalised(padded(images, side), MEAN, STD)


def plain(text: str) -> str:
    """A text with HTML's entities, also those made twice, and curly quotation marks as plain characters."""
    return html.unescape(html.unescape(text.translate(STRAIGHT)))


def padded(images: Float[Tensor, "_n 3 H W"], side: int) -> Float[Tensor, "_n 3 S S"]:
    """Images in [0, 1] rounded to 8 bits, their longer side brought to `side` without rounding again, centred on black."""
    pixels = eight_bits(images.float() * 255) / 255
    scale = side / max(pixels.shape[-2:])
    height, width = (max(1, round(length * scale)) for length in pixels.shape[-2:])
    if scale != 1:
        pixels = F.interpolate(pixels, (height, width), mode="bicubic", align_corners=False, antialias=True)
    left, top = (side - width) // 2, (side - height) // 2
    return F.pad(pixels, (left, side - width - left, top, side - height - top))


def _read(
    path: str | Path, dtype: str, tokenizer: str | Path, vision_heads: int | None, text_heads: int | None
) -> tuple[nn.Module, Any]:
    reader = read_tokenizer(tokenizer)
    model: Any = read_open_clip(path, dtype, vision_heads, text_heads)
    known, rows = len(reader), model.config.text_config.vocab_size
    if known != rows:
        raise ValueError(
            f"the tokenizer {tokenizer} has {known} tokens, and {path} has embeddings of {rows}: give CLIP's tokenizer (tokenizer)"
        )
    return model, reader
