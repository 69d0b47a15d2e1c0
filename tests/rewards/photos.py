"""Pictures for rewards that look at them, and how they are prepared by Pillow."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import nn

from varrl_lightning.rewards.clip import MEAN, STD


def photos(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures with hard edges, so that resampling has something to do."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    return nn.functional.interpolate(coarse, (height, width), mode="nearest").clamp(0, 1) * 0.9 + 0.1 * torch.rand(
        n, 3, height, width, generator=generator
    )


def pillow_pixels(image: torch.Tensor, side: int) -> torch.Tensor:
    """As CLIP's users prepare a file: Pillow's resize of the shorter side, a crop, a normalisation."""
    array = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    picture = Image.fromarray(array)
    factor = side / min(picture.size)
    width, height = (side if s == min(picture.size) else math.floor(s * factor + 1e-9) for s in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    picture = picture.crop((left, top, left + side, top + side))
    values = np.asarray(picture, dtype=np.float64) / 255
    return torch.tensor((values - np.array(MEAN)) / np.array(STD)).permute(2, 0, 1).float()
