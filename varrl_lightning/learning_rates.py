"""A learning-rate schedule that PyTorch has no single class for."""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupCosine(LRScheduler):
    """Linear rise to the optimizer's learning rate, half a cosine down, and a constant rate for the rest of the run.

        lr_i = lr * (least + (1 - least) * rise_i)
        rise_i = i / warmup                                                      for i < warmup
                 (1 + cos(pi * min(1, (i - warmup) / (total - warmup)))) / 2     from there on

    Args:
        optimizer: its learning rates are the peaks.
        warmup: updates until the peak, >= 0.
        total: updates until the least learning rate, > warmup.
        least: of the peak, in [0, 1]; the run begins and ends there.

    Raises:
        ValueError: on a value out of its range.
    """

    def __init__(self, optimizer: Optimizer, warmup: int, total: int, least: float = 0.1) -> None:
        if not 0 <= warmup < total:
            raise ValueError(f"warmup must be in [0, total), got warmup {warmup} and total {total}")
        if not 0 <= least <= 1:
            raise ValueError(f"least must be in [0, 1], a share of the peak, got {least}")
        self.warmup, self.total, self.least = warmup, total, least
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rates of update `last_epoch`, counted from 0."""
        factor = self.least + (1 - self.least) * self._rise(self.last_epoch)
        return [factor * float(lr) for lr in self.base_lrs]

    def _rise(self, i: int) -> float:
        if i < self.warmup:
            return i / self.warmup
        return (1 + math.cos(math.pi * min(1.0, (i - self.warmup) / (self.total - self.warmup)))) / 2
