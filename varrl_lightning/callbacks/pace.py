"""How many training steps a run has, and how long those that are left will take."""

from __future__ import annotations

import time

import lightning as L

from varrl_lightning.module import VARGRPO


def steps_of_run(trainer: L.Trainer, module: VARGRPO) -> int | None:
    """Training steps of the complete run; None when it has no end."""
    epochs = trainer.max_epochs or -1
    batches = [epochs * trainer.num_training_batches] if epochs > 0 else []
    if trainer.max_steps > 0:
        batches.append(trainer.max_steps // module.updater.updates_per_rollout)  # max_steps counts optimizer steps
    finite = [int(b) for b in batches if b != float("inf")]
    return min(finite) if finite else None


class Pace:
    """The mean time of a step since the first that this process made, validations between them included."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None

    def begin(self, done: int) -> None:
        """A step begins, after `done` steps; only the first counts."""
        self._first = self._first or (time.monotonic(), done)

    def end(self, done: int) -> None:
        """A step has ended; `done` counts it."""
        self._last = (time.monotonic(), done)

    def left(self, total: int | None) -> float | None:
        """Seconds until the end of a run of `total` steps, >= 0; None before the first step ends, and where there is no end."""
        if self._first is None or self._last is None or total is None:
            return None
        (began, first), (ended, done) = self._first, self._last
        if done >= total:
            return 0.0
        each = (ended - began) / max(done - first, 1)
        return max((total - done) * each - (time.monotonic() - ended), 0.0)


def duration(seconds: float) -> str:
    """A time in the unit that suits it: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
