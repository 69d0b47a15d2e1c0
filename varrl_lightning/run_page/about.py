"""What a run is, apart from its curves: results, environment, configuration, and how far that has been seen."""

from __future__ import annotations

from collections.abc import Sequence

from varrl_lightning.run_page.configurations import MEANING, differences, nearest
from varrl_lightning.run_page.markup import escaped, number, table, tag
from varrl_lightning.run_page.panels import Section
from varrl_lightning.run_page.record import RunRecord

MEASURES = {
    "word_accuracy": "word accuracy",
    "greedy_word_accuracy": "word accuracy, greedy",
    "ned": "normalised edit distance",
    "reward": "reward",
}


def results(runs: Sequence[RunRecord]) -> Section:
    """Before and after, steps and hours of each run."""
    section = Section("Results")
    rows = []
    for run in runs:
        for name, label in MEASURES.items():
            before, after = (run.summary.get(f"{name}_{when}") for when in ("before", "after"))
            if before is None and after is None:
                continue
            change = "–" if before is None or after is None else f"{after - before:+.4g}"
            rows.append([f"{run.name}: {label}" if len(runs) > 1 else label, number(before), number(after), change])
        if not run.summary:
            section.notes.append(
                f"{run.name}: no summary yet, since it goes on or was stopped; there are {run.steps} updates so far."
            )
        else:
            section.notes.append(f"{run.name}: {run.steps} updates{_hours(run)}{_prompts(run)}.")
    if rows:
        section.html = table("Test prompts before and after training", ["measure", "before", "after", "change"], rows, numbers=True)
    return section


def configuration(runs: Sequence[RunRecord]) -> Section:
    """The keys in which runs differ; of one run, those in which it differs from the nearest shipped configuration."""
    section = Section("Configuration")
    known = [run for run in runs if run.config]
    if len(known) > 1:
        rows = [[key, *cells] for key, cells in differences([run.config for run in known])]
        section.notes = [] if rows else ["The configurations are the same, apart from their folders."]
        if rows:
            section.html = table("Keys that differ between the runs", ["key", *(run.name for run in known)], rows)
    elif known and (near := nearest(known[0].config)):
        section.notes.append(f"The nearest configuration of the package is {near.name}. Keys that it leaves out are not compared.")
        if near.differences:
            section.html = table(f"Keys that {near.name} states otherwise", ["key", near.name, "this run"], near.differences)
        else:
            section.notes.append("This run has every key that it states.")
    for run in known:
        section.html += tag(
            "details",
            tag("summary", escaped(f"config.yaml of {run.name}")) + tag("pre", escaped(run.config_text), {"tabindex": "0"}),
        )
    if not known:
        section.notes.append("No config.yaml: the run was not started by `varrl fit`.")
    return section


def verification(runs: Sequence[RunRecord]) -> Section:
    """How far the nearest shipped configuration of each run has been seen."""
    section = Section("Verification level")
    for run in runs:
        near = nearest(run.config) if run.config else None
        if near is None:
            section.notes.append(
                f"{run.name}: no configuration of the package has its policy, so that the package says nothing about it."
            )
            continue
        section.notes.append(
            f"{run.name}: the nearest configuration, {near.name}, is at the level “{near.seen}”. {MEANING[near.seen]}"
        )
        if not near.same_recipe:
            section.notes.append(
                f"{run.name} has another `model` or `data` than that file, so that the level says nothing certain about it."
            )
    return section


def environment(runs: Sequence[RunRecord]) -> Section:
    """Versions, device and commit, as far as the summaries have them."""
    columns = [_environment(run) for run in runs]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = [[key, *(column.get(key, "–") for column in columns)] for key in keys]
    notes = [
        f"{run.name}: versions and device stand in summary.json, which is written at the end." for run in runs if not run.summary
    ]
    return Section("Environment", notes, html=table("Where the runs were made", ["", *(run.name for run in runs)], rows))


def _environment(run: RunRecord) -> dict[str, str]:
    found = {"folder": str(run.folder)} | {key: str(run.summary[key]) for key in ("seed", "eval_seed") if key in run.summary}
    trainer = run.config.get("trainer")
    settings: dict[str, object] = trainer if isinstance(trainer, dict) else {}
    for key in ("accelerator", "devices", "strategy") if settings else ():
        found[f"trainer.{key}"] = str(settings.get(key))
    for part in ("environment", "versions"):
        values = run.summary.get(part)
        found |= {key: "–" if value is None else str(value) for key, value in values.items()} if isinstance(values, dict) else {}
    return found


def _hours(run: RunRecord) -> str:
    seconds = run.summary.get("wall_seconds")
    if seconds is None:
        return ""
    return f", {seconds / 3600:.1f} hours of its process" if seconds >= 3600 else f", {seconds / 60:.0f} minutes of its process"


def _prompts(run: RunRecord) -> str:
    count = run.summary.get("eval_samples")
    return f", measured on {count} prompts" if count else ""
