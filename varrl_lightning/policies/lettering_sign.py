"""What a sign of the embedded model shows, and the grid of its letters: shared by the policy and by the pictures it learnt from."""

from __future__ import annotations

from dataclasses import dataclass

LINES, COLUMNS = 3, 5
LINE_HEIGHT, LETTER_PITCH = 16, 12
"""Pixels of one letter's cell."""
HEIGHT, WIDTH = LINES * LINE_HEIGHT, COLUMNS * LETTER_PITCH
LINES_OF = {1: (1,), 2: (0, 2), 3: (0, 1, 2)}
"""On which lines a number of words is written."""
FIRST_COLUMN = {3: 1, 4: 0, 5: 0}
"""Where a word of so many letters begins."""
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
    """What a picture shows.

    Args:
        words: one to three, of three to five capital letters.
        colour: one of `COLOURS`; drawn by lot when None.
        material: one of `MATERIALS`; drawn by lot when None.
    """

    words: tuple[str, ...]
    colour: str | None = None
    material: str | None = None
