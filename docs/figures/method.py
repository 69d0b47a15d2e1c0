"""Draws the figure of the page on the method, `method.svg`, beside this file.

    python docs/figures/method.py

Lines that are trained are thick and solid, those that are only sampled thin and dashed: nothing is said by colour alone. The masks
are those of the chain of section 3.5, from the box in the picture. Only numpy and matplotlib are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

SIDES = (1, 2, 4, 6, 8, 12)
"""Cells along a side of each scale's grid."""
M = 3
WIDTH, HEIGHT = 480.0, 690.0
"""Of the drawing, in hundredths of an inch; on a phone of 390 pixels, a remark is still 10 pixels high."""
SIZE, STEP, LEFT = 54.0, 66.0, 12.0
"""Side of a square, and from one column to the next; the last column is the picture's."""
INK, PALE, DARK = "#1b1f24", "#6a737d", "#1f4e8c"
WORD = (slice(12, 30), slice(10, 62))
"""Rows and columns of the box of a word, in percent of the picture."""

Point = tuple[float, float]


def column(number: float) -> float:
    """The left end of a column; the middle of the gap before it is `STEP - SIZE` halves to the left."""
    return LEFT + number * STEP


SPLIT = column(M) - (STEP - SIZE) / 2
END = column(len(SIDES)) + SIZE / 2


def write(axes: Axes, at: Point, text: str, **options: object) -> None:
    """Write a text, by default from the left and of the size of a remark."""
    axes.text(*at, text, **{"fontsize": 9.5, "va": "center", "color": INK, **options})  # type: ignore[arg-type]


def heading(axes: Axes, y: float, text: str, remark: str) -> None:
    """Write what a part shows, and in small what happens there."""
    write(axes, (LEFT, y), text, fontweight="bold", fontsize=11)
    write(axes, (LEFT, y + 17), remark)


def line(axes: Axes, points: Sequence[Point], trained: bool) -> None:
    """Draw a way from state to state: thick where it is trained, dashed where it is only sampled."""
    style = {"color": DARK, "lw": 2.4} if trained else {"color": PALE, "lw": 1.0, "ls": (0, (4, 2.5))}
    axes.plot(*zip(*points, strict=True), solid_capstyle="round", zorder=1, **style)  # type: ignore[arg-type]


def state(axes: Axes, at: Point) -> None:
    """Draw a state s_m."""
    axes.plot(*at, "o", ms=6, mfc="white", mec=INK, mew=1.2, zorder=3)


def picture(axes: Axes, at: Point, side: float = 17) -> None:
    """Draw a small picture with a word in it, its middle at a point."""
    x, y = at[0] - side / 2, at[1] - side / 2
    axes.add_patch(Rectangle((x, y), side, side, fc="#eef1f4", ec=INK, lw=0.9, zorder=3))
    axes.add_patch(Rectangle((x + 0.1 * side, y + 0.2 * side), 0.6 * side, 0.25 * side, fc=PALE, zorder=4))


def grid(axes: Axes, at: Point, on: np.ndarray) -> None:
    """Draw the cells of a scale, those that are on filled."""
    x, y = at
    cell = SIZE / len(on)
    for row, place in np.argwhere(on).tolist():
        axes.add_patch(Rectangle((x + place * cell, y + row * cell), cell, cell, fc=DARK, ec=PALE, lw=0.6))
    inner = [number * cell for number in range(1, len(on))]
    axes.vlines([x + far for far in inner], y, y + SIZE, color=PALE, lw=0.6)
    axes.hlines([y + far for far in inner], x, x + SIZE, color=PALE, lw=0.6)
    axes.add_patch(Rectangle(at, SIZE, SIZE, fill=False, ec=INK, lw=1.0))


def arrow(axes: Axes, start: Point, end: Point, bend: float = 0.0) -> None:
    """Draw an arrow."""
    style = {"arrowstyle": "-|>", "color": INK, "lw": 1.1, "shrinkA": 0, "shrinkB": 0, "connectionstyle": f"arc3,rad={bend}"}
    axes.annotate("", end, start, arrowprops=style, zorder=5)


def scales(axes: Axes, y: float) -> None:
    """The grids of one picture, coarse to fine, and the two stages."""
    write(axes, (LEFT, y), "Scales, coarse to fine", fontweight="bold", fontsize=11)
    for number, side in enumerate(SIDES):
        grid(axes, (column(number), y + 14), np.zeros((side, side), dtype=bool))
        name = "m" if number + 1 == M else "T" if number + 1 == len(SIDES) else str(number + 1)
        write(axes, (column(number) + SIZE / 2, y + 80), f"$r_{name}$", ha="center", fontsize=11)
    corner = (column(len(SIDES)), y + 14)
    axes.add_patch(Rectangle(corner, SIZE, SIZE, fc="#eef1f4", ec=INK, lw=1.0))
    write(axes, (corner[0] + SIZE / 2, y + 41), "picture", ha="center")
    for first, last, text in ((0, M - 1, "prefix: scales 1..m"), (M, len(SIDES) - 1, "suffix: scales m+1..T")):
        left, right = column(first), column(last) + SIZE
        axes.plot([left, left, right, right], [y + 90, y + 95, y + 95, y + 90], color=INK, lw=1.0)
        write(axes, ((left + right) / 2, y + 105), text, ha="center")


def prefix(axes: Axes, y: float) -> None:
    """A branches down to m, each continued K times; what they return to the branches."""
    heading(axes, y, "Prefix update", "A branches, K continuations of each; scales 1..m are trained")
    root = (column(0) + 10, y + 77)
    for branch in range(3):
        middle = (SPLIT - 46, y + 43 + 34 * branch)
        line(axes, [root, middle], trained=True)
        for way in (-8, 8):
            image = (END, middle[1] + way * 1.1)
            line(axes, [(SPLIT + 6, middle[1]), (SPLIT + 40, image[1]), image], trained=False)
            picture(axes, image, side=14)
            write(axes, (END + 12, image[1]), "R", fontsize=8.5)
        state(axes, middle)
        arrow(axes, (END - 12, middle[1]), (SPLIT + 14, middle[1]))
        write(axes, (SPLIT - 18, middle[1]), "$V_m$", ha="center", fontsize=11)
    axes.plot(*root, "s", ms=7, color=INK, zorder=3)
    write(axes, (root[0] - 8, root[1] + 19), "prompt")
    write(axes, (SPLIT + 8, y + 128), "$V_m = \\eta\\,\\log\\,\\frac{1}{K}\\sum_k e^{R_k/\\eta}$", va="top", fontsize=12)


def draft(axes: Axes, y: float) -> None:
    """The same with K = 0."""
    heading(axes, y, "Prefix update, K = 0", "the draft at m is decoded and scored; nothing later is sampled")
    root = (column(0) + 10, y + 59)
    for branch in range(3):
        middle = (SPLIT - 46, y + 37 + 22 * branch)
        line(axes, [root, middle], trained=True)
        state(axes, middle)
        axes.plot([middle[0] + 6, SPLIT + 12], [middle[1]] * 2, color=INK, lw=0.9)
        picture(axes, (SPLIT + 20, middle[1]))
        write(axes, (SPLIT + 36, middle[1]), "R of the draft" if branch == 1 else "R")
    axes.plot(*root, "s", ms=7, color=INK, zorder=3)


def suffix(axes: Axes, y: float) -> None:
    """One s_m, completed A times."""
    heading(axes, y, "Suffix update", "one $s_m$, completed A times; scales m+1..T are trained")
    root, middle = (column(0) + 10, y + 59), (SPLIT - 46, y + 59)
    line(axes, [root, middle], trained=False)
    for branch in range(3):
        image = (END, y + 37 + 22 * branch)
        line(axes, [middle, image], trained=True)
        picture(axes, image)
        write(axes, (END + 13, image[1]), "R", fontsize=8.5)
    state(axes, middle)
    axes.plot(*root, "s", ms=7, color=INK, zorder=3)


def covered(fine: np.ndarray, side: int) -> np.ndarray:
    """The cells of a grid that meet a cell of a finer one that is on."""
    cells = len(fine)
    spans = [slice(i * cells // side, -(-(i + 1) * cells // side)) for i in range(side)]
    return np.array([[fine[rows, columns].any() for columns in spans] for rows in spans])


def carried_back() -> list[np.ndarray]:
    """The mask at every scale, from coarse to fine: each is what the next finer one covers."""
    mask = np.zeros((100, 100), dtype=bool)
    mask[WORD] = True
    found: list[np.ndarray] = []
    for side in reversed(SIDES):
        mask = covered(mask, side)
        found.insert(0, mask)
    return found


def masks(axes: Axes, y: float) -> None:
    """The mask of a word, carried back from the picture to the coarsest scale."""
    heading(axes, y, "Mask", "from the pixels that decided the reward back to every scale")
    for number, mask in enumerate(carried_back()):
        grid(axes, (column(number), y + 30), mask)
    x, top = column(len(SIDES)), y + 30
    axes.add_patch(Rectangle((x, top), SIZE, SIZE, fc="#eef1f4", ec=INK, lw=1.0))
    rows, columns = (((part.start, part.stop - part.start)) for part in WORD)
    box = Rectangle((x + columns[0] * SIZE / 100, top + rows[0] * SIZE / 100), columns[1] * SIZE / 100, rows[1] * SIZE / 100)
    box.set(fc=DARK, ec=INK, lw=0.8)
    axes.add_patch(box)
    arrow(axes, (END, y + 94), (column(0) + SIZE / 2, y + 94))


def drawing() -> Figure:
    """The complete figure."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.set_axis_off()
    scales(axes, 14)
    axes.plot([SPLIT, SPLIT], [22, 106], color=INK, lw=1.2, ls=(0, (1, 1.5)))
    prefix(axes, 150)
    draft(axes, 328)
    suffix(axes, 442)
    masks(axes, 552)
    line(axes, [(LEFT, 672), (LEFT + 36, 672)], trained=True)
    write(axes, (LEFT + 44, 672), "trained")
    line(axes, [(LEFT + 130, 672), (LEFT + 166, 672)], trained=False)
    write(axes, (LEFT + 174, 672), "sampled, not trained")
    return figure


def save(path: Path) -> None:
    """Write the figure, the same bytes each time."""
    with mpl.rc_context({"svg.hashsalt": "method", "mathtext.fontset": "dejavusans"}):
        FigureCanvasSVG(drawing()).print_svg(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    save(Path(__file__).with_suffix(".svg"))
