"""The paper's Figure 2 at this size: a measure of validation prompts in the course of training, by axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#57606a", "#0969da", "#cf222e", "#bf8700", "#1a7f37", "#8250df", "#d4a72c", "#1b7c83", "#bc4c00", "#4d2d00")
MARKERS = "os^Dv<>PX*"
DASHES = ("-", "--", "-.")
AXES = {
    "time": ("At equal time", "seconds of training"),
    "images": ("At equal images", "images sampled in training"),
    "updates": ("At equal updates", "updates"),
}


@dataclass(frozen=True)
class Line:
    """One recipe: its place among all, the positions of its readings, and their values, a row per seed."""

    label: str
    x: Sequence[float]
    values: Sequence[Sequence[float]]
    place: int


def comparison_figure(panels: Mapping[str, Sequence[Line]], measure: str) -> Figure:
    """Plot a panel for each axis: means over seeds, with bands of one standard deviation.

    An axis on which one recipe alone has run has no panel, where others have.
    """
    panels = {axis: lines for axis, lines in panels.items() if len(lines) > 1} or panels
    figure = Figure(figsize=(5.2 * len(panels) + 1, 4.4), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (axis, lines) in zip(row, panels.items(), strict=True):
        for line in lines:
            _plot(axes, line)
        title, label = AXES[axis]
        axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    row[0].set_ylabel(f"{measure} of validation prompts")
    known = {line.label: line.place for lines in panels.values() for line in lines}
    drawn = {text: handle for axes in row for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = sorted(drawn, key=lambda name: known[name])
    row[-1].legend([drawn[name] for name in names], names, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _plot(axes: Axes, line: Line) -> None:
    values = np.asarray(line.values)
    mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1 if len(values) > 1 else 0)
    color, marker, dash = (of[line.place % len(of)] for of in (COLORS, MARKERS, DASHES))  # told apart without colour, too
    axes.plot(line.x, mean, color=color, linestyle=dash, marker=marker, markersize=5, linewidth=1.6, label=line.label)
    axes.fill_between(line.x, mean - spread, mean + spread, color=color, alpha=0.12, linewidth=0)
