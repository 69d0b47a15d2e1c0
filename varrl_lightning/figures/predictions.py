"""Writes sampled images: one PNG a prompt, and one grid of all."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from varrl_lightning.figures.pictures import sample_grid, save_figure
from varrl_lightning.figures.samples import Sample
from varrl_lightning.types import Prompt
from varrl_lightning.types.eight_bits import eight_bit_pixels

GRID = "grid.png"


def save_images(batches: Sequence[Float[Tensor, "_n 3 _h _w"]], prompts: Sequence[Prompt], folder: Path) -> tuple[list[Path], Path]:
    """Write each image as `0001_<prompt>.png`, and a grid of those that have the first one's size; return both.

    Args:
        batches: RGB in [0, 1], in the order of the prompts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels = [image for batch in batches for image in eight_bit_pixels(batch)]
    paths = [folder / f"{number:04d}_{_slug(prompt.text)}.png" for number, prompt in enumerate(prompts, start=1)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    alike = [
        Sample(image, prompt.text, prompt.words, read=None, correct=None, reward=math.nan)
        for image, prompt in zip(pixels, prompts, strict=True)
        if image.shape == pixels[0].shape
    ]
    save_figure(sample_grid(alike, f"{len(alike)} pictures"), folder / GRID)
    return paths, folder / GRID


def _slug(text: str) -> str:
    """The letters and digits of a prompt, short enough for any file system."""
    return re.sub(r"\W+", "_", text).strip("_")[:40] or "prompt"
