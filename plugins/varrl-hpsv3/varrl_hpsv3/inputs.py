"""What the model is given: prompts that cannot reach into its own prompt, and images that are pixels, never addresses."""

from __future__ import annotations

import re

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

_SPECIAL = re.compile(r"<\|[^<>|]*\|>")


def without_special_tokens(text: str) -> str:
    """A prompt without anything of the form `<|name|>`, also where removing one would leave another.

    `<|Reward|>` would add to the model's answer, `<|image_pad|>` would claim an image too many, and `<|im_end|>` would let a
    prompt end its turn and go on as somebody else.
    """
    while (shorter := _SPECIAL.sub("", text)) != text:
        text = shorter
    return text.strip()


def as_pictures(images: Float[Tensor, "N 3 H W"]) -> list[Image.Image]:
    """RGB in [0, 1] as PIL images, rounded to 8 bits; values outside are clamped."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]
