"""Renders small coloured signs with one to three words, for pre-training the embedded model."""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from varrl_lightning.policies.lettering_sign import (
    COLOURS,
    FIRST_COLUMN,
    HEIGHT,
    LETTER_PITCH,
    LINE_HEIGHT,
    LINES_OF,
    MATERIALS,
    WIDTH,
    Sign,
)

FACES = ("DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Bold")
_FONT_SIZE = 48
"""Size at which letters are drawn before they are scaled down, in points."""

Pixels = Float[np.ndarray, "H W"]


@lru_cache(maxsize=4)
def _face(name: str) -> ImageFont.FreeTypeFont:
    # The wheel of matplotlib contains these fonts, so that nothing has to be installed or downloaded.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), _FONT_SIZE)


@lru_cache(maxsize=256)
def _glyph(letter: str, face: str) -> Image.Image:
    """The letter's ink (255) on nothing (0), cropped to its box and much larger than needed."""
    font = _face(face)
    left, top, right, bottom = font.getbbox(letter)
    ink = Image.new("L", (int(right - left), int(bottom - top)), 0)
    ImageDraw.Draw(ink).text((-left, -top), letter, font=font, fill=255)
    return ink


@lru_cache(maxsize=8192)
def _letter(letter: str, face: str, height: int, stretch: int) -> Pixels:
    """The letter's ink in [0, 1], `height` pixels tall and at most a pixel narrower than its cell; `stretch` is in percent."""
    glyph = _glyph(letter, face)
    width = round(glyph.width / glyph.height * height * stretch / 100)
    small = glyph.resize((max(3, min(LETTER_PITCH - 1, width)), height), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def _ink(words: Sequence[str], rng: random.Random) -> Pixels:
    """Coverage of the canvas by letters: each in its cell, face and size slightly varied."""
    ink = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    face = rng.choice(FACES)
    for word, line in zip(words, LINES_OF[len(words)], strict=True):
        height, down = rng.randint(12, 13), rng.randint(-1, 1)
        for column, letter in enumerate(word, start=FIRST_COLUMN[len(word)]):
            pixels = _letter(letter, face, height, rng.randint(98, 110))
            x = column * LETTER_PITCH + (LETTER_PITCH - pixels.shape[1]) // 2
            y = line * LINE_HEIGHT + (LINE_HEIGHT - height) // 2 + down
            ink[y : y + height, x : x + pixels.shape[1]] = pixels
    return ink


def _texture(material: str, rng: random.Random) -> Pixels:
    """Relative brightness of the ground around zero."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    noise = np.random.default_rng(rng.getrandbits(32))
    if material == "paper":
        return noise.normal(0, 0.02, (HEIGHT, WIDTH)).astype(np.float32)
    if material == "wooden":
        phase, period = rng.uniform(0, 2 * math.pi), rng.uniform(4, 6)
        grain: Pixels = 0.06 * np.sin(2 * math.pi * (y + 1.5 * np.sin(2 * math.pi * x / WIDTH + phase)) / period)
        return grain
    if material == "brick":
        course = y // 8
        mortar: Pixels = np.where((y % 8 == 7) | ((x + 6 * (course % 2)) % 12 == 11), -0.12, 0.0).astype(np.float32)
        return mortar
    return (0.05 * noise.normal(0, 1, (1, WIDTH))).repeat(HEIGHT, axis=0).astype(np.float32)


def render_sign(sign: Sign, rng: random.Random) -> tuple[Float[np.ndarray, "H W 3"], Float[np.ndarray, "H W 3"]]:
    """Draw a sign twice, RGB in [0, 1]: plain, letters on one colour; and complete, with material, light and shadows.

    Ink darkens all three channels alike, so that a letter looks the same on every colour.
    """
    hue, saturation = COLOURS[sign.colour or rng.choice(list(COLOURS))]
    material = sign.material or rng.choice(MATERIALS)
    tone = ((hue + rng.uniform(-0.02, 0.02)) % 1, saturation * rng.uniform(0.85, 1.1), rng.uniform(0.84, 0.98))
    paper = np.array(colorsys.hsv_to_rgb(*tone), dtype=np.float32)
    ink, depth = _ink(sign.words, rng), rng.uniform(0.5, 0.6)
    plain = paper - depth * ink[..., None]
    angle, y, x = rng.uniform(0, 2 * math.pi), *np.mgrid[-0.5 : 0.5 : HEIGHT * 1j, -0.5 : 0.5 : WIDTH * 1j]
    light = rng.uniform(0, 0.2) * (math.cos(angle) * x + math.sin(angle) * y)
    shadow = np.pad(ink, ((1, 0), (1, 0)))[:-1, :-1]
    ground = (_texture(material, rng) + light - 0.12 * shadow) * (1 - ink)
    complete = plain + (paper * ground[..., None]).astype(np.float32)
    return plain.clip(0, 1), complete.clip(0, 1)


def render_signs(signs: Sequence[Sign], seed: int) -> tuple[Float[Tensor, "N 3 H W"], Float[Tensor, "N 3 H W"]]:
    """Draw each sign once, plain and complete; the same seed gives the same pictures. RGB in [0, 1]."""
    rng = random.Random(seed)
    pairs = [render_sign(sign, rng) for sign in signs]
    plain, complete = (torch.from_numpy(np.stack(pictures)).float().permute(0, 3, 1, 2) for pictures in zip(*pairs, strict=True))
    return plain.contiguous(), complete.contiguous()
