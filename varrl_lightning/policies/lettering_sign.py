"""The contents of a sign, and the grid of its letters: shared by the embedded model and by its training pictures."""

from __future__ import annotations

from dataclasses import dataclass

LINES, COLUMNS = 3, 5
LINE_HEIGHT, LETTER_PITCH = 16, 12
"""Size of one letter's cell, in pixels."""
HEIGHT, WIDTH = LINES * LINE_HEIGHT, COLUMNS * LETTER_PITCH
LINES_OF = {1: (1,), 2: (0, 2), 3: (0, 1, 2)}
"""The lines that words are written on, by the number of words."""
FIRST_COLUMN = {3: 1, 4: 0, 5: 0}
"""The column in which a word begins, by its number of letters."""
COLOURS = {
    "white": (0.10, 0.03),
    "red": (0.00, 0.36),
    "orange": (0.08, 0.42),
    "yellow": (0.15, 0.42),
    "green": (0.33, 0.34),
    "blue": (0.58, 0.36),
    "purple": (0.76, 0.32),
    "pink": (0.92, 0.24),
}
"""Hue and saturation of a sign by the name of its colour."""
MATERIALS = ("paper", "wooden", "brick", "metal")


@dataclass(frozen=True)
class Sign:
    """The contents of one sign.

    Args:
        words: one to three, of three to five capital letters.
        colour: one of `COLOURS`; random when None.
        material: one of `MATERIALS`; random when None.
    """

    words: tuple[str, ...]
    colour: str | None = None
    material: str | None = None
