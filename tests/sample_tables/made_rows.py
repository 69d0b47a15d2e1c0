"""Rows made by hand, for tests that need no rollout."""

from __future__ import annotations

from typing import Any

import numpy as np

from varrl_lightning.sample_tables.pngs import png
from varrl_lightning.sample_tables.rows import SampleRow

IMAGE = np.full((16, 8, 3), 200, dtype=np.uint8)
MASK = np.array([[0, 255]], dtype=np.uint8)


def row(**changes: Any) -> SampleRow:
    """A row of two scales; arguments change it."""
    values: dict[str, Any] = {
        "step": 40,
        "stage": "prefix",
        "prompt": 'a sign "STONE"',
        "words": ("STONE",),
        "group": 0,
        "branch": 3,
        "continuation": 0,
        "image": png(IMAGE),
        "read": ("ST0NE", "x"),
        "reward": 0.25,
        "rewards": {"ocr": 0.25, "my-clip": None},
        "parts": {"ocr.ned": 0.5, "ocr.both": 1.0, "my-clip.both": None},
        "return_": 0.5,
        "advantage": -1.5,
        "masks": (png(MASK), png(MASK.T)),
        "image_mask": png(IMAGE[..., 0]),
        "scales": ("scale 1, 1x2", "scale 2, 2x1"),
    }
    return SampleRow(**(values | changes))
