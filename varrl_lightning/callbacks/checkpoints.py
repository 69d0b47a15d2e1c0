"""Saves `checkpoints/last.ckpt` to resume from, and `checkpoints/best.ckpt` by validation."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from varrl_lightning.callbacks.best_metric import deciding_metric, refuse_unknown
from varrl_lightning.callbacks.run_folder import begin_run, checkpoint_path, dry, say
from varrl_lightning.callbacks.trained_module import vargrpo
from varrl_lightning.checkpoints.saving import remove_leftovers, save_whole
from varrl_lightning.errors import SaveError
from varrl_lightning.module import VARGRPO
from varrl_lightning.strategies import parallel_of


class Checkpoints(ModelCheckpoint):
    """Saves `last.ckpt` every `every_n_steps`, after each validation and at the end, and `best.ckpt` when validation improves.

    The best is decided by what is trained: by `monitor` of `VARGRPO`, any logged metric, where it is given; else by
    `val/word_accuracy` where a reward of positive weight reads words; else by `val/reward`, the sum of the rewards by their
    weights, or by `val/standardised_reward` under another `combine`. The first validation says which it is; a value that
    a checkpoint has brought is compared with others of the same metric only.

    A ModelCheckpoint, so that `--ckpt_path last` and `best` find the files; when to save is decided here, since with manual
    optimization the parent counts optimizer steps and saves before validation's numbers exist. When a save fails because the disk
    is full, a warning is given and the former checkpoint stays; only the last save of a run must succeed.

    Args:
        every_n_steps: training steps between saves, besides those at validation; 0 for none.
    """

    def __init__(self, every_n_steps: int = 0) -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps must be 0 (off) or positive, got {every_n_steps}")
        super().__init__(save_top_k=0)
        self.every_n_steps = every_n_steps
        self.best: float | None = None
        self.best_of: str | None = None
        """The metric that `best` is a value of."""
        self._said: str | None = None
        self._last_attempt = 0

    @property
    def state_key(self) -> str:
        """The same key for all options, which may change between a run and its continuation."""
        return type(self).__qualname__

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose the folder; remove what killed saves have left in it."""
        self.dirpath = str(checkpoint_path(trainer, "last").parent)
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero and not dry(trainer):
            for name in ("last", "best"):
                remove_leftovers(checkpoint_path(trainer, name))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep an earlier run's checkpoints apart, so that the folder holds only this run's."""
        self._last_attempt = vargrpo(pl_module).rollouts_done
        begin_run(trainer, trainer.ckpt_path)

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save `last.ckpt` every `every_n_steps`: here the last step's metrics are logged, which a resumed run does not repeat."""
        self._save_if_due(trainer, vargrpo(pl_module))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save `last.ckpt` if it is due, before a validation, which may take long."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._save_if_due(trainer, vargrpo(pl_module))

    def on_train_batch_end(self, *args: Any) -> None:
        """Do nothing: the step's metrics are not logged yet."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing: an epoch's end means little to a run that is counted in steps."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save `last.ckpt`, and `best.ckpt` if this is the best so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        module = vargrpo(pl_module)
        self._last_attempt = module.rollouts_done
        self._save_if_best(trainer, module)
        if not _at_its_end(trainer, module):
            self._try_to_save(trainer, "last")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save `last.ckpt` after everything else: a run that is resumed from it does nothing.

        Raises:
            SaveError: when the disk is full.
        """
        self._write(trainer, "last")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Do nothing: SafeStop saves."""

    def _save_if_due(self, trainer: L.Trainer, module: VARGRPO) -> None:
        done = module.rollouts_done
        due = self.every_n_steps > 0 and done % self.every_n_steps == 0 and done != self._last_attempt
        if due and not _at_its_end(trainer, module):
            self._last_attempt = done
            self._try_to_save(trainer, "last")

    def _save_if_best(self, trainer: L.Trainer, module: VARGRPO) -> None:
        name = self._deciding(trainer, module)
        value = float(trainer.callback_metrics.get(name, math.nan))
        better = math.isfinite(value) and (self.best is None or value > self.best)
        if parallel_of(trainer).highest(int(better)):  # all processes take part in a save
            former, self.best = self.best, value
            if self._try_to_save(trainer, "best"):
                self.best_model_path = str(checkpoint_path(trainer, "best"))
                self.best_model_score = trainer.callback_metrics[name]
            else:
                self.best = former

    def _deciding(self, trainer: L.Trainer, module: VARGRPO) -> str:
        """The name of the metric that decides; said when it is the first or another than before."""
        logged = {*trainer.callback_metrics, *module.evaluator.names}
        choice = deciding_metric(module, logged)
        if self.best is not None and self.best_of is None:  # version 0.2 took word accuracy wherever anything was read
            self.best_of = "val/word_accuracy" if "val/word_accuracy" in trainer.callback_metrics else "val/reward"
        if self.best is not None and self.best_of != choice.name:
            say(f"The best checkpoint so far was chosen by {self.best_of}, which does not compare with {choice.name}")
            self.best = None
        self.best_of = choice.name
        if self._said != choice.name:
            self._said = choice.name
            say(f"best.ckpt is the checkpoint with the highest {choice.name}: {choice.reason}")
            if module.monitor is not None and choice.name not in logged:
                refuse_unknown(choice.name, logged)
            elif choice.name not in logged:
                rank_zero_warn(f"there is no {choice.name}, since no reward scored an image of validation: best.ckpt is not saved")
        return choice.name

    def _try_to_save(self, trainer: L.Trainer, name: str) -> bool:
        """Save, or warn that the save failed; returns whether it succeeded."""
        try:
            self._write(trainer, name)
        except SaveError as error:
            rank_zero_warn(f"{error}\nTraining continues, and saves again when the next checkpoint is due.")
            return False
        return True

    def _write(self, trainer: L.Trainer, name: str) -> None:
        if dry(trainer):
            return
        for logger in trainer.loggers:
            with suppress(OSError):  # raised on one process alone; the save below reports a full disk on all of them
                logger.save()  # a run that is killed resumes from here: what was logged before must be there
        path = checkpoint_path(trainer, name)
        save_whole(trainer, path)
        if name == "last":
            self.last_model_path = str(path)

    def state_dict(self) -> dict[str, Any]:
        """The best value and what it measures, so that a resumed run does not take a worse one for better."""
        return {"best": self.best, "best_of": self.best_of}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value."""
        self.best, self.best_of = state_dict["best"], state_dict.get("best_of")


def _at_its_end(trainer: L.Trainer, module: VARGRPO) -> bool:
    """Whether the last training step is done; Lightning does not resume from there."""
    batches = (trainer.max_epochs or -1) * trainer.num_training_batches
    return bool(0 < trainer.max_steps <= module.updates_done or 0 < batches <= module.rollouts_done)
