"""How long a configuration's run is: its steps and validations, as the Trainer would count them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace

DEFAULT_EPOCHS = 1000
"""Epochs of a Trainer that is given no end."""


@dataclass(frozen=True)
class RunLength:
    """The length of a run.

    Args:
        steps: rollouts; None where it has no end.
        validations: in all of them; 0 without validation prompts, or where it is not known.
    """

    steps: int | None
    validations: int

    @classmethod
    def of(cls, trainer: Namespace, batches: int, updates: int, validates: bool) -> RunLength:
        """The length that a Trainer's arguments give.

        Args:
            batches: rollouts in a pass over the training prompts.
            updates: optimizer steps of a rollout, which `max_steps` counts.
            validates: whether there are validation prompts.
        """
        limit = trainer.limit_train_batches
        if isinstance(limit, int):
            batches = min(batches, limit)
        elif limit is not None:
            batches = int(batches * limit)
        ends = [-(-trainer.max_steps // updates)] if trainer.max_steps > 0 else []
        epochs = trainer.max_epochs
        if epochs is None and not ends and trainer.max_time is None:
            epochs = DEFAULT_EPOCHS
        if epochs is not None and epochs >= 0:
            ends.append(epochs * batches)
        steps = min(ends) if ends else None
        return cls(steps, _validations(trainer, batches, steps) if validates and steps else 0)


def _validations(trainer: Namespace, batches: int, steps: int) -> int:
    every: Any = trainer.val_check_interval
    if trainer.limit_val_batches == 0:
        return 0
    if isinstance(every, int):
        return steps // every if every else 0
    interval = max(int(batches * (1.0 if every is None else every)), 1)
    return steps // interval
