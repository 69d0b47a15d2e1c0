"""Draws all figures of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from varrl_lightning.figures.conflict import conflict_figure
from varrl_lightning.figures.curves import curve_figures
from varrl_lightning.figures.pictures import before_after, chosen, save_figure
from varrl_lightning.figures.samples import load_samples, sample_files
from varrl_lightning.figures.tables import Metrics, read_summary


def draw_figures(run: Path) -> list[Path]:
    """Write `figures/*.png` from metrics.csv, summary.json and samples/raw, as far as they exist; return the written files."""
    written = []
    metrics = Metrics(run / "metrics.csv")
    figures = curve_figures(metrics, read_summary(run))
    if (maps := conflict_figure(metrics)) is not None:
        figures["conflict"] = maps
    for name, figure in figures.items():
        written.append(run / "figures" / f"{name}.png")
        save_figure(figure, written[-1])
    picture = _before_after(run)
    return written if picture is None else [*written, picture]


def _before_after(run: Path, count: int = 24) -> Path | None:
    """Write the picture of the same prompts before and after; None until there are samples of two steps."""
    files = sample_files(run)
    if len(files) < 2:
        return None
    (_, before), (step, after) = load_samples(files[0]), load_samples(files[-1])
    if [s.text for s in before] != [s.text for s in after]:
        return None  # the prompts were changed during the run, so that no pictures can be compared
    shown = chosen(before, after, count)
    summary = read_summary(run)
    summary = summary if summary.get("steps") == step else {}  # a run that goes on and was stopped has that of its former end
    figure = before_after(
        [before[i] for i in shown],
        [after[i] for i in shown],
        f"The same prompts and noise, before and after {step} training steps",
        (f"before{_numbers(summary, 'before')}", f"after{_numbers(summary, 'after')}"),
    )
    path = run / "figures" / "before_after.png"
    save_figure(figure, path)
    return path


def _numbers(summary: dict[str, Any], when: str) -> str:
    """The numbers over all evaluation prompts, as a second line."""
    names = {"word_accuracy": "word accuracy", "greedy_word_accuracy": "greedy", "reward": "reward"}
    numbers = {label: summary.get(f"{name}_{when}") for name, label in names.items()}
    if numbers["word accuracy"] is not None:
        del numbers["reward"]
    parts = [f"{label} {value:.3f}" for label, value in numbers.items() if value is not None]
    total = f" ({summary['eval_samples']} prompts)" if parts and "eval_samples" in summary else ""
    return f"\n{', '.join(parts)}{total}" if parts else ""
