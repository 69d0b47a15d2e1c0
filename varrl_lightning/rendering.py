"""Pictures of one upper-case word, for pre-training the embedded model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

HEIGHT, WIDTH = 24, 64
LETTER_PITCH = 12.2
"""Pixels from one letter's middle to the next one's, on average."""
FACES = ("DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Bold")
_DRAWN_SIZE = 48


@lru_cache(maxsize=4)
def _face(name: str) -> ImageFont.FreeTypeFont:
    # The wheel of matplotlib carries these fonts, so that nothing has to be installed or downloaded.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), _DRAWN_SIZE)


@lru_cache(maxsize=16384)
def _glyphs(word: str, face: str) -> Image.Image:
    """The word's ink (255) on nothing (0), cropped to its box and much larger than needed."""
    font = _face(face)
    left, top, right, bottom = font.getbbox(word)
    ink = Image.new("L", (int(right - left), int(bottom - top)), 0)
    ImageDraw.Draw(ink).text((-left, -top), word, font=font, fill=255)
    return ink


def render_word(word: str, rng: random.Random) -> UInt8[np.ndarray, "H W"]:
    """Draw one word over the canvas, its face, size, place and two shades of grey slightly varied.

    Widths are stretched to about `LETTER_PITCH` pixels a letter and heights to 14-17 pixels, so that three and five letters are
    written equally tall and a letter's place follows from its number.
    """
    width = min(round(len(word) * LETTER_PITCH) + rng.randint(-2, 0), WIDTH - 2)
    height = rng.randint(14, 17)
    ink = _glyphs(word, rng.choice(FACES)).resize((width, height), Image.Resampling.BOX)
    x = (WIDTH - width) // 2 + rng.randint(-1, 1)
    y = (HEIGHT - height) // 2 + rng.randint(-1, 1)
    paper, pen = rng.uniform(205, 255), rng.uniform(0, 55)
    alpha = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    alpha[y : y + height, x : x + width] = np.asarray(ink, dtype=np.float32) / 255
    return (paper + (pen - paper) * alpha).round().astype(np.uint8)


def render_words(words: Sequence[str], seed: int) -> Float[Tensor, "N 3 H W"]:
    """Draw each word once; the same seed gives the same pictures. RGB in [0, 1], grey."""
    rng = random.Random(seed)
    pictures = np.stack([render_word(word, rng) for word in words])
    return (torch.from_numpy(pictures).float() / 255)[:, None].expand(-1, 3, -1, -1).contiguous()
