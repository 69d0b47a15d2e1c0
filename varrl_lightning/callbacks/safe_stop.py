"""Stop between training steps, and save where the run can be resumed from."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from varrl_lightning.callbacks.loop_state import Position, mend_counters, rewind
from varrl_lightning.callbacks.rollback import Rollback
from varrl_lightning.callbacks.run_folder import dry, last_checkpoint, say, shown


class SafeStop(Callback):
    """Ctrl-C and SIGTERM wait for the running training step; a step that fails leaves the state before it in `last.ckpt`.

    A second Ctrl-C stops at once. The exit status is 128 + the signal's number: 130 after Ctrl-C. An exception in a training step
    takes back whatever the step has changed, is saved like the others, and goes on.

    Args:
        keep_copy: keep a copy of weights and optimizer moments during each step, to return to when it fails after its first
            optimizer step. Without it such a failure leaves `last.ckpt` as it was.
    """

    def __init__(self, keep_copy: bool = True) -> None:
        self.keep_copy = keep_copy
        self._wanted: int | None = None
        self._at_once = False
        self._in_step = False
        self._position: Position | None = None
        self._rollback: Rollback | None = None
        self._former: dict[int, Any] = {}
        self._running = False

    # --- signals ------------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Remember who listens to Ctrl-C and SIGTERM, before Lightning does; only a program's main thread can listen."""
        self._wanted, self._at_once, self._in_step = None, False, False  # a Trainer may be used again after a stop
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self._former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Listen in their place; note where the loader stands."""
        self._position = Position.at_start(trainer)
        for number in self._former:
            signal.signal(number, self._on_signal)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Give the signals back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former, self._running = {}, False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        repeated, self._wanted = self._wanted is not None, number
        if self._in_step and repeated and number == signal.SIGINT:
            self._at_once = True
        elif self._in_step:
            name, once_more = ("Ctrl-C", "again ") if number == signal.SIGINT else (signal.Signals(number).name, "")
            say(f"{name}: finishing this training step, then saving. Ctrl-C {once_more}stops at once.")
            return
        raise SystemExit(128 + number)

    # --- the training step --------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Stop if that was asked for in the last step; remember the state before this one."""
        self._leave_step()
        mend_counters(trainer, pl_module.rollouts_done)
        self._rollback = Rollback(trainer)
        self._in_step = self._running = True

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer  # noqa: ARG002
    ) -> None:
        """Copy the weights before they move; not those that a strategy keeps in a form of its own."""
        if self.keep_copy and self._rollback is not None and isinstance(optimizer, Optimizer):
            self._rollback.copy_weights(optimizer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int  # noqa: ARG002
    ) -> None:
        """The step is done: forget the state before it. Its metrics are not logged yet, so it is too early to stop."""
        self._rollback, self._position = None, Position.after_batch(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Stop if that was asked for in the last step; a resumed run begins with this validation."""
        self._leave_step()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Stop if that was asked for in the last step, rather than evaluate what it has come to."""
        self._leave_step()

    def _leave_step(self) -> None:
        self._in_step = False
        if self._wanted is not None:
            raise SystemExit(128 + self._wanted)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Nothing is due any more."""
        if self._position is not None:
            self._position.validation_due = False

    # --- saving -------------------------------------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Bring every checkpoint of the run to one form, from which resuming is exact."""
        if self._position is not None and "loops" in checkpoint:
            rewind(checkpoint, trainer.num_training_batches, pl_module.updates_done, self._position)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Save `last.ckpt`, and say how to go on; the exception's own message comes after it."""
        running = self._running
        self.teardown(trainer, pl_module, "fit")
        if not running or dry(trainer):
            return
        path = last_checkpoint(trainer)
        if self._at_once or not self._return(trainer):
            if path.is_file():
                say(f"Stopped within a training step; the last saved state is {shown(path)}\n{_how(path)}")
            return
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except OSError as error:
            say(f"the state could not be saved to {shown(path)}: {error}")
            return
        say(f"Saved after training step {trainer.lightning_module.rollouts_done}: {shown(path)}\n{_how(path)}")

    def _return(self, trainer: L.Trainer) -> bool:
        """Back to the state before a step that did not finish; False where weights have moved and there is no copy."""
        if self._rollback is None:
            return True
        moved = trainer.lightning_module.updates_done != self._rollback.counters["updates_done"]
        if moved and self._rollback.weights is None:
            return False
        self._rollback.restore(trainer)
        return True


def _how(path: Path) -> str:
    config = path.parent.parent / "config.yaml"
    given = f" --config {shown(config)}" if config.is_file() else " ..."
    return f"Resume with: varrl fit{given} --ckpt_path {shown(path)}"
