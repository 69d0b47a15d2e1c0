"""Single words drawn plainly, for a reader to be tried on."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from varrl_lightning.types import Box

GROUND, INK = (255, 140, 0), (0, 60, 255)
"""Blue letters on orange: their luminance (Rec. 601) differs by 94 of 255, and not at all once red and blue are swapped. A reader
that works in grey sees nothing when its channels are in the wrong order; one that sees colours, as PP-OCR does, reads on."""
SIZE = 32
"""Height of the letters, in points: easy for every reader."""
LONGEST = 64
"""The most characters of a word: a picture is as wide."""
_AROUND, _CLOSE = 20, 5
"""Pixels of ground around the letters in a picture, and in its region."""
_SHAPED = ("R", "AL")
"""The bidirectional classes of letters that are written from right to left."""


@dataclass(frozen=True)
class Face:
    """A font, and the code points that it has glyphs for."""

    font: ImageFont.FreeTypeFont
    has: frozenset[int]


@dataclass(frozen=True)
class WordPicture:
    """A word's picture, (height, width, 3) RGB, and the rectangle close around its letters, in pixels."""

    pixels: NDArray[np.uint8]
    region: Box


@lru_cache(maxsize=8)
def load_face(path: str | None = None) -> Face:
    """A font file as a face; DejaVu Sans, which comes with matplotlib, when None.

    Raises:
        ValueError: when the file is not there, or is no font that can be drawn at any size.
    """
    import matplotlib
    from matplotlib.ft2font import FT2Font

    file = Path(path).expanduser() if path else Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    try:
        return Face(ImageFont.truetype(str(file), SIZE), frozenset(FT2Font(str(file)).get_charmap()))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"font must be a TrueType or OpenType file, got {str(file)!r}: {error}") from error


def why_not_drawn(word: str, faces: tuple[Face, ...]) -> str | None:
    """What keeps a word from being drawn, or None."""
    letters = _drawn_letters(word)
    if len(letters) > LONGEST:
        return f"it has more than {LONGEST} characters"
    if _face(letters, faces) is None:
        return "no font has its characters"
    if needs_shaping(letters) and not features.check("raqm"):
        return "Pillow cannot shape its script without raqm"
    return None


def draw_word(word: str, faces: tuple[Face, ...]) -> WordPicture:
    """Draw a word in the first face that has all of its characters; `why_not_drawn` must be None."""
    letters = _drawn_letters(word)
    face = _face(letters, faces)
    assert face is not None
    left, top, right, bottom = (round(side) for side in face.font.getbbox(letters))
    picture = Image.new("RGB", (right - left + 2 * _AROUND, bottom - top + 2 * _AROUND), GROUND)
    ImageDraw.Draw(picture).text((_AROUND - left, _AROUND - top), letters, font=face.font, fill=INK)
    near = _AROUND - _CLOSE
    return WordPicture(np.asarray(picture), Box(near, near, picture.width - near, picture.height - near))


def needs_shaping(word: str) -> bool:
    """Whether letters change their order, place or form beside others: right-to-left scripts, and marks on a letter.

    Arabic, Hebrew and Syriac are of the first kind, vowel signs of Devanagari and Thai of the second.
    """
    return any(unicodedata.bidirectional(c) in _SHAPED or unicodedata.category(c).startswith("M") for c in word)


def _face(letters: str, faces: tuple[Face, ...]) -> Face | None:
    return next((face for face in faces if letters and face.has.issuperset(map(ord, letters))), None)


def _drawn_letters(word: str) -> str:
    """A word's characters that have ink: composed, without joiners and the selectors of a glyph's variant."""
    return "".join(c for c in unicodedata.normalize("NFC", word) if not (_is_selector(c) or unicodedata.category(c) == "Cf"))


def _is_selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
