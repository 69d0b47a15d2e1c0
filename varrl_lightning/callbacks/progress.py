"""Shows the progress of a run: a bar on a terminal, a line now and then in a file."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from varrl_lightning.callbacks.run_folder import say
from varrl_lightning.callbacks.trained_module import vargrpo
from varrl_lightning.module import VARGRPO

_SHOWN = {"reward": "reward", "word_accuracy": "word accuracy", "val/word_accuracy": "validation", "val/reward": "validation"}


class RunProgress(ProgressBar):
    """Shows the stage, the step, reward and word accuracy of the last rollout, and those of the last validation.

    Args:
        lines: where the output is no terminal, about this many lines for the complete run.
    """

    def __init__(self, lines: int = 40) -> None:
        super().__init__()
        if lines < 1:
            raise ValueError(f"lines must be at least 1, got {lines}")
        self.lines = lines
        self._enabled = True
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._began: tuple[float, int] | None = None

    def disable(self) -> None:
        """Stop showing progress: Lightning calls this on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bar."""
        say(" ".join(map(str, args)))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the bar."""
        super().on_train_start(trainer, pl_module)
        self._began = None
        console = Console(file=sys.stdout)
        if self._enabled and console.is_terminal:
            module = vargrpo(pl_module)
            self._bar = _bar(console)
            self._bar.start()
            self._task = self._bar.add_task("", total=_steps(trainer, module), numbers="", completed=module.rollouts_done)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Name the stage."""
        module = vargrpo(pl_module)
        # Not at the start of training: other callbacks evaluate there.
        self._began = self._began or (time.monotonic(), module.rollouts_done)
        self._show(description=module.grpo.stage(module.rollouts_done).name)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show the step's numbers."""
        module = vargrpo(pl_module)
        done, total = module.rollouts_done, _steps(trainer, module)
        numbers = _numbers(trainer)
        self._show(completed=done, numbers=numbers)
        every = max((total or 1000) // self.lines, 1)
        if self._enabled and self._bar is None and (done % every == 0 or done == total):
            stage = module.cycle[(done - 1) % len(module.cycle)].name
            of = f"/{total}" if total else ""
            say(f"step {done}{of}  {stage:<8} {numbers}  {self._pace(done, total)}")

    def _pace(self, done: int, total: int | None) -> str:
        began, first = self._began or (time.monotonic(), done)
        seconds = (time.monotonic() - began) / max(done - first, 1)
        left = f", {_minutes((total - done) * seconds)} left" if total and total > done else ""
        return f"{seconds:.2f} s/step{left}"

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show that a validation runs, since it may take long."""
        super().on_validation_start(trainer, pl_module)
        self._show(description="validating")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the bar and leave it on the terminal."""
        self._show(description="done")
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the console to the error's message."""
        self._stop()

    def _show(self, **fields: Any) -> None:
        if self._bar is not None:
            # Refresh when the stage changes: its step may be over before the next regular refresh.
            self._bar.update(self._task, refresh="description" in fields, **fields)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
        console=console,
    )


def _steps(trainer: L.Trainer, module: VARGRPO) -> int | None:
    """Training steps of the complete run; None when it has no end."""
    epochs = trainer.max_epochs or -1
    batches = [epochs * trainer.num_training_batches] if epochs > 0 else []
    if trainer.max_steps > 0:
        batches.append(trainer.max_steps // module.updater.updates_per_rollout)  # max_steps counts optimizer steps
    finite = [int(b) for b in batches if b != float("inf")]
    return min(finite) if finite else None


def _numbers(trainer: L.Trainer) -> str:
    metrics = trainer.callback_metrics
    numbers: dict[str, str] = {}
    for name, label in _SHOWN.items():
        if name in metrics:
            numbers.setdefault(label, f"{label} {float(metrics[name]):.3f}")
    return "  ".join(numbers.values())


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
