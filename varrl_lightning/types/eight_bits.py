"""Pictures of 8 bits, and their files in memory."""

from __future__ import annotations

import io
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

ImageFormat: TypeAlias = Literal["png", "jpeg"]
JPEG_QUALITY = 95


def eight_bit_pixels(images: Float[Tensor, "*N 3 H W"]) -> UInt8[np.ndarray, "*N H W 3"]:
    """The nearest of 256 levels of each colour, 0 where a colour is no number.

    Args:
        images: RGB; beyond [0, 1] it is cut off.
    """
    levels = (images.detach().float().nan_to_num().clamp(0, 1) * 255).round().byte()
    pixels: np.ndarray = levels.movedim(-3, -1).cpu().numpy()
    return pixels


def image_file(pixels: UInt8[np.ndarray, "H W 3"], image_format: ImageFormat, quality: int = JPEG_QUALITY) -> bytes:
    """A picture as a file.

    Args:
        quality: of a JPEG, 1 to 95; a PNG loses nothing, and is compressed for speed.
    """
    file = io.BytesIO()
    picture = Image.fromarray(pixels)
    if image_format == "png":
        picture.save(file, "PNG", compress_level=1)
    else:
        picture.save(file, "JPEG", quality=quality)
    return file.getvalue()
