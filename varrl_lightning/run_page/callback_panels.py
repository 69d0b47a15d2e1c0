"""The panels of two callbacks: how the scales' gradients relate, and whether the reward is gamed."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from varrl_lightning.figures.tables import Curve, Metrics
from varrl_lightning.run_page.panels import Panel, Section, small
from varrl_lightning.run_page.record import RunRecord
from varrl_lightning.run_page.series import Groups, Series, column
from varrl_lightning.run_page.specs import interval_spec, map_spec

MAPS = 4
"""Maps of a run: the first and the last measurement, and those evenly between."""
ERRORS = 2.0
"""Standard errors that an error bar reaches to either side."""
_PAIR = re.compile(r"scale_(\d+)/scale_(\d+)")
_ADD = "add varrl_lightning.callbacks.{} to trainer.callbacks for {}."


def conflict(runs: Sequence[RunRecord]) -> Section:
    """Maps of the cosines between the scales' gradients at several steps, and that of prefix and suffix over all."""
    section = Section("Conflict between scales")
    for run in runs:
        head = run.name if len(runs) > 1 else ""
        panels = [*_maps(run.metrics), *_split(run.metrics)]
        if panels:
            section.panels[head] = panels
    if not section.panels:
        measured = any(run.metrics.matching("conflict/") for run in runs)
        section.notes.append(
            "ScaleConflict has measured, but no cosine could be told from the noise of its batches: more `batches` tell more."
            if measured
            else "Not measured: " + _ADD.format("ScaleConflict", "this panel")
        )
        return section
    section.notes.append(
        "A cell is the cosine of the expected gradients of two scales: blue and above 0, they pull together; red and below 0, "
        "against each other. A cell without a number could not be told from the noise of batches."
    )
    return section


def hacking(runs: Sequence[RunRecord], groups: Groups) -> Section:
    """Paired changes since the first check with their errors, alarms, and what the images look like."""
    section = Section("Reward hacking")
    for run in runs:
        found = alarms(run.metrics)
        panels = [
            _interval(name, run.metrics.matching(f"hacking/{name}/"), "change", "change_standard_error", found)
            for name in run.metrics.matching("hacking/", "/change")
        ]
        section.panels[f"Changes, {run.name}" if len(runs) > 1 else "Changes since the first check"] = panels
        if run.metrics["hacking/alarms"]:
            steps = ", ".join(map(str, found))
            section.notes.append(f"{run.name}: " + (f"alarm at step {steps}." if found else "no alarm."))
    if not any(section.panels.values()):
        return Section("Reward hacking", ["Not measured: " + _ADD.format("RewardHacking", "this panel, and for its alarms")])
    section.notes.append(
        f"Changes are paired, over fixed validation prompts; bars reach {ERRORS:g} standard errors to either side. "
        "An alarm comes when the reward has risen while a judge or the diversity has fallen."
    )
    looks = {
        name for run in runs for name in run.metrics.matching("hacking/", "/mean") if not run.metrics[f"hacking/{name}/change"]
    }
    means = {name.replace("_", " "): {"": column(f"hacking/{name}/mean")} for name in sorted(looks)}
    section.panels["What the images look like"] = small(groups, means, "", alike=False)
    return section


def alarms(metrics: Metrics) -> list[int]:
    """The steps at which the number of alarms has grown."""
    curve, before, found = metrics["hacking/alarms"], 0.0, []
    for step, count in zip(curve.steps, curve.values, strict=True):
        if count > before:
            found.append(step)
        before = count
    return found


def _maps(metrics: Metrics) -> list[Panel]:
    pairs = {
        match.groups(): curve for name, curve in metrics.matching("conflict/cosine/").items() if (match := _PAIR.fullmatch(name))
    }
    steps = sorted({step for curve in pairs.values() for step in curve.steps})
    scales = sorted({int(scale) for pair in pairs for scale in pair})
    panels = []
    for step in [steps[i] for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, MAPS)})] if steps else ():
        cells, drawn = [], []
        for (s, t), curve in pairs.items():
            if step in curve.steps:
                value = curve.values[curve.steps.index(step)]
                cells += [{"s": int(a), "t": int(b), "cosine": round(value, 3)} for a, b in ((s, t), (t, s))]
                drawn.append(Series(f"scales {s} and {t}", [step], [value]))
        panels.append(Panel(f"Cosines at step {step}", map_spec(cells, scales), drawn, small=True))
    return panels


def _split(metrics: Metrics) -> list[Panel]:
    numbers = metrics.matching("conflict/")
    if "prefix_suffix" not in numbers:
        return []
    return [_interval("Cosine of prefix and suffix", numbers, "prefix_suffix", "prefix_suffix_standard_error", ())]


def _interval(title: str, numbers: dict[str, Curve], value: str, error: str, alarmed: Sequence[int]) -> Panel:
    """Points with error bars; a step without an error has a point alone."""
    curve, errors = numbers[value], numbers.get(error, Curve([], []))
    known = dict(zip(errors.steps, errors.values, strict=True))
    rows = []
    for step, middle in zip(curve.steps, curve.values, strict=True):
        half = ERRORS * known.get(step, 0.0)
        rows.append({"step": float(step), "value": middle, "low": middle - half, "high": middle + half})
    low, high = ([row[end] for row in rows] for end in ("low", "high"))
    drawn = Series(title, curve.steps, curve.values, low, high)
    return Panel(title.replace("_", " "), interval_spec(rows, alarmed, ""), [drawn], small=True)
