"""Words drawn for the OCR tests, with the font that comes with matplotlib."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from varrl_lightning.rewards.ocr_engines import Word

FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


def drawn(*texts: tuple[str, int, int], size: int = 15, height: int = 24, width: int = 64, turn: bool = False) -> NDArray[np.uint8]:
    """Dark words on light grey, each at its own x and y; `turn` lays the picture on its side, to be read upwards."""
    image = Image.new("RGB", (width, height), (230, 230, 230))
    for text, x, y in texts:
        ImageDraw.Draw(image).text((x, y), text, font=ImageFont.truetype(FONT, size), fill=(20, 20, 20))
    return np.asarray(image.rotate(90, expand=True) if turn else image)


def ink(image: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of all that is dark."""
    rows, columns = np.nonzero(image.min(axis=2) < 180)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def texts(pages: list[list[Word]]) -> list[list[str]]:
    """The words of each picture, without boxes."""
    return [[word.text for word in words] for words in pages]
