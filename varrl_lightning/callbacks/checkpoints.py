"""`checkpoints/last.ckpt` to resume from, `checkpoints/best.ckpt` by validation."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from varrl_lightning.callbacks.run_folder import dry, run_folder

MONITORED = ("val/word_accuracy", "val/reward")
"""What `best` is judged by: the first of these that validation logs."""


class Checkpoints(ModelCheckpoint):
    """Saves `last.ckpt` every `every_n_steps`, after each validation and at the end, and `best.ckpt` when validation improves.

    A ModelCheckpoint, so that `--ckpt_path last` and `best` find the files; when to save is decided here, since with manual
    optimization the parent counts optimizer steps and saves before validation's numbers exist.

    Args:
        every_n_steps: training steps between saves, besides those at validation; 0 for none.
    """

    def __init__(self, every_n_steps: int = 0) -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps must be 0 (off) or positive, got {every_n_steps}")
        super().__init__(save_top_k=0)
        self.every_n_steps = every_n_steps
        self.best: float | None = None

    @property
    def state_key(self) -> str:
        """One key whatever the options: an option may change between a run and its continuation."""
        return type(self).__qualname__

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settle the folder."""
        self.dirpath = str(run_folder(trainer) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int  # noqa: ARG002
    ) -> None:
        """Save `last.ckpt` every `every_n_steps`."""
        if self.every_n_steps and pl_module.rollouts_done % self.every_n_steps == 0:
            self._save(trainer, "last")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing: an epoch's end means little to a run that is counted in steps."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Save `last.ckpt`, and `best.ckpt` if this is the best so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        judged = [trainer.callback_metrics[name] for name in MONITORED if name in trainer.callback_metrics]
        value = float(judged[0]) if judged else math.nan
        if math.isfinite(value) and (self.best is None or value > self.best):
            self.best, self.best_model_score = value, judged[0]
            self.best_model_path = self._save(trainer, "best")
        self._save(trainer, "last")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Save `last.ckpt`."""
        self._save(trainer, "last")

    def _save(self, trainer: L.Trainer, name: str) -> str:
        path = f"{self.dirpath}/{name}.ckpt"
        if not dry(trainer):
            trainer.save_checkpoint(path, weights_only=False)
            if name == "last":
                self.last_model_path = path
        return path

    def state_dict(self) -> dict[str, Any]:
        """The best value, so that a resumed run does not take a worse one for better."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best value."""
        self.best = state_dict["best"]
