"""Shows the progress of a run: bars on a terminal, a line a step elsewhere."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console

from varrl_lightning.callbacks.alarms import Alarms
from varrl_lightning.callbacks.bars import Bars
from varrl_lightning.callbacks.lines import Lines
from varrl_lightning.callbacks.pace import Pace, steps_of_run
from varrl_lightning.callbacks.run_folder import say
from varrl_lightning.callbacks.trained_module import vargrpo
from varrl_lightning.module import VARGRPO


class RunProgress(ProgressBar):
    """Shows how far a run is, the reward and word accuracy of its last step, the last validation, the time left, and alarms.

    On a terminal there are two bars: the run's steps, and under them the part of the present step. That is the rollout (scales,
    once a chunk of `images_at_once`), the reward (images that are scored) or the update (micro-batches). The last alarm stays
    below. Alarms are those of any callback with a list `alarms` of texts, as `RewardHacking` and `Monitors` have.

    In a file or a notebook there is a line for each step, with the seconds of its parts. An alarm is on the first line after it.

    Args:
        lines: without a terminal, about this many lines for the complete run, >= 1; None for one a step.

    Raises:
        ValueError: on a value out of its range.
    """

    def __init__(self, lines: int | None = None) -> None:
        super().__init__()
        if lines is not None and lines < 1:
            raise ValueError(f"lines must be at least 1, or None for a line a step, got {lines}")
        self.lines = lines
        self._enabled = True
        self._display: Bars | Lines | None = None
        self._pace, self._alarms = Pace(), Alarms()

    def disable(self) -> None:
        """Stop showing progress: Lightning calls this on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bars."""
        say(" ".join(map(str, args)))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the bars, with the last alarm of the run that this one goes on with."""
        super().on_train_start(trainer, pl_module)
        self._pace, self._alarms = Pace(), Alarms()
        earlier = self._alarms.new(_callbacks(trainer))
        if not self._enabled:
            return
        self._display = self._new_display(trainer, module := vargrpo(pl_module))
        if isinstance(self._display, Bars):
            module.observer = self._display.part
            for alarm in earlier[-1:]:
                self._display.alarm(alarm)

    def _new_display(self, trainer: L.Trainer, module: VARGRPO) -> Bars | Lines:
        console, total = Console(file=sys.stdout), steps_of_run(trainer, module)
        if console.is_terminal and not console.is_dumb_terminal:
            return Bars(console, module.rollouts_done, total, lambda: self._pace.left(total))
        return Lines(total, self.lines, lambda: self._pace.left(total))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Name the stage."""
        module = vargrpo(pl_module)
        # Not at the start of training: other callbacks evaluate there.
        self._pace.begin(module.rollouts_done)
        self._show_alarms(trainer, module)
        if isinstance(self._display, Bars):
            self._display.stage(module.grpo.stage(module.rollouts_done).name)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show the step's numbers."""
        done = vargrpo(pl_module).rollouts_done
        self._pace.end(done)
        if self._display is not None:
            stage = vargrpo(pl_module).grpo.stage(done - 1).name
            self._display.step(done, stage, {name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show that a validation runs, since it may take long."""
        super().on_validation_start(trainer, pl_module)
        if isinstance(self._display, Bars):
            self._display.between_steps("validating")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the bars and leave them on the terminal."""
        self._show_alarms(trainer, vargrpo(pl_module))
        if isinstance(self._display, Bars):
            self._display.between_steps("done")
        self._stop(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the console to the error's message."""
        self._stop(pl_module)

    def _show_alarms(self, trainer: L.Trainer, module: VARGRPO) -> None:
        """Show what callbacks behind this one have found since the last step."""
        for alarm in self._alarms.new(_callbacks(trainer)):
            if self._display is not None:
                self._display.alarm(f"after step {module.rollouts_done}: {alarm}")

    def _stop(self, pl_module: L.LightningModule) -> None:
        if isinstance(self._display, Bars):
            vargrpo(pl_module).observer = None
        if self._display is not None:
            self._display.stop()
            self._display = None


def _callbacks(trainer: L.Trainer) -> list[Any]:
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]
