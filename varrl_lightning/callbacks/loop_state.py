"""Rewrites the position of every checkpoint to the end of the last finished training batch.

Lightning saves its counters as they are, and resumes differently from each place of its loops; a checkpoint saved while a step
fails would skip that step's batch. Rewritten to this form, all checkpoints resume by the same path, wherever they were saved.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import lightning as L


@dataclass
class Position:
    """State of the loops at the end of a batch, recorded because the next batch changes it.

    Args:
        loader_states: the training loader's state, if it has one.
        validation_due: whether validation follows this batch and has not run yet.
    """

    loader_states: list[Any] | None = None
    validation_due: bool = False

    @classmethod
    def after_batch(cls, trainer: L.Trainer) -> Position:
        """The position at the end of a batch."""
        loop: Any = trainer.fit_loop
        return cls(_loader_states(trainer), loop.epoch_loop._should_check_val_fx(loop._data_fetcher))

    @classmethod
    def at_start(cls, trainer: L.Trainer) -> Position:
        """The position before the first batch."""
        return cls(_loader_states(trainer))


def _loader_states(trainer: L.Trainer) -> list[Any] | None:
    return copy.deepcopy(trainer.fit_loop.on_save_checkpoint().get("combined_loader"))


def rewind(checkpoint: dict[str, Any], batches_per_epoch: int | float, updates_done: int, position: Position) -> None:
    """Rewrite a checkpoint's loop counters to the end of its last finished training batch."""
    loops = checkpoint["loops"]["fit_loop"]
    batch, epoch = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    done, in_epoch = batch["total"]["processed"], batch["current"]["processed"]
    epochs = epoch["total"]["started"]
    if done and not in_epoch:  # an epoch has begun and its first batch is not finished
        epochs, in_epoch = epochs - 1, int(batches_per_epoch)
    if not done:
        epochs = 0
    _set(batch["total"], done, behind=("completed",))
    _set(batch["current"], in_epoch, behind=("completed",))
    batch["is_last_batch"] = bool(done) and in_epoch == batches_per_epoch
    for part in epoch.values():
        _set(part, epochs, behind=("processed", "completed"))
    _reset_validation(loops["epoch_loop.val_loop.batch_progress"], position.validation_due)
    # Counts a batch when its validation is over; one is added on loading, another after validation.
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = done - 2
    steps = loops["epoch_loop.manual_optimization.optim_step_progress"]
    _set(steps["total"], updates_done)
    checkpoint["epoch"], checkpoint["global_step"] = max(epochs - 1, 0), updates_done
    loops["state_dict"].pop("combined_loader", None)
    if position.loader_states is not None:
        loops["state_dict"]["combined_loader"] = position.loader_states


def mend_counters(trainer: L.Trainer, batches_done: int) -> None:
    """Correct, at the start of a batch, counters that Lightning leaves off by one after a resume at an epoch's end."""
    loop: Any = trainer.fit_loop
    loop.epoch_loop._batches_that_stepped = batches_done
    for part in (loop.epoch_progress.total, loop.epoch_progress.current):
        part.ready = part.started = part.processed + 1


def _set(counters: dict[str, int], value: int, behind: tuple[str, ...] = ()) -> None:
    for name in counters:
        counters[name] = max(value - (name in behind), 0)


def _reset_validation(progress: dict[str, Any], due: bool) -> None:
    """Set the counters of a validation that has begun its first batch, if it is due: resuming runs it, and no other."""
    _set(progress["total"], int(due), behind=("processed", "completed"))
    _set(progress["current"], 0)
    progress["is_last_batch"] = False
