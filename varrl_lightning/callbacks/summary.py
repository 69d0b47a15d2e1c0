"""Writes the results of a run before and after training to `summary.json` and the console."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from rich.console import Console
from rich.table import Table

from varrl_lightning.callbacks.environment import commit, environment, versions
from varrl_lightning.callbacks.evaluation_prompts import evaluate_by_size, evaluation_prompts
from varrl_lightning.callbacks.run_folder import begin_run, dry, run_folder, say, shown
from varrl_lightning.callbacks.trained_module import vargrpo
from varrl_lightning.configuration.atomic_write import replace_text
from varrl_lightning.evaluation.evaluate import Evaluation
from varrl_lightning.figures.draw import draw_figures
from varrl_lightning.loggers import log_picture, log_table
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt

MEASURES = {
    "word_accuracy": "word accuracy",
    "greedy_word_accuracy": "word accuracy, greedy",
    "ned": "normalised edit distance",
    "reward": "reward",
}
_IMPORTED = time.monotonic()


class Summary(Callback):
    """Evaluates every test prompt with the module's sampler and greedily, before the first step and after the last.

    Without test prompts it uses the validation prompts. The noise is the same both times, so that the results differ by the policy
    alone. Checkpoints hold the results before the run's first step, for the summary of a resumed run.

    Args:
        max_prompts: evaluate the first of the prompts, at most so many; 0 for no evaluation, None for all.

    Raises:
        ValueError: on a negative `max_prompts`.
    """

    def __init__(self, max_prompts: int | None = None) -> None:
        if max_prompts is not None and max_prompts < 0:
            raise ValueError(f"max_prompts must be at least 0, or None for all prompts, got {max_prompts}")
        self.max_prompts = max_prompts
        self.before: dict[str, float | None] = {}
        self._samples_before: int | None = None
        self._commit: str | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate before the first step."""
        module = vargrpo(pl_module)
        if dry(trainer):
            return
        begin_run(trainer, trainer.ckpt_path)
        self._commit = commit()  # now, since the checkout may change while the run goes on
        if self.before or module.rollouts_done:
            return
        prompts = self._prompts(trainer)
        if prompts:
            say(f"Evaluating {len(prompts)} prompts before the first step ...")
            self.before, self._samples_before = measure(module, prompts), len(prompts)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluate after the last step, write the summary, draw the figures, and print the table."""
        if dry(trainer):
            return
        module = vargrpo(pl_module)
        prompts = self._prompts(trainer)
        after: dict[str, float | None] = {}
        if prompts:
            say(f"Evaluating {len(prompts)} prompts after the last step ...")
            after = measure(module, prompts)
            self._forget_other_prompts(len(prompts))
        for logger in trainer.loggers:
            with suppress(OSError):  # may be raised on one process alone, for which the others would wait
                logger.save()
        if trainer.is_global_zero:
            summary = self._summary(trainer, module, after, len(prompts))
            run = run_folder(trainer)
            replace_text(run / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
            pictures = draw_figures(run)
            _send(trainer, summary, pictures)
            show(summary, run, pictures)

    def _prompts(self, trainer: L.Trainer) -> list[Prompt]:
        return [] if self.max_prompts == 0 else evaluation_prompts(trainer)[: self.max_prompts]

    def _forget_other_prompts(self, samples: int) -> None:
        """Leave the results before the first step out of the summary when they are of another number of prompts."""
        if self._samples_before not in (None, samples):
            rank_zero_warn(
                f"the run was evaluated on {self._samples_before} prompts before its first step and on {samples} after the last: "
                "the two cannot be compared, and the summary has the second alone"
            )
            self.before = {}

    def _summary(self, trainer: L.Trainer, module: VARGRPO, after: dict[str, float | None], samples: int) -> dict[str, Any]:
        numbers = {}
        for name in MEASURES:
            numbers[f"{name}_before"] = self.before.get(name)
            numbers[f"{name}_after"] = after.get(name)
        return numbers | {
            "steps": module.rollouts_done,
            "wall_seconds": round(seconds_since_process_start(), 1),
            "seed": module.seed,
            "eval_seed": module.eval_seed,
            "eval_samples": samples,
            "environment": environment(trainer) | {"commit": self._commit},
            "versions": versions(),
        }

    def state_dict(self) -> dict[str, Any]:
        """The results before the first step, for a resumed run."""
        return {"before": self.before, "samples_before": self._samples_before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the results before the run's first step."""
        self.before, self._samples_before = state_dict["before"], state_dict.get("samples_before")


def measure(module: VARGRPO, prompts: Sequence[Prompt]) -> dict[str, float | None]:
    """Word accuracy, NED and reward with the module's sampler, and greedy word accuracy; None for what has no value."""
    sampled = _metrics(evaluate_by_size(module, prompts))
    greedy = _metrics(evaluate_by_size(module, prompts, module.sampling.greedy()))
    values = {name: sampled.get(name) for name in ("word_accuracy", "ned", "reward")}
    values["greedy_word_accuracy"] = greedy.get("word_accuracy")
    return {name: round(value, 6) if value is not None and math.isfinite(value) else None for name, value in values.items()}


def _metrics(parts: list[Evaluation]) -> dict[str, float]:
    return Evaluation.merge([p.without_images() for p in parts]).metrics()


def _send(trainer: L.Trainer, summary: dict[str, Any], pictures: Sequence[Path]) -> None:
    """Send the results and the figures to the loggers that take tables and pictures."""
    step = summary["steps"]
    rows = [[label, summary[f"{name}_before"], summary[f"{name}_after"]] for name, label in MEASURES.items()]
    measured = [row for row in rows if row[1:] != [None, None]]
    if measured:
        log_table(trainer.loggers, "summary", ["", "before", "after"], measured, step)
    for path in pictures:
        with Image.open(path) as picture:
            log_picture(trainer.loggers, f"figures/{path.stem}", np.asarray(picture.convert("RGB")), step)


def show(summary: dict[str, Any], run: Path, pictures: Sequence[Path]) -> None:
    """Print the table of before and after, and where the run's files are."""
    console = Console(file=sys.stdout)
    table = _table(summary)
    if table.row_count:
        console.print(table)
    say(f"Run folder  {shown(run)}  ({summary['wall_seconds'] / 60:.1f} minutes since the process began)")
    picture = next((p for p in pictures if p.name == "before_after.png"), None)
    if picture is not None:
        say(f"Picture     {shown(picture)}")


def _table(summary: dict[str, Any]) -> Table:
    title = f"{summary['eval_samples']} prompts before and after {summary['steps']} steps"
    table = Table(title=title, title_justify="left")
    for heading in ("", "before", "after", "change"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, label in MEASURES.items():
        before, after = summary[f"{name}_before"], summary[f"{name}_after"]
        if before is None and after is None:
            continue
        change = "" if None in (before, after) else f"{after - before:+.3f}"
        table.add_row(label, _cell(before), _cell(after), change)
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def seconds_since_process_start() -> float:
    """Seconds since the process began; on systems that do not tell, since this module was imported."""
    try:
        # Field 22 of stat, in ticks since boot; counted from behind the program's name, which may contain spaces.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _IMPORTED
