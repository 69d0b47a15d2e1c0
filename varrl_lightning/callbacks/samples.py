"""Writes grids of samples of the same prompts at the same noise, before, during and after training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from varrl_lightning.algorithms.word_metrics import words_found
from varrl_lightning.callbacks.evaluation_prompts import evaluation_prompts
from varrl_lightning.callbacks.run_folder import begin_run, dry, run_folder
from varrl_lightning.callbacks.trained_module import vargrpo
from varrl_lightning.evaluation.evaluate import Evaluation
from varrl_lightning.figures.pictures import sample_grid, save_figure
from varrl_lightning.figures.samples import Sample, remove_samples, save_samples
from varrl_lightning.loggers import log_picture, log_table
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt
from varrl_lightning.types.eight_bits import eight_bit_pixels
from varrl_lightning.types.normal_form import normal_words


class SampleGrids(Callback):
    """Writes `samples/step_*.png`, with the words that were read under each picture, and the bare images to `samples/raw/`.

    Args:
        count: pictures in a grid: evenly spread over the test prompts, or the validation prompts when there is no test set.
        every_n_validations: a grid is written after every so many validations; 0 for before and after training only.
    """

    def __init__(self, count: int = 32, every_n_validations: int = 1) -> None:
        if count < 1 or every_n_validations < 0:
            raise ValueError(f"count must be >= 1 and every_n_validations >= 0, got {count} and {every_n_validations}")
        self.count, self.every_n_validations = count, every_n_validations
        self._prompts: list[Prompt] = []
        self._validations = 0
        self._last_step: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the prompts; write the grid before training."""
        module = vargrpo(pl_module)
        begin_run(trainer, trainer.ckpt_path)
        prompts = evaluation_prompts(trainer)
        alike = [p for p in prompts if p.size == prompts[0].size]  # one grid, one size
        stride = max(len(alike) // self.count, 1)
        self._prompts = alike[::stride][: self.count]
        if trainer.is_global_zero and not dry(trainer):
            remove_samples(run_folder(trainer), from_step=module.rollouts_done + 1 if module.rollouts_done else 0)
        if module.rollouts_done == 0:
            self._write(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a grid after every so many validations."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validations += 1
        if self.every_n_validations and self._validations % self.every_n_validations == 0:
            self._write(trainer, vargrpo(pl_module))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the grid after training."""
        self._write(trainer, vargrpo(pl_module))

    def _write(self, trainer: L.Trainer, module: VARGRPO) -> None:
        step = module.rollouts_done
        if dry(trainer) or not self._prompts or step == self._last_step:
            return
        self._last_step = step
        folder = run_folder(trainer) / "samples"
        evaluation = module.evaluate(self._prompts)
        if trainer.is_global_zero:
            samples = as_samples(evaluation)
            save_samples(folder / "raw" / f"step_{step:06d}.png", samples, step)
            self._publish(trainer, sample_grid(samples, _title(step)), folder / f"step_{step:06d}.png", step)
            log_table(trainer.loggers, "sample_words", *sample_table(samples), step)

    def _publish(self, trainer: L.Trainer, figure: Figure, path: Path, step: int) -> None:
        save_figure(figure, path)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
        log_picture(trainer.loggers, "samples", pixels, step)

    def state_dict(self) -> dict[str, Any]:
        """The number of validations so far, so that a resumed run writes grids after the same ones."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of validations."""
        self._validations = state_dict["validations"]


def as_samples(evaluation: Evaluation) -> list[Sample]:
    """One `Sample` per image; read correctly means a word accuracy of 1."""
    images = eight_bit_pixels(evaluation.images)
    samples = []
    for i, (image, prompt) in enumerate(zip(images, evaluation.prompts, strict=True)):
        read = None if evaluation.texts is None else tuple(evaluation.texts[i])
        wanted = normal_words(prompt.words, evaluation.case)
        correct = None if read is None or not wanted else words_found(wanted, normal_words(read, evaluation.case)) == len(wanted)
        value = float(evaluation.values[i])
        samples.append(Sample(image, prompt.text, prompt.words, read, correct, value if math.isfinite(value) else math.nan))
    return samples


def sample_table(samples: Sequence[Sample]) -> tuple[list[str], list[list[str | bool | float | None]]]:
    """Columns and rows of what was asked for, read and scored; None for what a run does not measure."""
    rows: list[list[str | bool | float | None]] = [
        [s.text, " ".join(s.wanted), None if s.read is None else " ".join(s.read), s.correct, _number(s.reward)] for s in samples
    ]
    return ["prompt", "words", "read", "correct", "reward"], rows


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _title(step: int) -> str:
    return "before training" if step == 0 else f"after {step} training steps"
