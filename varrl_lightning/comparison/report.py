"""Writes the results of a comparison: results.json, results.md and the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from varrl_lightning.comparison.axes import TITLES
from varrl_lightning.comparison.figure import Line, comparison_figure
from varrl_lightning.comparison.phases import Comparison
from varrl_lightning.comparison.results import Found, find, summary
from varrl_lightning.comparison.table import Row
from varrl_lightning.comparison.workers import write_json
from varrl_lightning.configuration.atomic_write import replace_text
from varrl_lightning.figures.pictures import save_figure

HEADINGS = {
    "word_accuracy": "word accuracy",
    "ned": "NED",
    "reward": "reward",
    "judge_word_accuracy": "second judge",
    "judge_ned": "second judge, NED",
}
STATISTICS = """\
Means over seeds on the test prompts at the same noise (lowest to highest). Differences are from {baseline}, over the seeds that
both have. **The 95% t interval over the differences by seed decides**; beside it stands the 95% percentile interval of a
hierarchical bootstrap (seeds, then prompts within each), which is too narrow with few seeds. A seed pairs the order of the
prompts and the noise of evaluations, not the noise of training. Every run's learning rate falls to the run's own end, so that
each axis has runs of its own, unless their lengths are equal. Points and seeds were chosen on validation prompts alone."""


def write_report(comparison: Comparison) -> None:
    """Write results.json, results.md and comparison.png from the files of a comparison.

    Raises:
        StartError: when the grid, the start or all final runs are missing.
    """
    found = find(comparison)
    table = summary(comparison, found)
    write_json(comparison.folder / "results.json", table)
    replace_text(comparison.folder / "results.md", markdown(comparison, table))
    spec = comparison.spec
    panels = {
        axis: [_line(comparison, found, axis, name, place) for place, name in enumerate(spec.recipes) if name in runs]
        for axis, runs in found.runs.items()
        if runs
    }
    save_figure(comparison_figure(panels, HEADINGS.get(spec.measure, spec.measure)), comparison.folder / "comparison.png")
    for name in ("comparison.png", "results.md", "results.json"):
        print(comparison.folder / name)
    if found.missing:
        print(f"{len(found.missing)} runs are missing; run --phase final", flush=True)


def _line(comparison: Comparison, found: Found, axis: str, recipe: str, place: int) -> Line:
    """A recipe's curve from the start that all share to the end, at the readings that all its runs have."""
    measure, of_seeds = comparison.spec.measure, found.runs[axis][recipe]
    column = "seconds" if axis == "time" else axis
    curves = [_curve([*found.start, *rows], measure) for rows in of_seeds.values()]
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    return Line(
        comparison.spec.label(recipe),
        [float(curves[0][updates][column]) for updates in shared],
        [[float(curve[updates][measure]) for updates in shared] for curve in curves],
        place,
    )


def _curve(rows: Sequence[Row], measure: str) -> dict[int, Row]:
    return {int(row["updates"]): row for row in rows if row["split"] == "curve" and row[measure]}


def markdown(comparison: Comparison, table: Mapping[str, Any]) -> str:
    """The text of results.md."""
    spec = comparison.spec
    lines = ["# Recipes compared", "", *STATISTICS.format(baseline=spec.label(spec.rival)).splitlines()]
    for what, names in (("are missing", table["missing"]), ("stopped before their end, and are in no mean", table["stopped"])):
        lines += ["", f"**{len(names)} runs {what}**: {', '.join(names)}."] if names else []
    for title, part in (
        ("What an update costs", _costs(comparison)),
        ("Learning rates, on validation prompts", _tuning(comparison)),
        ("Seeds", _seeds(comparison, table)),
    ):
        lines += ["", f"## {title}", "", *part] if part else []
    for axis, of_axis in table["axes"].items():
        if of_axis["recipes"]:
            lines += ["", f"## At {TITLES[axis]}", "", *_readings(comparison, table, of_axis), *_pairs(comparison, of_axis)]
    return "\n".join(lines) + "\n"


def _costs(comparison: Comparison) -> list[str]:
    timing = comparison.timing.read()
    machine = timing["machine"]
    lines = [
        f"Of {comparison.spec.timing.rounds} rounds in which all recipes took turns the quietest, on {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['threads']} thread{'s' * (machine['threads'] > 1)} a run; means over a cycle.",
        "",
        "| recipe | prompts | seconds | images | share of the reward | waiting |",
        f"|---|{'---:|' * 5}",
    ]
    for recipe in comparison.spec.recipes:
        for prompts, cost in comparison.timing.costs()[recipe].items():
            numbers = f"{cost.seconds_per_update:.2f} | {cost.images_per_update:.0f} | {cost.reward_share:.0%} | {cost.waiting:.0%}"
            lines.append(f"| {comparison.spec.label(recipe)} | {prompts} | {numbers} |")
    return lines


def _tuning(comparison: Comparison) -> list[str]:
    """A row per recipe and number of prompts, a column per learning rate; what was chosen is bold."""
    spec, chosen = comparison.spec, comparison.points()
    values: dict[tuple[str, int], dict[float, list[str]]] = {}
    rows = comparison.table.of_runs()
    for run in comparison.tuning_plan().axes_of:
        ends = [row[spec.measure] for row in rows[run.name] if row["split"] == "validation"]
        shown = f"{float(ends[0]):.3f}" if ends else "stopped"
        values.setdefault((run.recipe, run.prompts), {}).setdefault(run.learning_rate, []).append(shown)
    if not values:
        return []
    rates = sorted({rate for of_rate in values.values() for rate in of_rate})
    lines = [f"| recipe | prompts | {' | '.join(f'{rate:g}' for rate in rates)} |", f"|---|{'---:|' * (1 + len(rates))}"]
    for (recipe, prompts), of_rate in values.items():
        cells = [", ".join(of_rate.get(rate, [])) for rate in rates]
        cells = [f"**{cell}**" if chosen[recipe] == (prompts, rate) else cell for rate, cell in zip(rates, cells, strict=True)]
        lines.append(f"| {spec.label(recipe)} | {prompts} | {' | '.join(cells)} |")
    return lines


def _seeds(comparison: Comparison, table: Mapping[str, Any]) -> list[str]:
    """Who got more seeds, and why."""
    seeds, choice = comparison.spec.final.seeds, table["choices"].get("most_seeds")
    if not seeds.most or choice is None:
        return []
    means = choice[f"validation_{comparison.spec.measure}"]
    named = ", ".join(comparison.spec.label(name) for name in seeds.most_for)
    shown = ", ".join(
        f"{comparison.spec.label(name)} {mean:.3f}" for name, mean in sorted(means.items(), key=lambda item: -item[1])
    )
    return [
        f"Seeds {list(seeds.most)} for {named or 'no recipe by name'}, and for the recipe with the highest mean on validation "
        f"prompts over the seeds {choice['seeds']} at {TITLES[choice['axis']]}: {comparison.spec.label(choice['highest'])}. It was "
        f"recorded before any run of the other seeds was made. Seeds {list(seeds.default)} for all others. The means: {shown}."
    ]


def _readings(comparison: Comparison, table: Mapping[str, Any], of_axis: Mapping[str, Any]) -> list[str]:
    measure, recipes = table["measure"], of_axis["recipes"]
    others = [(name, "sampled") for name in HEADINGS if all(name in r["sampled"] for r in recipes.values()) and name != measure]
    columns = [(measure, "sampled"), (measure, "greedy"), *others, (measure, "validation")]
    heads = [f"{HEADINGS.get(name, name)}{'' if way == 'sampled' else f', {way}'}" for name, way in columns]
    differences = {entry["ours"]: entry["sampled"] for entry in of_axis["differences"] if entry["theirs"] == table["baseline"]}
    lines = [
        f"| recipe | seeds | learning rate | updates | seconds | images | {heads[0]} | minus baseline | t 95% | bootstrap 95% | "
        f"{' | '.join(heads[1:])} |",
        f"|---|{'---:|' * (9 + len(heads[1:]))}",
    ]
    at_start = {"sampled": "test sampled", "greedy": "test greedy", "validation": "validation sampled"}
    start = [_number(table["start"][at_start[way]].get(name)) for name, way in columns]
    lines.append(f"| start | | | 0 | 0 | 0 | {start[0]} | | | | {' | '.join(start[1:])} |")
    for name in (name for name in comparison.spec.recipes if name in recipes):
        row = recipes[name]
        about = f"{len(row['seeds'])} | {row['learning_rate']:g} | {row['updates']} | {row['seconds']:.0f} | {row['images']}"
        cells = [_number(row[way].get(measured, {}).get("mean")) for measured, way in columns]
        spread = row["sampled"][measure]
        first = f"{cells[0]} ({spread['min']:.3f} to {spread['max']:.3f}) | {_difference(differences.get(name))}"
        lines.append(f"| {comparison.spec.label(name)} | {about} | {first} | {' | '.join(cells[1:])} |")
    return lines


def _difference(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return " | | "
    return f"{entry['mean']:+.3f}, {entry['verdict']} | {_interval(entry['t_interval'])} | {_interval(entry['bootstrap_interval'])}"


def _pairs(comparison: Comparison, of_axis: Mapping[str, Any]) -> list[str]:
    """One line for each pair that the spec names."""
    spec, lines = comparison.spec, [""]
    named = {tuple(pair) for pair in spec.pairs}
    for entry in of_axis["differences"]:
        if (entry["ours"], entry["theirs"]) in named:
            value = entry["sampled"]
            lines.append(
                f"- {spec.label(entry['ours'])} minus {spec.label(entry['theirs'])}, {len(entry['seeds'])} seeds: "
                f"{value['mean']:+.3f}, t 95% {_interval(value['t_interval'])}, bootstrap 95% "
                f"{_interval(value['bootstrap_interval'])}: {value['verdict']}; "
                f"by a margin of {spec.margin:g}: {value['inferiority']}."
            )
    return lines if len(lines) > 1 else []


def _interval(interval: Sequence[float] | None) -> str:
    return "unknown" if interval is None else f"[{interval[0]:+.3f}, {interval[1]:+.3f}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
