"""Pictures of the rows of sample tables: each image, the masks of its scales over it, and a sheet of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from varrl_lightning.configuration.atomic_write import replacing
from varrl_lightning.figures.pictures import save_figure, written
from varrl_lightning.sample_tables.columns import plain_table
from varrl_lightning.sample_tables.pngs import from_png, png
from varrl_lightning.sample_tables.rows import SampleRow

LEAST = 256
"""Pixels of an overlay's longer side at least: grids and small pictures are enlarged by whole numbers."""
_DIM = 0.2
"""Brightness of what a mask leaves out."""
_CELL, _TEXT = 1.5, 2.6
"""Width of a picture and of the text beside it, in inches."""


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image that is dark where a mask is 0; each cell of the mask is a plain rectangle.

    Args:
        image: RGB, (H, W, 3), 0 to 255.
        mask: grey, (h, w), 0 to 255, of any size.
    """
    times = -(-LEAST // max(image.shape[:2]))
    image = image.repeat(times, axis=0).repeat(times, axis=1)
    rows, columns = (np.arange(n) * m // n for n, m in zip(image.shape[:2], mask.shape, strict=True))
    weight = mask[np.ix_(rows, columns)][..., None] / 255
    return np.round(image * (_DIM + (1 - _DIM) * weight)).astype(np.uint8)


def save_pictures(rows: Sequence[SampleRow], folder: Path) -> list[Path]:
    """Write each row's image, and an overlay for each of its masks, named by step, group, branch and continuation.

    Raises:
        OSError: where they cannot be written.
    """
    paths = []
    for row in rows:
        stem = f"step_{row.step:06d}_group_{row.group}_branch_{row.branch:02d}_{row.continuation}"
        for name, data in _pictures(row):
            paths.append(folder / f"{stem}{name}.png")
            with replacing(paths[-1]) as part:
                part.write_bytes(data)
    return paths


def _pictures(row: SampleRow) -> Iterator[tuple[str, bytes]]:
    image = from_png(row.image)
    yield "", row.image
    if row.image_mask is not None:
        yield "_pixels", png(overlay(image, from_png(row.image_mask)))
    for scale, mask in zip(row.scales, row.masks, strict=True):
        number = int(scale.split()[1].rstrip(","))
        yield f"_scale_{number:02d}", png(overlay(image, from_png(mask)))


def save_sheet(rows: Sequence[SampleRow], path: Path) -> None:
    """Write one picture of all rows: beside each, its numbers, its image and the masks of its scales over it.

    Raises:
        OSError: where it cannot be written.
    """
    columns = 1 + max(len(row.masks) for row in rows)
    shape = from_png(rows[0].image).shape
    height = max(_CELL * shape[0] / shape[1], 0.9) + 0.24
    figure = Figure(figsize=(_TEXT + columns * _CELL + 0.1, len(rows) * height))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    width = figure.get_figwidth()
    figure.subplots_adjust(left=_TEXT / width, right=1 - 0.1 / width, top=1 - 0.2 / (height * len(rows)), bottom=0.0, wspace=0.06)
    for line, row in zip(axes, rows, strict=True):
        _draw(line, row)
    save_figure(figure, path)


def _draw(axes: Sequence[Axes], row: SampleRow) -> None:
    image = from_png(row.image)
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(image, interpolation="nearest")
    axes[0].set_title(f"step {row.step}, {row.stage}", fontsize=6.5, pad=2)
    axes[0].text(-0.06, 1.0, described(row), transform=axes[0].transAxes, fontsize=6.5, ha="right", va="top", linespacing=1.35)
    for axis, scale, mask in zip(axes[1:], row.scales, row.masks, strict=False):
        axis.imshow(overlay(image, from_png(mask)), interpolation="nearest")
        axis.set_title(scale, fontsize=6.5, pad=2)


def described(row: SampleRow) -> str:
    """The prompt, the place and the numbers of a row, a line for each."""
    names, ((*values,),) = plain_table([row])
    shown = dict(zip(names, values, strict=True))
    lines = [written(row.prompt, 40), f"group {row.group}, branch {row.branch}, image {row.continuation}"]
    if row.read is not None:
        lines.append(f"read {written(' '.join(row.read), 34) or 'nothing'}")
    numbers = ["reward", *(name for name in names if name.startswith("rewards.") and len(row.rewards) > 1), "return", "advantage"]
    return "\n".join([*lines, *(f"{written(name, 30)} {_number(shown[name])}" for name in numbers)])


def _number(value: float | str | None) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "none"
