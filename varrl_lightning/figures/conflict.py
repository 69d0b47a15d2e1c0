"""Draws the cosines between the scales' gradients as maps, at the first and the later measurements of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from varrl_lightning.figures.tables import Curve, Metrics

SHOWN = 4
"""Maps of a figure: the first and the last measurement, and those evenly between."""
_PAIR = re.compile(r"scale_(\d+)/scale_(\d+)")


def conflict_figure(metrics: Metrics) -> Figure | None:
    """Maps of the cosines of all pairs of scales over training; None where none was measured.

    Blue scales pull together and red ones against each other. The number stands in each cell, so that the colour is not needed; a
    cell without one could not be told from the noise of batches.
    """
    return conflict_maps(metrics.matching("conflict/cosine/"))


def conflict_maps(curves: Mapping[str, Curve]) -> Figure | None:
    """The same, of curves by `scale_s/scale_t`."""
    pairs = {(int(match[1]) - 1, int(match[2]) - 1): curve for name, curve in curves.items() if (match := _PAIR.fullmatch(name))}
    if not pairs:
        return None
    steps = sorted({step for curve in pairs.values() for step in curve.steps})
    steps = [steps[i] for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, SHOWN)})]
    T = 1 + max(t for _, t in pairs)
    figure = Figure(figsize=(1.2 + 3.2 * len(steps), 3.6), layout="constrained")
    panels = figure.subplots(1, len(steps), squeeze=False)[0]
    image = None
    for axes, step in zip(panels, steps, strict=True):
        cells = np.full((T, T), np.nan)
        for (s, t), curve in pairs.items():
            if step in curve.steps:
                cells[s, t] = cells[t, s] = curve.values[curve.steps.index(step)]
        image = axes.imshow(cells, cmap="RdBu", vmin=-1, vmax=1)
        for s, t in np.argwhere(np.isfinite(cells)):
            colour = "white" if abs(cells[s, t]) > 0.6 else "black"
            axes.text(t, s, f"{cells[s, t]:+.1f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(T), [str(t + 1) for t in range(T)])
        axes.set_yticks(range(T), [str(t + 1) for t in range(T)])
        axes.set_title(f"step {step}", fontsize=10)
        axes.set_xlabel("scale")
    panels[0].set_ylabel("scale")
    if image is not None:
        figure.colorbar(image, ax=list(panels), label="cosine of the expected gradients", shrink=0.8)
    return figure
