"""Writes the results of a comparison: tables and the figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from varrl_lightning.comparison.figure import Line, comparison_figure
from varrl_lightning.comparison.phases import Comparison, Point
from varrl_lightning.comparison.statistics import Spread, paired_difference
from varrl_lightning.comparison.workers import stored_result, write_json
from varrl_lightning.errors import StartError
from varrl_lightning.figures.pictures import save_figure

MEASURES = ("word_accuracy", "ned", "reward", "judge_word_accuracy", "judge_ned")
HEADINGS = {
    "word_accuracy": "word accuracy",
    "ned": "NED",
    "reward": "reward",
    "judge_word_accuracy": "second judge",
    "judge_ned": "second judge, NED",
}
READINGS = {"at_time": "equal time", "at_images": "equal images"}
Runs = dict[str, dict[int, dict[str, Any]]]
"""Results by recipe and seed."""


def write_report(comparison: Comparison) -> None:
    """Write comparison.png, results.json and results.md from the final runs.

    Raises:
        StartError: when final runs are missing.
    """
    runs, points, start = _final_runs(comparison)
    table = results(comparison, runs, points, start)
    write_json(comparison.folder / "results.json", table)
    (comparison.folder / "results.md").write_text(markdown(comparison, table), encoding="utf-8")
    measure = comparison.spec.measure
    figure = comparison_figure(_lines(comparison, runs, points, start), HEADINGS.get(measure, measure))
    save_figure(figure, comparison.folder / "comparison.png")
    for name in ("comparison.png", "results.md", "results.json"):
        print(comparison.folder / name)


def _final_runs(comparison: Comparison) -> tuple[Runs, dict[str, Point], dict[str, Any]]:
    """The results of the final runs, each recipe's point, and the readings at the start."""
    jobs, folder = comparison.final_jobs(), comparison.folder / "final"
    stored = {job.name: stored_result(job, folder) for job in (comparison.start_job(), *(job for job, *_ in jobs))}
    if missing := [name for name, result in stored.items() if result is None]:
        raise StartError(f"{folder} lacks {', '.join(missing)}; run --phase final first")
    runs: Runs = {recipe: {} for recipe in comparison.spec.recipes}
    for job, recipe, _, seed in jobs:
        result: Any = stored[job.name]
        if result.get("stopped"):
            raise StartError(f"{job.name} stopped before its end: {result['stopped']}")
        runs[recipe][seed] = result
    start: Any = stored["start"]
    return runs, {recipe: point for _, recipe, point, _ in jobs}, start["readings"]["0"]


def results(comparison: Comparison, runs: Runs, points: Mapping[str, Point], start: Mapping[str, Any]) -> dict[str, Any]:
    """Means and spreads over seeds on the test prompts, and differences from the baseline, at equal time and at equal images."""
    spec, costs = comparison.spec, comparison.costs()
    table: dict[str, Any] = {"test_prompts": _prompts(start["test"]), "recipes": {}}
    table["start"] = {way: start["test"][way]["means"] for way in ("sampled", "greedy")}
    for recipe, of_recipe in runs.items():
        prompts, rate = points[recipe]
        cost = costs[recipe][prompts]
        row: dict[str, Any] = {"seeds": list(of_recipe), "prompts": prompts, "learning_rate": rate}
        row |= {"seconds_per_update": cost.seconds_per_update, "reward_share": cost.reward_share}
        for reading in READINGS:
            updates = _first(of_recipe)[reading]
            row[reading] = {"updates": updates, "seconds": cost.seconds(updates), "images": cost.images(updates)}
            for way in _test(_first(of_recipe), reading):
                row[reading][way] = _compared(runs, recipe, spec.rival, reading, way)
        table["recipes"][recipe] = row
    return table


def _compared(runs: Runs, recipe: str, rival: str, reading: str, way: str) -> dict[str, Any]:
    """Every measure of a recipe: over its seeds, and paired with the baseline over those that both have."""
    ours, theirs = ({seed: _test(run, reading).get(way) for seed, run in runs[name].items()} for name in (recipe, rival))
    measures: dict[str, Any] = {}
    for measure in (name for name in MEASURES if name in _first(ours)["means"]):
        values = [run["means"][measure] for run in ours.values()]
        spread = Spread.of(values)
        measures[measure] = {
            "mean": spread.mean,
            "min": spread.low,
            "max": spread.high,
            "std": _number(spread.std),
            "seeds": values,
        }
        both = [seed for seed in ours if measure in (theirs.get(seed) or {"prompts": {}})["prompts"]]
        if recipe != rival and len(both) > 1:
            difference = paired_difference(
                *([runs_by_seed[seed]["prompts"][measure] for seed in both] for runs_by_seed in (ours, theirs))
            )
            measures[measure] |= {"difference": difference.mean, "error": difference.error, "differences": list(difference.seeds)}
            measures[measure]["difference_seeds"] = both
    return measures


def _first(of_seeds: Mapping[int, Any]) -> Any:
    """The first seed's entry, for values that are equal for all seeds."""
    return next(iter(of_seeds.values()))


def _test(run: Mapping[str, Any], reading: str) -> Any:
    return run["readings"][str(run[reading])]["test"]


def _prompts(test: Mapping[str, Any]) -> int:
    return len(test["sampled"]["prompts"]["reward"])


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def markdown(comparison: Comparison, table: Mapping[str, Any]) -> str:
    """The text of results.md."""
    spec = comparison.spec
    lines = [
        "# Recipes compared",
        "",
        f"Mean over the seeds of a recipe (lowest to highest) on the same {table['test_prompts']} test prompts at the same keys.",
        f"In brackets the difference from {spec.label(spec.rival)}, paired by prompt and by the n seeds that both have, with its",
        "standard error over both; with few seeds two of them are less than 95%. Points were chosen on validation prompts at equal",
        "time, for both tables.",
    ]
    lines += ["", "## What an update costs", "", *_cost_table(comparison)]
    for reading, title in READINGS.items():
        lines += ["", f"## At {title}", "", *_table(comparison, table, reading)]
    return "\n".join(lines) + "\n"


def _cost_table(comparison: Comparison) -> list[str]:
    """The lines of the table of measured costs at each number of prompts: means over a recipe's cycle."""
    lines = ["| recipe | prompts | seconds | images | share of the reward |", f"|---|{'---:|' * 4}"]
    for recipe, of_prompts in comparison.costs().items():
        for prompts, cost in of_prompts.items():
            numbers = f"{cost.seconds_per_update:.2f} | {cost.images_per_update:.0f} | {cost.reward_share:.0%}"
            lines.append(f"| {comparison.spec.label(recipe)} | {prompts} | {numbers} |")
    return lines


def _table(comparison: Comparison, table: Mapping[str, Any], reading: str) -> list[str]:
    spec, start = comparison.spec, table["start"]
    readings = [row[reading] for row in table["recipes"].values()]
    columns = [
        (way, measure)
        for measure in MEASURES
        for way in ("sampled", "greedy")
        if all(measure in values.get(way, {}) for values in (start, *readings))
    ]
    headings = [f"{HEADINGS[measure]}{', greedy' if way == 'greedy' else ''}" for way, measure in columns]
    lines = [f"| recipe | seeds | learning rate | prompts | updates | seconds | images | {' | '.join(headings)} |"]
    lines += [f"|---|{'---:|' * (6 + len(headings))}"]
    lines += [f"| start | | | | 0 | 0 | 0 | {' | '.join(f'{start[way][measure]:.3f}' for way, measure in columns)} |"]
    for recipe, row in table["recipes"].items():
        values = row[reading]
        cells = [_cell(values[way][measure]) for way, measure in columns]
        point = f"{len(row['seeds'])} | {row['learning_rate']:g} | {row['prompts']}"
        about = f"{point} | {values['updates']} | {values['seconds']:.0f} | {values['images']}"
        lines.append(f"| {spec.label(recipe)} | {about} | {' | '.join(cells)} |")
    return lines


def _cell(values: Mapping[str, Any]) -> str:
    cell = f"{values['mean']:.3f}"
    if len(values["seeds"]) > 1:
        cell += f" ({values['min']:.3f} to {values['max']:.3f})"
    if "difference" in values:
        cell += f"<br>[{values['difference']:+.3f} ± {values['error']:.3f}, n = {len(values['differences'])}]"
    return cell


def _lines(comparison: Comparison, runs: Runs, points: Mapping[str, Point], start: Mapping[str, Any]) -> list[Line]:
    """Validation curves of each recipe, from the start that all share to the end of the run."""
    spec, costs = comparison.spec, comparison.costs()
    lines = []
    for recipe, of_recipe in runs.items():
        cost = costs[recipe][points[recipe][0]]
        first = _first(of_recipe)
        updates = [0, *sorted(int(u) for u in first["readings"])]
        values = [[_curve(run["readings"][str(u)] if u else start, spec.measure) for u in updates] for run in of_recipe.values()]
        seconds, images = [cost.seconds(u) for u in updates], [float(cost.images(u)) for u in updates]
        lines.append(Line(spec.label(recipe), seconds, images, values, spec.final.seconds, float(cost.images(first["at_images"]))))
    return lines


def _curve(reading: Mapping[str, Any], measure: str) -> float:
    return float(reading["curve"]["sampled"][measure])
