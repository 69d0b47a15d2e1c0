"""What a comparison found, from its files alone: means over seeds, and differences with their intervals, by axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from varrl_lightning.comparison.jobs import MEASURES, Run
from varrl_lightning.comparison.phases import Comparison
from varrl_lightning.comparison.statistics import Spread, bootstrap_interval, not_inferior, t_interval, verdict
from varrl_lightning.comparison.table import Row
from varrl_lightning.errors import StartError

WAYS = ("sampled", "greedy")
Seeds = dict[int, list[Row]]
"""The rows of a recipe's runs on one axis, by seed."""


@dataclass(frozen=True)
class Found:
    """The final runs that exist.

    Args:
        start: the rows before training.
        runs: by axis and recipe.
        missing, stopped: names of runs.
    """

    start: list[Row]
    runs: Mapping[str, Mapping[str, Seeds]]
    missing: Sequence[str]
    stopped: Sequence[str]


def find(comparison: Comparison) -> Found:
    """Read the runs that the spec asks for; those that are missing may come later.

    Raises:
        StartError: when the grid or the start is missing, no final run has ended, or rows were made from something else.
    """
    spec, table = comparison.spec, comparison.table
    points = comparison.points()
    seeds = comparison.choices.chosen_seeds()
    plans = {axis: comparison.final_plan(points, seeds, [axis]) for axis in spec.final.axes}
    start, planned = comparison.start_run(), {run for plan in plans.values() for run in plan.axes_of}
    there = table.check([comparison.job(run) for run in (start, *planned)])
    rows = table.of_runs()
    if start.name not in there or len(there) < 2:
        raise StartError(f"{table.path} lacks the start or all final runs; run --phase final first")
    stopped = sorted(name for name in there if rows[name][0]["stopped"])
    runs: dict[str, dict[str, Seeds]] = {axis: {} for axis in plans}
    for axis, plan in plans.items():
        for run in plan.axes_of:
            if run.name in there and run.name not in stopped:
                runs[axis].setdefault(run.recipe, {})[run.seed] = rows[run.name]
    return Found(rows[start.name], runs, sorted(_names(planned) - there), stopped)


def _names(runs: set[Run]) -> set[str]:
    return {run.name for run in runs}


def summary(comparison: Comparison, found: Found) -> dict[str, Any]:
    """The content of results.json."""
    spec = comparison.spec
    recorded = comparison.choices.read()
    return {
        "measure": spec.measure,
        "baseline": spec.rival,
        "margin": spec.margin,
        "choices": recorded,
        "missing": list(found.missing),
        "stopped": list(found.stopped),
        "start": {f"{row['split']} {row['way']}": _measures(row, spec.measure) for row in found.start},
        "axes": {axis: _axis(comparison, runs) for axis, runs in found.runs.items()},
    }


def _axis(comparison: Comparison, runs: Mapping[str, Seeds]) -> dict[str, Any]:
    spec = comparison.spec
    recipes = {name: _recipe(spec.measure, of_seeds) for name, of_seeds in runs.items()}
    pairs = [(name, spec.rival) for name in runs if name != spec.rival] + [tuple(pair) for pair in spec.pairs]
    compared = [
        {"ours": ours, "theirs": theirs, **differences}
        for ours, theirs in dict.fromkeys(pairs)
        if ours in runs and theirs in runs and (differences := _differences(comparison, runs[ours], runs[theirs]))
    ]
    return {"recipes": recipes, "differences": compared}


def _recipe(measure: str, of_seeds: Seeds) -> dict[str, Any]:
    """A recipe's runs on an axis: what they have in common, and each measure over the seeds at their end."""
    first = _end(next(iter(of_seeds.values())), "test", "sampled")
    common: dict[str, Any] = {"seeds": list(of_seeds), "m": first["m"], "K": first["K"], "prompts": int(first["prompts"])}
    common |= {"learning_rate": float(first["learning_rate"]), "updates": int(first["updates"]), "images": int(first["images"])}
    common["seconds"] = float(first["seconds"])
    for name, split, way in (("sampled", "test", "sampled"), ("greedy", "test", "greedy"), ("validation", "validation", "sampled")):
        rows = [_measures(_end(rows, split, way), measure) for rows in of_seeds.values()]
        common[name] = {m: _spread([row[m] for row in rows]) for m in rows[0] if all(m in row for row in rows)}
    return common


def _spread(values: Sequence[float]) -> dict[str, Any]:
    spread = Spread.of(values)
    std = None if math.isnan(spread.std) else spread.std
    return {"mean": spread.mean, "min": spread.low, "max": spread.high, "std": std, "seeds": list(values)}


def _differences(comparison: Comparison, ours: Seeds, theirs: Seeds) -> dict[str, Any]:
    """Differences of the measure on the test over the seeds that both have, with their intervals; nothing with one seed."""
    measure, both = comparison.spec.measure, [seed for seed in ours if seed in theirs]
    if len(both) < 2:
        return {}
    found: dict[str, Any] = {"seeds": both}
    for way in WAYS:
        pairs = [(_end(ours[seed], "test", way), _end(theirs[seed], "test", way)) for seed in both]
        if not all(row.get(measure) for pair in pairs for row in pair):
            continue
        differences = [float(a[measure]) - float(b[measure]) for a, b in pairs]
        interval = t_interval(differences)
        entry = {"mean": sum(differences) / len(both), "by_seed": differences, "t_interval": interval, "verdict": verdict(interval)}
        of_prompts = [_of_prompts(comparison, *pair, measure) for pair in pairs]
        entry["bootstrap_interval"] = bootstrap_interval(of_prompts) if len(of_prompts[0]) > 1 else None
        found[way] = entry | {"inferiority": not_inferior(interval, comparison.spec.margin)}
    return found


def _of_prompts(comparison: Comparison, ours: Row, theirs: Row, measure: str) -> list[float]:
    values = (comparison.table.of_prompts(row, measure) for row in (ours, theirs))
    return [a - b for a, b in zip(*values, strict=True)]


def _end(rows: Sequence[Row], split: str, way: str) -> Row:
    """A run's reading of a split at its end."""
    (row,) = (row for row in rows if row["split"] == split and row["way"] == way)
    return row


def _measures(row: Row, measure: str) -> dict[str, float]:
    return {name: float(row[name]) for name in dict.fromkeys((measure, *MEASURES)) if row.get(name)}
