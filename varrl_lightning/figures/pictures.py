"""Draws grids of sample pictures with the words read under each; misread ones are marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties, findfont, get_font

from varrl_lightning.figures.samples import Sample

RIGHT, WRONG, PLAIN = "#1a7f37", "#cf222e", "#57606a"
_CELL = 1.15
"""Width of one picture, in inches."""
_CAPTION = 0.19
"""Height of the caption under it, in inches."""


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, without pyplot, so that neither its backend nor the user's figures change."""
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, facecolor="white")


def sample_grid(samples: Sequence[Sample], title: str, columns: int = 8) -> Figure:
    """Draw all samples, with a title that counts the words read right."""
    columns = min(columns, len(samples))
    rows = math.ceil(len(samples) / columns)
    width, height = columns * _CELL + 0.2, rows * _cell_height(samples) + 0.42
    figure = Figure(figsize=(width, height))
    figure.suptitle(f"{title}{_tally(samples)}", fontsize=9, x=0.1 / width, y=1 - 0.08 / height, ha="left", va="top")
    _fill(figure, samples, rows, columns, top=1 - 0.36 / height, bottom=0.06 / height)
    return figure


def before_after(before: Sequence[Sample], after: Sequence[Sample], title: str, captions: tuple[str, str]) -> Figure:
    """Draw the same prompts before and after, left and right, with a caption over each half."""
    columns = 4 if len(before) >= 8 else 2
    rows = math.ceil(len(before) / columns)
    width, height = 2 * columns * _CELL + 0.6, rows * _cell_height(before) + 0.95
    figure = Figure(figsize=(width, height))
    figure.suptitle(title, fontsize=11, fontweight="bold", y=1 - 0.1 / height, va="top")
    halves: Any = figure.subfigures(1, 2, wspace=0.04)
    for half, samples, caption in zip(halves, (before, after), captions, strict=True):
        half.text(0.5, 1 - 0.42 / height, caption, fontsize=9, ha="center", va="top", linespacing=1.4)
        _fill(half, samples, rows, columns, top=1 - 0.85 / height, bottom=0.06 / height)
    return figure


def chosen(before: Sequence[Sample], after: Sequence[Sample], count: int) -> list[int]:
    """The places of the first `count` prompts: a choice that depends on no result."""
    return list(range(min(count, len(before), len(after))))


def _cell_height(samples: Sequence[Sample]) -> float:
    h, w = samples[0].image.shape[:2]
    height: float = _CELL * 0.94 * h / w + _CAPTION
    return height


def _fill(figure: Figure | SubFigure, samples: Sequence[Sample], rows: int, columns: int, top: float, bottom: float) -> None:
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    height = figure.get_figure(root=True).get_figheight() * (top - bottom) / rows
    figure.subplots_adjust(left=0.02, right=0.98, top=top, bottom=bottom, wspace=0.06, hspace=0.0)
    for axis, sample in zip(axes, samples, strict=False):
        _show(axis, sample, caption_share=_CAPTION / height)
    for axis in axes[len(samples) :]:
        axis.set_axis_off()


def _show(axis: Axes, sample: Sample, caption_share: float) -> None:
    """Draw a picture in the upper part of its cell, and the words read in the lower part."""
    color = PLAIN if sample.correct is None else RIGHT if sample.correct else WRONG
    axis.set_axis_off()
    inner = axis.inset_axes((0.0, caption_share, 1.0, 1 - caption_share))
    inner.imshow(sample.image, interpolation="nearest", aspect="auto")
    inner.set_xticks([])
    inner.set_yticks([])
    for spine in inner.spines.values():
        spine.set_edgecolor(color)
        spine.set_linewidth(1.6 if sample.correct is False else 0.8)
    axis.text(0.5, caption_share * 0.86, _caption(sample), color=color, fontsize=6.5, ha="center", va="top")


def _caption(sample: Sample) -> str:
    wanted = " ".join(sample.wanted) or sample.text
    if sample.correct is None:
        return written(wanted, 22)
    if sample.correct:
        return f"{written(wanted, 20)} ✓"
    read = " ".join(sample.read or ()) or "nothing"
    return f"{written(wanted, 12)} ✗ read {written(read, 10)}"


@cache
def _glyphs() -> frozenset[int]:
    """Characters of the font that captions are written in."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def written(text: str, length: int) -> str:
    """Text as a figure can show it: with the characters of its font, no formulas, and at most so many of them."""
    # A recogniser knows more characters than the font does.
    text = "".join(c if ord(c) in _glyphs() else "□" for c in text)
    # A dollar sign would begin a formula.
    text = text.replace("$", r"\$")
    return text if len(text) <= length else text[: length - 1] + "…"


def _tally(samples: Sequence[Sample]) -> str:
    known = [s.correct for s in samples if s.correct is not None]
    return f"  ·  {sum(known)} of {len(known)} read right" if known else ""
