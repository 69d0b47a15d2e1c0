"""The paper's Figure 2 at this size: accuracy against training time and against images sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#0969da", "#cf222e", "#bf8700", "#1a7f37", "#8250df", "#57606a")


@dataclass(frozen=True)
class Line:
    """One recipe: the positions of its readings, and their values, a row per seed.

    Args:
        time_budget, image_budget: positions of the readings that are compared.
    """

    label: str
    seconds: Sequence[float]
    images: Sequence[float]
    values: Sequence[Sequence[float]]
    time_budget: float
    image_budget: float


def comparison_figure(lines: Sequence[Line], measure: str) -> Figure:
    """Plot lines, left against seconds, right against images: means over seeds, with bands of one standard deviation."""
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for line, color in zip(lines, COLORS * len(lines), strict=False):
        _plot(left, line.seconds, line, color)
        _plot(right, line.images, line, color)
    for axes, label, budget in (
        (left, "seconds of training", max(line.time_budget for line in lines)),
        (right, "images sampled in training", min(line.image_budget for line in lines)),
    ):
        axes.axvline(budget, color="#57606a", linewidth=0.8, linestyle=":")
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    left.set_ylabel(f"{measure} of validation prompts")
    left.set_title("At equal time", fontsize=11, loc="left", fontweight="bold")
    right.set_title("At equal images", fontsize=11, loc="left", fontweight="bold")
    left.legend(frameon=False)
    return figure


def _plot(axes: Axes, x: Sequence[float], line: Line, color: str) -> None:
    values = np.asarray(line.values)
    mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1 if len(values) > 1 else 0)
    axes.plot(x, mean, color=color, linewidth=1.8, label=line.label)
    axes.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
