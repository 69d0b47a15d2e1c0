"""Stops a run between training steps, and saves a state from which it can be resumed."""

from __future__ import annotations

import shlex
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from varrl_lightning.callbacks.loop_state import Position, mend_counters, rewind
from varrl_lightning.callbacks.requeue import requeue, requeue_signal
from varrl_lightning.callbacks.rollback import Rollback
from varrl_lightning.callbacks.run_folder import checkpoint_path, dry, say, shown
from varrl_lightning.callbacks.trained_module import vargrpo
from varrl_lightning.checkpoints.saving import save_whole
from varrl_lightning.errors import RankError, RunStoppedError, SaveError
from varrl_lightning.memory import copy_is_kept
from varrl_lightning.strategies import Parallel, parallel_of


class StopSignal(SystemExit):
    """Raised on all processes after the same training step, because a signal has asked one of them to stop."""


UNCHANGED = "No training step has been made, so there is nothing to save"
RAISED_EVERYWHERE = (StopSignal, RunStoppedError, RankError)
"""Errors that all processes raise at the same place, so that they can save together; any other may come from one process."""


class SafeStop(Callback):
    """Ctrl-C and SIGTERM wait for the running training step; a step that fails leaves the state before it in `last.ckpt`.

    A second Ctrl-C stops at once. The exit status is 128 + the signal's number: 130 after Ctrl-C. An exception in a training step
    undoes what the step has changed; the state is saved, and the exception is raised again. Any of several processes may get the
    signal: all stop after the same step. After an exception on one process alone nothing is saved, since the others could not take
    part.

    Under SLURM the signal that announces the end of the job's time (SIGUSR1, `sbatch --signal=USR1@90`) does the same and queues
    the job again, unless SLURMEnvironment(auto_requeue=False) is among the Trainer's plugins.

    Args:
        keep_copy: keep a copy of weights and optimizer moments during each step, to return to when it fails after its first
            optimizer step. Without it such a failure leaves `last.ckpt` as it was. None keeps one of up to 256 MiB of weights.
    """

    def __init__(self, keep_copy: bool | None = None) -> None:
        self.keep_copy = keep_copy
        self._parallel = Parallel()
        self._wanted: int | None = None
        self._requeue_on: int | None = None
        self._at_once = False
        self._in_step = False
        self._position: Position | None = None
        self._rollback: Rollback | None = None
        self._former_handlers: dict[int, Any] = {}
        self._running = False

    # --- signals ------------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Keep the handlers of the signals, before Lightning sets its own; only a program's main thread can set any."""
        self._wanted, self._at_once, self._in_step = None, False, False  # a Trainer may be reused after a stop
        self._parallel = parallel_of(trainer)
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self._requeue_on = requeue_signal(trainer)
            numbers = {signal.SIGINT, signal.SIGTERM} | ({self._requeue_on} if self._requeue_on else set())
            self._former_handlers = {number: signal.getsignal(number) for number in numbers}
            if self._requeue_on:  # now: Lightning would save within a step, but it leaves a signal alone that has a handler
                signal.signal(self._requeue_on, self._note)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Handle the signals in place of the former handlers; record the position of the loader."""
        self._position = Position.at_start(trainer)
        for number in self._former_handlers:
            signal.signal(number, self._on_signal)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back to their former handlers."""
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)
        self._former_handlers, self._running = {}, False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        repeated = self._wanted is not None
        self._note(number, frame)
        waits = self._in_step or self._parallel.world_size > 1  # the other processes do not know of the signal
        if waits and repeated and number == signal.SIGINT:
            self._at_once = True
        elif waits:
            once_more = "again " if number == signal.SIGINT else ""
            then = "finishing this training step, then saving" if self._running else f"stopping after this evaluation. {UNCHANGED}"
            say(f"{_signal_name(number)}: {then}. Ctrl-C {once_more}stops at once.")
            return
        if not self._running:
            say(f"{_signal_name(number)}: stopped before the first training step. {UNCHANGED}.")
        raise StopSignal(128 + number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._wanted = self._wanted or number

    # --- the training step --------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop if a signal came in the last step; record the state before this one."""
        self._leave_step()
        mend_counters(trainer, vargrpo(pl_module).rollouts_done)
        self._rollback = Rollback(trainer)
        self._in_step = self._running = True

    def on_before_optimizer_step(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        optimizer: Optimizer,
    ) -> None:
        """Copy the weights before they change, unless a strategy keeps them in another form."""
        if self._rollback is None or not isinstance(optimizer, Optimizer):
            return
        if copy_is_kept(self.keep_copy, (p for group in optimizer.param_groups for p in group["params"])):
            self._rollback.copy_weights(optimizer)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Forget the state before the step, which is done. Its metrics are not logged yet, so it is too early to stop."""
        self._rollback, self._position = None, Position.after_batch(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if a signal came in the last step; a resumed run begins with this validation."""
        self._leave_step()

    def on_validation_batch_start(self, *args: Any) -> None:
        """Stop all processes if one got a signal during validation; without others, it stops at once."""
        if self._running:
            self._leave_step()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if a signal came in the last step, before other callbacks evaluate the result."""
        self._leave_step()

    def _leave_step(self) -> None:
        self._in_step = False
        wanted = self._parallel.highest(self._wanted or 0)
        if wanted:
            self._wanted = wanted
            raise StopSignal(128 + wanted)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record that no validation is due."""
        if self._position is not None:
            self._position.validation_due = False

    # --- saving -------------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Rewrite every checkpoint of the run to one form, from which it resumes exactly."""
        if self._position is not None and "loops" in checkpoint:
            rewind(checkpoint, trainer.num_training_batches, vargrpo(pl_module).updates_done, self._position)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Warn about a changed seed: the run resumes, but not as it would have continued."""
        seed = vargrpo(pl_module).seed
        former_seed = checkpoint.get("varrl", {}).get("seed", seed)
        if trainer.state.fn == "fit" and former_seed != seed:
            rank_zero_warn(
                f"resuming with seed {seed} a run that began with seed {former_seed}: from here on other prompts and noise are "
                f"taken than if it had not been stopped. Set seed_everything to {former_seed} to resume exactly"
            )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save `last.ckpt`, and say how to resume; the exception's own message comes after it."""
        for number, handler in self._former_handlers.items():  # Ctrl-C interrupts the save; a repeated SIGTERM does not
            signal.signal(number, handler if number == signal.SIGINT else self._note)
        try:
            saved = not self._running  # nothing has changed yet
            if self._running and not dry(trainer) and not isinstance(exception, SaveError):
                saved = self._save(trainer, alone=self._parallel.world_size > 1 and not isinstance(exception, RAISED_EVERYWHERE))
            if saved and isinstance(exception, StopSignal) and self._wanted == self._requeue_on:
                # All processes wait for the answer: the first one that exits may end the job.
                _, outcomes = self._parallel.run_on_all(lambda: (None, requeue() if trainer.is_global_zero else ""))
                say(outcomes[0])
        finally:
            # Lightning restores the handlers that were set when it began to listen, which are this callback's.
            trainer._signal_connector._original_handlers.update(self._former_handlers)
            self.teardown(trainer, pl_module, "fit")

    def _save(self, trainer: L.Trainer, alone: bool) -> bool:
        path = checkpoint_path(trainer, "last")
        if alone or self._at_once or not self._undo_step(trainer):
            if path.exists():
                say(f"Stopped within a training step; the last saved state is {shown(path)}\n{_resume_command(path)}")
            return False
        step = vargrpo(trainer.lightning_module).rollouts_done
        try:
            save_whole(trainer, path)
        except OSError as error:
            say(f"The state after training step {step} is lost: {error}")
            return False
        say(f"Saved after training step {step}: {shown(path)}\n{_resume_command(path)}")
        return True

    def _undo_step(self, trainer: L.Trainer) -> bool:
        """Return to the state before a step that did not finish; False where weights have moved and there is no copy."""
        if self._rollback is None:
            return True
        moved = vargrpo(trainer.lightning_module).counters.updates_made != self._rollback.updates_made
        if moved and self._rollback.weights is None:
            return False
        self._rollback.restore(trainer)
        return True


def _signal_name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _resume_command(path: Path) -> str:
    config = path.parent.parent / "config.yaml"
    given = f" --config {shlex.quote(shown(config))}" if config.is_file() else " ..."
    return f"Resume with: varrl fit{given} --ckpt_path {shlex.quote(shown(path))}"
