"""Writes the measured numbers of README.md and of the site from the files that hold them.

python docs/numbers.py            rewrites what stands between `<!-- numbers: NAME -->` and `<!-- /numbers -->`
python docs/numbers.py --check    changes nothing; exit status 1 where a number is not that of its file
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/evidence.md", "docs/quickstart.md")
BLOCK = re.compile(r"(?<=<!-- numbers: )([\w-]+)( -->\n\n)(.*?)(?=<!-- /numbers -->)", re.DOTALL)
AXES = {"time": "At equal time", "updates": "At equal updates", "images": "At equal images"}
Table = Mapping[str, Any]


def share(value: float) -> str:
    """A share to three digits, without the zero before the point."""
    return f"{value:.3f}".replace("0.", ".", 1)


def signed(value: float) -> str:
    """A difference of shares, with its sign."""
    return ("+" if value >= 0 else "-") + share(abs(value))


def interval(ends: Sequence[float]) -> str:
    """An interval of differences."""
    return f"{signed(ends[0])} to {signed(ends[1])}"


# --- the quick-start ------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def read_spec(name: str) -> dict[str, Any]:
    """The spec of a comparison."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def summaries() -> dict[int, Table]:
    """What each seed's run of the quick-start says of itself, and what `examples/quickstart_checks.py` says of it, by seed."""
    folders = sorted((ROOT / "examples/quickstart").glob("seed*"))
    found = [read_json(folder / "summary.json") | {"checks": read_json(folder / "checks.json")} for folder in folders]
    return {summary["seed"]: summary for summary in found}


def quickstart() -> list[str]:
    """The table of the site."""
    start = read_json(ROOT / "examples/quickstart/start.json")
    rows = ["| seed | word accuracy | greedy | NED | read by Tesseract |", "|---|---|---|---|---|"]
    for seed, found in summaries().items():
        pairs = [(found[f"{name}_before"], found[f"{name}_after"]) for name in ("word_accuracy", "greedy_word_accuracy", "ned")]
        pairs.append((start["tesseract_word_accuracy"], found["checks"]["tesseract_word_accuracy"]))
        rows.append(f"| {seed} | {' | '.join(f'{share(before)} → {share(after)}' for before, after in pairs)} |")
    return rows


def quickstart_checks() -> list[str]:
    """What the reward does not see, before and after."""
    heads = ("named colours painted", "entropy of the other colours, bits", "images with words that nobody asked for")
    rows = [f"| | {' | '.join(heads)} |", "|---|---|---|---|"]
    start = read_json(ROOT / "examples/quickstart/start.json")
    for name, found in {"before": start, **{f"seed {seed}": found["checks"] for seed, found in summaries().items()}}.items():
        kept = f"{found['named_colours_kept']} of {found['named_colours']}"
        extra = f"{found['images_with_extra_words']} of {found['prompts']}"
        rows.append(f"| {name} | {kept} | {found['chosen_colours_entropy']:.2f} | {extra} |")
    return rows


def quickstart_time() -> list[str]:
    """How long the runs took, from process start to their summaries."""
    seconds = sorted(round(found["wall_seconds"]) for found in summaries().values())
    shown = [f"{s // 60}:{s % 60:02}" for s in seconds]
    return [f"The three runs took {', '.join(shown[:-1])} and {shown[-1]} minutes."]


def quickstart_short() -> list[str]:
    """The table of README."""
    rows = ["| seed | word accuracy | with the likeliest tokens |", "|---|---|---|"]
    for seed, found in summaries().items():
        pairs = [(found[f"{name}_before"], found[f"{name}_after"]) for name in ("word_accuracy", "greedy_word_accuracy")]
        rows.append(f"| {seed} | {' | '.join(f'{share(before)} -> {share(after)}' for before, after in pairs)} |")
    return rows


# --- the comparisons ------------------------------------------------------------


def results(name: str) -> tuple[Table, dict[str, str]] | None:
    """The results of a comparison and the labels of its recipes; None where there are none."""
    path = ROOT / "examples" / name / "results.json"
    if not path.is_file():
        return None
    return read_json(path), {key: recipe.get("label", key) for key, recipe in read_spec(name)["recipes"].items()}


def costs() -> list[str]:
    """What an update of each recipe costs."""
    timing = read_json(ROOT / "examples/comparison/timing.json")
    spec = read_spec("comparison")
    rows = ["| recipe | seconds | images | reward's share |", "|---|---|---|---|"]
    for name, recipe in spec["recipes"].items():
        (cost,) = timing["recipes"][name].values()
        numbers = f"{cost['seconds_per_update']:.1f} | {cost['images_per_update']:.0f} | {cost['reward_share']:.0%}"
        rows.append(f"| {recipe['label']} | {numbers} |")
    return rows


def tuning() -> list[str]:
    """What each recipe reached at each learning rate of the grid, on validation prompts."""
    labels = {name: recipe["label"] for name, recipe in read_spec("comparison")["recipes"].items()}
    with (ROOT / "examples/comparison/results.csv").open(encoding="utf-8", newline="") as file:
        runs = [row for row in csv.DictReader(file) if row["phase"] == "tune" and row["split"] in ("validation", "")]
    rates = sorted({float(row["learning_rate"]) for row in runs})
    rows = [f"| recipe | {' | '.join(f'{rate:g}' for rate in rates)} |", f"|---|{'---|' * len(rates)}"]
    for name, label in labels.items():
        found = {float(row["learning_rate"]): row["word_accuracy"] for row in runs if row["recipe"] == name}
        cells = [share(float(found[rate])) if found.get(rate) else "stopped" if rate in found else "" for rate in rates]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return rows


def axis_table(found: Table, labels: Mapping[str, str], axis: str) -> list[str]:
    """A row for each recipe that has runs on an axis."""
    of_axis, measure = found["axes"][axis], found["measure"]
    minus = {entry["ours"]: entry["sampled"] for entry in of_axis["differences"] if entry["theirs"] == found["baseline"]}
    baseline = labels[found["baseline"]]
    rows = [
        f"| recipe | seeds | updates | images | word accuracy (lowest to highest) | greedy | minus {baseline}, t 95% | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in labels if name in of_axis["recipes"]):
        recipe, compared = of_axis["recipes"][name], minus.get(name)
        ends = recipe["sampled"][measure]
        cells = [labels[name], f"{len(recipe['seeds'])}", f"{recipe['updates']}", f"{recipe['images']}"]
        cells.append(f"{share(ends['mean'])} ({share(ends['min'])} to {share(ends['max'])})")
        cells.append(share(recipe["greedy"][measure]["mean"]))
        if compared is None:
            cells += ["", ""]
        else:
            cells += [f"{signed(compared['mean'])} ({interval(compared['t_interval'])})", compared["verdict"]]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def missing(found: Table) -> list[str]:
    """How much of a comparison is still to be run."""
    count = len(found["missing"])
    return [f"**{count} final runs are missing.** What stands here is of the runs that have ended.", ""] if count else []


def comparison(name: str) -> list[str]:
    """The tables of a comparison."""
    if (held := results(name)) is None:
        return ["**There are no results yet.**"]
    found, labels = held
    rows = missing(found)
    for axis, title in AXES.items():
        if len(found["axes"].get(axis, {}).get("recipes", ())) > 1:  # one alone is compared with nothing
            rows += [f"**{title}**", "", *axis_table(found, labels, axis), "", *pair_lines(found, labels, axis)]
    return rows[:-1] if rows and not rows[-1] else rows


def pair_lines(found: Table, labels: Mapping[str, str], axis: str) -> list[str]:
    """A line for each pair of recipes that are compared with one another."""
    lines = []
    for entry in found["axes"][axis]["differences"]:
        if entry["theirs"] != found["baseline"]:
            value = entry["sampled"]
            lines.append(
                f"- {labels[entry['ours']]}, minus {labels[entry['theirs']]}: {signed(value['mean'])} "
                f"({interval(value['t_interval'])}), {len(entry['seeds'])} seeds: {value['verdict']}. "
                f"By a margin of {share(found['margin'])}: {value['inferiority']}."
            )
    return [*lines, ""] if lines else []


def comparison_short() -> list[str]:
    """README's table: one row for each of the recipes that its text names."""
    if (held := results("comparison")) is None:
        return ["There are no results yet."]
    found, labels = held
    of_axis, measure = found["axes"]["time"], found["measure"]
    minus = {entry["ours"]: entry["sampled"] for entry in of_axis["differences"] if entry["theirs"] == found["baseline"]}
    rows = [
        *missing(found),
        f"| at equal time | seeds | word accuracy | minus {labels[found['baseline']]} (95%) |",
        "|---|---|---|---|",
    ]
    for name in ("grpo", "paper_k2", "paper_k1", "prefix_k1", "prefix_k0"):
        if name in of_axis["recipes"]:
            recipe, compared = of_axis["recipes"][name], minus.get(name)
            shown = f"{signed(compared['mean'])} ({interval(compared['t_interval'])})" if compared else ""
            rows.append(f"| {labels[name]} | {len(recipe['seeds'])} | {share(recipe['sampled'][measure]['mean'])} | {shown} |")
    return rows


# --- hacked rewards -------------------------------------------------------------


def hacking() -> list[str]:
    """When `RewardHacking` alarmed in each run of `examples/reward_hacking/run.py`."""
    path = ROOT / "examples/reward_hacking/results.json"
    if not path.is_file():
        return ["**There are no results yet.**"]
    heads = ("trained by", "judge", "seed", "word accuracy", "first alarm", "lost by then", "what fell")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for run in json.loads(path.read_text(encoding="utf-8")):
        accuracy = run["word_accuracy"]
        cells = [run["trained_by"], run["judge"], str(run["seed"]), f"{share(accuracy[0])} → {share(accuracy[-1])}"]
        if run["alarm_step"] is None:
            cells += ["none", "", ""]
        else:
            cells += [f"step {run['alarm_step']}", share(run["lost_by_then"]), ", ".join(dict.fromkeys(run["fallen"]))]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


BLOCKS: dict[str, Callable[[], list[str]]] = {
    "quickstart": quickstart,
    "quickstart-short": quickstart_short,
    "quickstart-checks": quickstart_checks,
    "quickstart-time": quickstart_time,
    "costs": costs,
    "tuning": tuning,
    "comparison": lambda: comparison("comparison"),
    "comparison-m": lambda: comparison("comparison_m"),
    "comparison-short": comparison_short,
    "hacking": hacking,
}


def rewritten(text: str) -> str:
    """A page with the numbers of the files in its blocks.

    Raises:
        KeyError: on a block of an unknown name.
    """
    return BLOCK.sub(lambda found: f"{found[1]}{found[2]}{chr(10).join(BLOCKS[found[1]]())}\n\n", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the pages, or say which differ; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args(arguments).check
    status = 0
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        new = rewritten(text)
        if new == text:
            continue
        if check:
            print(f"{page} has other numbers than its files; run: python docs/numbers.py", file=sys.stderr)
            status = 1
        else:
            (ROOT / page).write_text(new, encoding="utf-8")
            print(page)
    return status


if __name__ == "__main__":
    sys.exit(main())
