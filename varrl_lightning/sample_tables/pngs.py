"""Pictures and maps as PNG files in memory."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    """A PNG of RGB (H, W, 3) or of grey (H, W), 0 to 255."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def from_png(data: bytes) -> np.ndarray:
    """The pixels of `png`."""
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened)
