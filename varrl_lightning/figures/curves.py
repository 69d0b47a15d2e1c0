"""Draws the curves of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from varrl_lightning.figures.tables import Curve, Metrics

_COLORS = ("#0969da", "#bf8700", "#1a7f37", "#8250df", "#cf222e", "#57606a")


def curve_figures(metrics: Metrics, summary: Mapping[str, Any] | None = None) -> dict[str, Figure]:
    """One figure a subject, by file name; subjects without any number are left out."""
    subjects: dict[str, tuple[str, str, Mapping[str, Curve]]] = {
        "reward": ("Reward of rollouts", "reward", _per_stage(metrics, "reward")),
        "word_accuracy": ("Word accuracy", "share of words read right", _accuracy(metrics, summary or {})),
        "kl": ("KL to the reference", "nats per token", {"KL": metrics["kl"]}),
        "entropy": ("Entropy of the policy", "nats per token", _per_stage(metrics, "entropy")),
        "grad_norm": ("Gradient norm, before clipping", "norm", _per_stage(metrics, "grad_norm")),
        "seconds": ("Time of a training step", "seconds", metrics.matching("seconds/")),
    }
    figures = {}
    for name, (title, label, curves) in subjects.items():
        drawn = {key: curve for key, curve in curves.items() if curve}
        if drawn:
            figures[name] = _figure(title, label, drawn, _filled if name == "seconds" else _line)
    return figures


def _per_stage(metrics: Metrics, name: str) -> dict[str, Curve]:
    """One curve a stage. Lightning repeats its last value in the rows of other stages, which differ from the column `name`."""
    curves = {stage: metrics.where_equal(f"{stage}/{name}", name) for stage in metrics.matching("", "/loss")}
    return curves if any(curves.values()) else {name.replace("_", " "): metrics[name]}


def _accuracy(metrics: Metrics, summary: Mapping[str, Any]) -> dict[str, Curve]:
    curves = {"validation": metrics["val/word_accuracy"], "rollouts": metrics["word_accuracy"]}
    for name, label in (("word_accuracy", "before and after"), ("greedy_word_accuracy", "before and after, greedy")):
        before, after = summary.get(f"{name}_before"), summary.get(f"{name}_after")
        if before is not None and after is not None:
            curves[label] = Curve([0, summary["steps"]], [before, after])
    return curves


def _figure(title: str, label: str, curves: Mapping[str, Curve], draw: Callable[[Axes, Mapping[str, Curve]], None]) -> Figure:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    draw(axes, curves)
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    if len(curves) > 1:
        axes.legend(frameon=False)
    return figure


def _line(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """Draw each curve; of a long, noisy one a pale curve with its moving mean."""
    for (name, curve), color in zip(curves.items(), _COLORS * len(curves), strict=False):
        noisy = len(curve.steps) >= 40
        mark = "" if len(curve.steps) > 25 else "o"
        joined = not name.startswith("before and after")
        axes.plot(
            curve.steps,
            curve.values,
            color=color,
            marker=mark,
            markersize=3.5 if joined else 7,
            linestyle="-" if joined else "none",
            linewidth=1,
            alpha=0.25 if noisy else 1,
            label=None if noisy else name,
        )
        if noisy:
            axes.plot(curve.steps, _smooth(curve.values), color=color, lw=1.8, label=name)


def _filled(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """Stack parts that add up, on the steps that all of them have; moving means, since stages of different length alternate."""
    steps = sorted(set.intersection(*(set(c.steps) for c in curves.values())))
    if len(steps) < 2:
        _line(axes, curves)
        return
    parts = [_smooth([dict(zip(c.steps, c.values, strict=True))[s] for s in steps]) for c in curves.values()]
    axes.stackplot(steps, parts, labels=list(curves), colors=_COLORS[: len(parts)], alpha=0.8)
    axes.set_ylim(bottom=0)


def _smooth(values: list[float]) -> np.ndarray:
    """Mean over a window of a twentieth of the curve, cut off at both ends."""
    half = len(values) // 40
    total = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    smoothed: np.ndarray = (total[last] - total[first]) / (last - first)
    return smoothed
