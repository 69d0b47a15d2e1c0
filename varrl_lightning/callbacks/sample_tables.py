"""Writes tables of the images that a run was trained on."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn

from varrl_lightning.callbacks.run_folder import begin_run, dry, run_folder
from varrl_lightning.callbacks.trained_module import vargrpo
from varrl_lightning.loggers import log_table
from varrl_lightning.module import VARGRPO
from varrl_lightning.sample_tables.columns import plain_table
from varrl_lightning.sample_tables.parquet import INSTALL, can_write, remove_tables, table_path, write_sample_table
from varrl_lightning.sample_tables.recorder import SampleRecorder


class SampleTables(Callback):
    """Writes `samples/tables/step_*.parquet`: the images of a training step with what was asked for, read, scored and credited.

    A row is an image of a branch; `sample_tables.rows.SampleRow` says what its columns are. `varrl samples` shows and filters the
    rows. Loggers that take tables get the same without pictures, as `training_samples`. Tables do not change what is trained: the
    wanted images are copied to the memory of the CPU, and nothing else is kept. It needs pyarrow.

    With the defaults a table of 2 groups of 16 branches holds 32 K images of at most 256 pixels a side: with K = 2 it takes at
    most 13 MB, and mostly much less. Of several processes the first alone writes, and only the images that it has sampled itself:
    of the first groups, these are all where each process samples whole groups.

    Args:
        prompts: how many groups, from the first of the update; 0 writes no table.
        every_n_steps: training steps from one table to the next; None for one at each validation, of the training step before it.
        side: the longer side of the pictures in pixels, where images are larger; None for their own size.

    Raises:
        ValueError: on a value out of its range.
        ModuleNotFoundError: without pyarrow; says how to install it.
    """

    def __init__(self, prompts: int = 2, every_n_steps: int | None = None, side: int | None = 256) -> None:
        if prompts < 0:
            raise ValueError(f"prompts must be >= 0, where 0 writes no table, got {prompts}")
        for name, value in (("every_n_steps", every_n_steps), ("side", side)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, or null, got {value}")
        if prompts and not can_write():
            raise ModuleNotFoundError(f"SampleTables writes Parquet with pyarrow, which is not installed: {INSTALL}")
        self.every_n_steps = every_n_steps
        self._recorder = SampleRecorder(prompts, side)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the tables of steps that are repeated; look on from here."""
        module = vargrpo(pl_module)
        begin_run(trainer, trainer.ckpt_path)
        if dry(trainer) or not trainer.is_global_zero:
            return
        remove_tables(run_folder(trainer), from_step=module.rollouts_done + 1)
        if self._recorder.groups:
            module.observers.members.append(self._recorder)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Decide whether this step's images are copied."""
        every = self.every_n_steps
        done = vargrpo(pl_module).rollouts_done + 1
        self._recorder.wanted = validation_follows(trainer, batch_idx) if every is None else done % every == 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the table that is due after so many steps."""
        if self.every_n_steps is not None:
            self._write(trainer, vargrpo(pl_module))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the table of the training step before this validation."""
        if trainer.state.fn == "fit" and self.every_n_steps is None:
            self._write(trainer, vargrpo(pl_module))

    def _write(self, trainer: L.Trainer, module: VARGRPO) -> None:
        step = module.rollouts_done
        rows = self._recorder.take(step)
        if not rows:
            return
        path = table_path(run_folder(trainer), step)
        try:
            write_sample_table(path, rows)
        except OSError as error:  # a table is not worth a run
            rank_zero_warn(f"{path} could not be written: {error.strerror or error}. Training goes on without this table.")
        log_table(trainer.loggers, "training_samples", *plain_table(rows), step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look on no longer."""
        self._leave(vargrpo(pl_module))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Look on no longer."""
        if isinstance(pl_module, VARGRPO):
            self._leave(pl_module)

    def _leave(self, module: VARGRPO) -> None:
        if self._recorder in module.observers.members:
            module.observers.members.remove(self._recorder)


def validation_follows(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether a validation comes after this batch by `val_check_interval`; not whether the run is stopped meanwhile.

    A copy of 1024 x 1024 images takes seconds on a CPU, and is wanted of few steps alone.
    """
    if not trainer.enable_validation:
        return False
    every, loop = trainer.val_check_batch, trainer.fit_loop.epoch_loop
    if every is None:  # a time, of which nobody knows when it is over
        return True
    number = loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
    return loop.batch_progress.is_last_batch if every == math.inf else (number + 1) % int(every) == 0
