"""Curves of one number over training: one a run, or the mean and the spread of repetitions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from varrl_lightning.figures.tables import Curve
from varrl_lightning.run_page.configurations import without_seed
from varrl_lightning.run_page.record import RunRecord

LONG = 40
"""Points from which on a noisy curve is shown as its moving mean."""
SHOWN = 300
"""Points of a curve on the page, at most."""
Select = Callable[[RunRecord], Curve]
Groups = Mapping[str, Sequence[RunRecord]]


@dataclass(frozen=True)
class Series:
    """One line of a plot.

    Args:
        label: of the legend.
        steps, mean: the line.
        low, high: the lowest and the highest of the runs at each step, None for a line of one run.
        raw: the values behind a moving mean of one run, None where the line shows them itself.
        joined: whether the points are joined.
    """

    label: str
    steps: list[int]
    mean: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    raw: list[float] | None = None
    joined: bool = True


def groups(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs whose configurations differ by the seed alone, together; a run without a configuration stands alone.

    A group is named by its first run, and by how many runs there are.
    """
    found: list[tuple[dict[str, str], list[RunRecord]]] = []
    for run in runs:
        key = without_seed(run.config)
        same = next((members for other, members in found if key and other == key), None)
        if same is None:
            found.append((key, [run]))
        else:
            same.append(run)
    return {f"{members[0].name} and {len(members) - 1} more" if members[1:] else members[0].name: members for _, members in found}


def lines(runs: Groups, choices: Mapping[str, Select]) -> list[Series]:
    """A line for each group of runs and each choice of numbers; those without a number are left out.

    Args:
        choices: by what the legend says about each; "" says nothing.
    """
    found = []
    for choice, select in choices.items():
        for name, members in runs.items():
            curves = [curve for run in members if (curve := select(run))]
            label = " · ".join(part for part in (choice, name if len(runs) > 1 else "") if part) or name
            if curves:
                found.append(series(label, curves, several=len(members) > 1))
    return found


def series(label: str, curves: Sequence[Curve], several: bool = False) -> Series:
    """The line of these curves: of one its moving mean, of several the mean, lowest and highest at the steps that all have.

    Each curve is smoothed first. A step that only some have is left out, since a mean of changing runs would jump.

    Args:
        several: whether they are repetitions, also if only one of them has numbers.
    """
    shared = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
    if len(curves) == 1 or not shared:
        curve, kept = curves[0], _kept(len(curves[0].steps))
        smooth = smoothed(curve.values)
        raw = [_rounded(curve.values[i]) for i in kept] if noisy(curve.values) else None
        note = " (one run)" if several else ""
        return Series(label + note, [curve.steps[i] for i in kept], [_rounded(smooth[i]) for i in kept], raw=raw)
    by_step = [dict(zip(curve.steps, smoothed(curve.values), strict=True)) for curve in curves]
    values = np.array([[known[step] for step in shared] for known in by_step])
    kept = _kept(len(shared))
    mean, low, high = ([_rounded(row[i]) for i in kept] for row in (values.mean(0), values.min(0), values.max(0)))
    return Series(label, [shared[i] for i in kept], mean, low, high)


def smoothed(values: Sequence[float]) -> np.ndarray:
    """Moving mean over a twentieth of a noisy curve, cut off at both ends; another one as it is."""
    if not noisy(values):
        return np.asarray(values, dtype=float)
    half = max(1, len(values) // 40)
    total = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    mean: np.ndarray = (total[last] - total[first]) / (last - first)
    return mean


def noisy(values: Sequence[float]) -> bool:
    """Whether a curve is long and turns at a quarter of its points or more; that of a schedule does not."""
    return len(values) >= LONG and int(np.count_nonzero(np.diff(np.sign(np.diff(values))))) >= len(values) / 4


def column(name: str) -> Select:
    """The numbers of one column."""
    return lambda run: run.metrics[name]


def of_stage(stage: str, name: str) -> Select:
    """A column in the updates of one stage: Lightning repeats a stage's last number in the rows of others."""
    return lambda run: run.metrics.where_equal(f"{stage}/{name}", name)


def before_and_after(name: str) -> Select:
    """A number of the summary, which is measured before the first step and after the last."""

    def select(run: RunRecord) -> Curve:
        ends = [(0, run.summary.get(f"{name}_before")), (run.steps, run.summary.get(f"{name}_after"))]
        known = [(step, float(value)) for step, value in ends if value is not None]
        return Curve([step for step, _ in known], [value for _, value in known])

    return select


def _kept(count: int) -> list[int]:
    """Places of the points that are shown, evenly, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, SHOWN))})


def _rounded(value: float) -> float:
    """Six digits: more cannot be seen, and cost space."""
    return float(f"{value:.6g}")
