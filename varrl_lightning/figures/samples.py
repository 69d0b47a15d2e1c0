"""Sample pictures as files: bare images with the words asked for and read, from which figures can be drawn at any time."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

_KEY = "varrl-lightning"


@dataclass(frozen=True)
class Sample:
    """One sampled image.

    Args:
        image: RGB, (H, W, 3), 0 to 255.
        text: the prompt.
        wanted: the words that the prompt asks for.
        read: the words that were read, None when no reward reads.
        correct: whether every wanted word was read, None when no reward reads.
        reward: NaN where there is none.
    """

    image: np.ndarray
    text: str
    wanted: tuple[str, ...]
    read: tuple[str, ...] | None
    correct: bool | None
    reward: float


def save_samples(path: Path, samples: Sequence[Sample], step: int) -> None:
    """Write equally large samples as one PNG, side by side without a gap, their words in its text chunk."""
    rows = [
        {
            "text": s.text,
            "wanted": s.wanted,
            "read": s.read,
            "correct": s.correct,
            "reward": s.reward if math.isfinite(s.reward) else None,
        }
        for s in samples
    ]
    info = PngImagePlugin.PngInfo()
    info.add_itxt(_KEY, json.dumps({"step": step, "samples": rows}))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([s.image for s in samples], axis=1)).save(path, pnginfo=info)


def load_samples(path: Path) -> tuple[int, list[Sample]]:
    """The step and the samples of a file that `save_samples` wrote.

    Raises:
        ValueError: when the file is another kind of picture.
    """
    with Image.open(path) as opened:
        text = getattr(opened, "text", {}).get(_KEY)
        pixels = np.asarray(opened.convert("RGB"))
    if text is None:
        raise ValueError(f"{path} holds no samples: expected a PNG of a run's samples/raw folder")
    saved = json.loads(str(text))
    images = np.split(pixels, len(saved["samples"]), axis=1)
    return saved["step"], [
        Sample(
            image,
            row["text"],
            tuple(row["wanted"]),
            None if row["read"] is None else tuple(row["read"]),
            row["correct"],
            math.nan if row["reward"] is None else row["reward"],
        )
        for image, row in zip(images, saved["samples"], strict=True)
    ]


def sample_files(run: Path) -> list[Path]:
    """The bare samples of a run, first step first."""
    return sorted((run / "samples" / "raw").glob("step_*.png"))


def remove_samples(run: Path, from_step: int) -> None:
    """Remove samples of `from_step` and later, left by another run or by steps that are repeated: they would count as the end."""
    for path in [*(run / "samples").glob("step_*.png"), *sample_files(run)]:
        number = path.stem.removeprefix("step_")
        if number.isdecimal() and int(number) >= from_step:
            path.unlink()
